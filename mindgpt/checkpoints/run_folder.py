"""The checkpoints in a run's output folder: `checkpoint/rank_<r>/<prefix>_rank_<r>-<epoch>_<step>.ckpt`.

Several runs may write into one folder. `meta.json` lists the checkpoints of the last of them, so the newest checkpoint
is the last run's, not the one with the highest step. MindFormers' file of that name lists the last checkpoint only.
Without the file, all checkpoints count as one run's.
"""

import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.io.files import write_json

SUFFIXES = (".ckpt", ".safetensors")  # the second from MindFormers with checkpoint_format: safetensors
_EPOCH_AND_STEP = re.compile(r"-(\d+)_(\d+)(-network|-trainable)?\.(ckpt|safetensors)$")
RECORD = "meta.json"
_RANK_FOLDER = re.compile(r"rank_(\d+)$")


class Step(NamedTuple):
    """When a checkpoint was written; `step` counts within the epoch. Written `<epoch>_<step>`."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch}_{self.step}"


def step_of(file: Path) -> Step | None:
    """The step in the name of a checkpoint, or None if the name has none."""
    match = _EPOCH_AND_STEP.search(file.name)
    return Step(int(match[1]), int(match[2])) if match else None


def checkpoint_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All files of weights in a run's folder, sorted by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix in SUFFIXES) if Path(folder).is_dir() else []


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a run's folder `checkpoint/rank_<r>` or one beside it, the newest last.

    Those of the last run come after all others. The order is by epoch and step, not by name and not by modification
    time, which copying changes.
    """
    of_last_run = set(files_of_last_run(folder))
    numbered = [(file.name in of_last_run, step_of(file), file) for file in checkpoint_files(folder)]
    return [file for _, step, file in sorted(entry for entry in numbered if entry[1]) if step]


def files_of_last_run(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the last run's checkpoints that exist; empty without a readable `meta.json`."""
    try:
        record = json.loads(Path(folder, RECORD).read_bytes())
        names = [*record.get("files", ()), record["last_ckpt_file"]]
        return [name for name in dict.fromkeys(map(os.path.basename, names)) if Path(folder, name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def record_checkpoints(folder: Path, files: Sequence[Path]) -> None:
    """Write `meta.json`: which checkpoints in a folder are the current run's, the newest last.

    Raises:
        UserError: it cannot be written.
    """
    step = step_of(files[-1])
    assert step is not None, files
    names = [file.name for file in files]
    record = {"last_epoch": step.epoch, "last_step": step.step, "last_ckpt_file": names[-1], "files": names}
    write_json(folder / RECORD, record)


def free_stem(folders: Sequence[Path], stem: str) -> str:
    """`stem`, or `stem_1`, `stem_2`, ... if checkpoints in one of the folders have that stem: a run never replaces
    another's files. MindSpore uses the same names."""
    taken = {stem_of(file) for folder in folders for file in checkpoint_files(folder)}
    candidates = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in taken)


def stem_of(file: Path) -> str | None:
    """The name of a checkpoint up to `-<epoch>_<step>`, or None if the name has no step."""
    match = _EPOCH_AND_STEP.search(file.name)
    return file.name[: match.start()] if match else None


def named_checkpoint(name: str, folders: Sequence[Path]) -> Path:
    """The checkpoint that `resume_training` names: a path, or a file name in one of `folders`.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), *(folder / name for folder in folders)):
        if path.is_file():
            return path
    looked = " or ".join(map(str, folders))
    raise UserError(f"resume_training: there is no checkpoint {name}, neither by itself nor in {looked}.")


def rank_folders(folder: Path) -> dict[int, Path]:
    """The folders `rank_<r>` in a folder, by rank, in order."""
    found = {int(match[1]): entry for entry in folder.glob("rank_*") if (match := _RANK_FOLDER.match(entry.name))}
    return {rank: found[rank] for rank in sorted(found) if found[rank].is_dir()}


def rank_of_file(file: Path) -> int | None:
    """The rank whose folder `rank_<r>` a file lies in, or None."""
    match = _RANK_FOLDER.match(file.absolute().parent.name)
    return int(match[1]) if match else None


def choose_files(folders: Sequence[Path], step: Step | None = None) -> list[Path]:
    """The checkpoint of one step in each of a run's folders `rank_<r>`.

    Args:
        folders: of all ranks, in order.
        step: the step; None: the newest that any rank has, which every rank must then have, or the only file of each
            folder if none has a step in its name, as `tools/transform_ckpt.py` writes them.

    Raises:
        UserError: a rank has no checkpoint of the step, or two.
    """
    found = [by_step(folder) for folder in folders]
    if step is None and not any(found):
        return [_only_file(folder) for folder in folders]
    wanted = step or max(itertools.chain.from_iterable(found))
    without = [folder for folder, files in zip(folders, found, strict=True) if wanted not in files]
    if without:
        common = set.intersection(*(set(files) for files in found))
        has = ", ".join(map(str, sorted(found[folders.index(without[0])]))) or "none"
        way_out = f", or name the newest that all have: --step {max(common)}" if common else ""
        raise UserError(
            f"{folders[0].parent}: step {wanted} (epoch_step) is missing in "
            f"{listed([folder.name for folder in without])}; {without[0].name} has {has}. Copy it there{way_out}."
        )
    return [files[wanted] for files in found]


def by_step(folder: Path) -> dict[Step, Path]:
    """The checkpoints in a folder `rank_<r>`, by step; the last run's only, if `meta.json` lists them.

    Raises:
        UserError: two have the same step.
    """
    found: dict[Step, Path] = {}
    files = [Path(folder, name) for name in files_of_last_run(folder)]
    for file in [file for file in files if step_of(file)] or checkpoints_in(folder):
        step = step_of(file)
        assert step is not None, file  # both lists hold such alone
        if step in found:
            raise UserError(f"{folder}: {found[step].name} and {file.name} have the same step. Move one of them away.")
        found[step] = file
    return found


def _only_file(folder: Path) -> Path:
    files = checkpoint_files(folder)
    if len(files) != 1:
        found = f"it holds {listed([file.name for file in files])}" if files else f"it holds no {' or '.join(SUFFIXES)}"
        raise UserError(
            f"{folder}: {found}; looked for one file, or for names that end in -<epoch>_<step> in every rank_<r>."
        )
    return files[0]


def listed(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first items of a list that may be long, and how many more there are."""
    shown = separator.join(items[:most])
    return f"{shown}{separator.removeprefix(',')}and {len(items) - most} more" if len(items) > most else shown
