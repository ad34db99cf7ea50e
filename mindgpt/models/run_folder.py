"""The names in a run's output folder: `checkpoint/rank_<r>/<prefix>_rank_<r>-<epoch>_<step>.ckpt`."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mindgpt.config.errors import UserError

_EPOCH_AND_STEP = re.compile(r"-(\d+)_(\d+)(-network|-trainable)?\.ckpt$")
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


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run's folder `checkpoint/rank_<r>`, or of those beside it, the newest last.

    By epoch and step, not by name, and not by the time of writing, which copying changes.
    """
    numbered = [(step_of(file), file) for file in Path(folder).glob("*.ckpt")]
    return [file for _, file in sorted((step, file) for step, file in numbered if step)]


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
    """The checkpoints in a folder `rank_<r>`, by step.

    Raises:
        UserError: two are of one step.
    """
    found: dict[Step, Path] = {}
    for file in checkpoints_in(folder):
        step = step_of(file)
        if step in found:
            raise UserError(f"{folder}: {found[step].name} and {file.name} are of one step. Move one of them away.")
        found[step] = file
    return found


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.ckpt"))
    if len(files) != 1:
        found = f"it holds {listed([file.name for file in files])}" if files else "it holds no .ckpt"
        raise UserError(
            f"{folder}: {found}; looked for one file, or for names that end in -<epoch>_<step>.ckpt in every rank_<r>."
        )
    return files[0]


def listed(names: Sequence[str], count: int = 5) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
