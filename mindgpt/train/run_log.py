"""The logs of a run, `log/train.jsonl` and `log/eval.jsonl`: one JSON object per line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.io.files import appending_to, atomic_write, make_folder, read_lines, set_aside
from mindgpt.runtime.ranks import rank, say


class RunLog:
    """Writes a log on rank 0; does nothing on other ranks. Lines are not buffered, so a killed run leaves its log.

    Args:
        path: the file. An earlier run's is renamed at the first record, unless `begin` continues it.
        outdated: a log that this run does not write; an earlier run's is renamed along with `path`, since it would be
            mistaken for this run's.
    """

    def __init__(self, path: Path, outdated: Path | None = None):
        self.path = Path(path)
        self.outdated = outdated
        self._file = None
        self._mode = "wb"

    def begin(self, after_step: int | None = None) -> None:
        """Create the folder. A resumed run keeps the records up to `after_step`; None: a new run.

        Raises:
            UserError: the folder cannot be created, or the log to continue is broken.
        """
        if rank() != 0:
            return
        make_folder(self.path.parent)
        if after_step is None or not self.path.exists():
            return
        kept = [record for record in read_log(self.path) if record["step"] <= after_step]
        with atomic_write(self.path, "w") as file:
            file.writelines(_line(record) for record in kept)
        self._mode = "ab"

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record; a number that is not finite becomes null.

        Raises:
            UserError: it cannot be written, e.g. because the disk is full.
        """
        if rank() != 0:
            return
        with appending_to(self.path):
            if self._file is None:
                if self._mode == "wb":
                    self._set_aside_earlier()
                # Unbuffered: `close` would try to write a buffer again after a failed write.
                self._file = open(self.path, self._mode, buffering=0)  # noqa: SIM115 (closed by `close`)
                self._mode = "ab"
            line = _line(record).encode()
            while line:  # on an almost full disk, a write may be partial
                line = line[self._file.write(line) :]

    def _set_aside_earlier(self) -> None:
        for path in (self.path, self.outdated):
            if path is not None and (kept := set_aside(path)):
                say(f"the log of an earlier run is kept as {kept}")

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A broken last line, which a killed run may leave, is ignored.

    Raises:
        UserError: the file cannot be read, or another line is not an object with an integer `step`.
    """
    lines = list(read_lines(path))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif line.strip() and number < len(lines):
            raise UserError(f"{path}:{number}: not a line of a run's log (a JSON object with a step): {line[:60]!r}.")
    return records
