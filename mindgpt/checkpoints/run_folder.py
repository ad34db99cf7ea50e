"""The names in a run's output folder: `checkpoint/rank_<r>/<prefix>_rank_<r>-<epoch>_<step>.ckpt`.

Several runs may have written into one folder. `meta.json` lists the checkpoints of the last of them, so that the newest
is that of the last run, not the one of the highest step. MindFormers writes a file of this name too, with the last
checkpoint alone. Where there is none, all count as of one run.
"""

import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write

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
    """What the name of a checkpoint says, or None for a name of another kind."""
    match = _EPOCH_AND_STEP.search(file.name)
    return Step(int(match[1]), int(match[2])) if match else None


def checkpoint_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All files of weights in a run's folder, by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix in SUFFIXES) if Path(folder).is_dir() else []


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run's folder `checkpoint/rank_<r>`, or of those beside it, the newest last.

    Those of the last run come after all others; among them by epoch and step, not by name, and not by the time of
    writing, which copying changes.
    """
    of_last_run = set(files_of_last_run(folder))
    numbered = [(file.name in of_last_run, step_of(file), file) for file in checkpoint_files(folder)]
    return [file for _, step, file in sorted(entry for entry in numbered if entry[1]) if step]


def files_of_last_run(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the last run's checkpoints that are there; empty if nothing tells which these are."""
    try:
        record = json.loads(Path(folder, RECORD).read_bytes())
        names = [*record.get("files", ()), record["last_ckpt_file"]]
        return [name for name in dict.fromkeys(map(os.path.basename, names)) if Path(folder, name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def record_checkpoints(folder: Path, files: Sequence[Path]) -> None:
    """Note which checkpoints in a folder are of the run that is going on, the newest last.

    Raises:
        UserError: the note cannot be written.
    """
    step = step_of(files[-1])
    names = [file.name for file in files]
    record = {"last_epoch": step.epoch, "last_step": step.step, "last_ckpt_file": names[-1], "files": names}
    with atomic_write(folder / RECORD, "w") as file:
        file.write(json.dumps(record, indent=2) + "\n")


def free_stem(folders: Sequence[Path], stem: str) -> str:
    """`stem`, or if checkpoints in one of the folders begin with it `stem_1`, `stem_2`...: a run replaces no file of
    another. MindSpore names them so, too."""
    taken = {stem_of(file) for folder in folders for file in checkpoint_files(folder)}
    candidates = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in taken)


def stem_of(file: Path) -> str | None:
    """The name of a checkpoint before `-<epoch>_<step>`, or None for a name of another kind."""
    match = _EPOCH_AND_STEP.search(file.name)
    return file.name[: match.start()] if match else None


def named_checkpoint(name: str, folders: Sequence[Path]) -> Path:
    """The checkpoint that `resume_training` names: a path, or the name of one in `folders`.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), *(folder / name for folder in folders)):
        if path.is_file():
            return path
    looked = " or ".join(map(str, folders))
    raise UserError(f"resume_training: there is no checkpoint {name}, neither by itself nor in {looked}.")


def rank_folders(folder: Path) -> dict[int, Path]:
    """The folders `rank_<r>` in a folder, by r in order."""
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
        step: which; None for the newest that any rank has, which then every rank must have. Where each folder holds
            one file without a step in its name, as `tools/transform_ckpt.py` writes it, these.

    Raises:
        UserError: a rank does not have it, or has two.
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
    """The checkpoints in a folder `rank_<r>`, by step; of the last run, if it is known which these are.

    Raises:
        UserError: two are of one step.
    """
    found: dict[Step, Path] = {}
    files = [Path(folder, name) for name in files_of_last_run(folder)]
    for file in [file for file in files if step_of(file)] or checkpoints_in(folder):
        step = step_of(file)
        if step in found:
            raise UserError(f"{folder}: {found[step].name} and {file.name} are of one step. Move one of them away.")
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


def listed(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
