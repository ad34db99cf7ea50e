"""Exact resume: a run that was cut off goes on from a checkpoint as if it had never stopped.

A checkpoint of a run holds all parameters of the training step (weights, optimizer state, loss scale, counters, and the
key that dropout masks follow from) and, under the name `training_state`, a JSON object with the rest: the plan of the
run, and what its callbacks have to remember. The order of the data follows from seed and step.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore import Tensor, nn
from mindspore.train import Callback, RunContext

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.run_folder import (
    Step,
    by_step,
    checkpoints_in,
    listed,
    named_checkpoint,
    rank_folders,
    rank_of_file,
    step_of,
)
from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say
from mindgpt.train.checkpoint_monitor import COUNTERS, parameters_of_step

STATE = "training_state"
_CPU_KEY = "dropout_key"  # what the masks of a step on a CPU follow from


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        path: the checkpoint.
        step: steps that are done.
        plan: what the run was made of; a run that goes on must be made of the same.
        callbacks: what the callbacks have to remember.
    """

    path: Path
    step: int
    plan: Mapping[str, Any]
    callbacks: Mapping[str, Any] = field(default_factory=dict)


def state_entry(step: int, plan: Mapping[str, Any], callbacks: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a checkpoint that `open_resume_point` reads."""
    return {STATE: json.dumps({"step": step, "plan": plan, "callbacks": callbacks})}


def open_resume_point(path: Path) -> ResumePoint:
    """What a checkpoint says about going on from it.

    Raises:
        UserError: it is damaged, or holds weights only.
    """
    text = CheckpointFile(path).texts.get(STATE)
    if text is None:
        raise UserError(
            f"{path} holds no training_state: it is not a checkpoint that training here has written, or holds weights "
            "only. To start a new run from its weights, give it with --load_checkpoint and without --resume_training."
        )
    try:
        state = json.loads(text)
        return ResumePoint(path, int(state["step"]), dict(state["plan"]), dict(state["callbacks"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: its training_state cannot be read ({error}). Resume from another checkpoint."
        ) from None


def find_resume_point(wanted: bool | str, folders: list[Path]) -> ResumePoint:
    """The checkpoint that `resume_training` means.

    Args:
        wanted: True for the newest that can be read; else the name of one in `folders`, or a path.
        folders: a run's folders `checkpoint/rank_<r>`, in the order in which to look.

    Raises:
        UserError: there is none, or the one that is named cannot be resumed from.
    """
    if isinstance(wanted, str):
        return open_resume_point(named_checkpoint(wanted, folders))
    failures = []
    for path in _newest_first(folders):
        try:
            point = open_resume_point(path)
        except UserError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            say(f"resume_training: passed over: {failure}")
        return point
    if failures:
        raise UserError(f"resume_training: none of the checkpoints can be resumed from. The newest: {failures[0]}")
    looked = " or ".join(map(str, folders))
    raise UserError(
        f"resume_training: there is no checkpoint in {looked}. Give the output folder of the run with --output_dir, or "
        "the name of a checkpoint; to start a new run, leave --resume_training out."
    )


def find_resume_point_of_card(wanted: bool | str, folders: list[Path], card: int, cards: int) -> ResumePoint:
    """As `find_resume_point`, for one card of a model that is cut over several: all must go on from the same step of
    the same folder.

    The choice does not depend on `card`, so cards that see the same files agree. Folders of ranks that the run does not
    have are leftovers of a larger one, and passed over.

    Args:
        wanted: True for the newest step of which all cards have a checkpoint; or any card's checkpoint, by its name or
            its path, for its step (of a path, also the folder). Then it is enough that the cards whose folders can be
            seen from here have it: machines without a common disk see their own.
        folders: folders that hold `rank_<r>`, in the order in which to look; the first that has such a step is taken.
        card: the rank of this card.
        cards: of the run.

    Raises:
        UserError: there is no such step, it cannot be told which folder is meant, or this card's checkpoint of it
            cannot be read.
    """
    step = None
    if isinstance(wanted, str):
        step, folders = _named_step(Path(wanted), folders)
    found = {folder: _steps_of_ranks(folder, cards) for folder in {path.resolve(): path for path in folders}.values()}
    common = {folder: set.intersection(*map(set, ranks.values())) for folder, ranks in found.items() if ranks}
    steps = {folder: max(common[folder], default=None) if step is None else step for folder in common}
    whole = [folder for folder in common if len(found[folder]) == cards and steps[folder] in common[folder]]
    if not whole and step is not None:  # what other machines have cannot be seen
        whole = [folder for folder in common if any(step in files for files in found[folder].values())]
        if len(whole) > 1:
            raise UserError(
                f"resume_training: {' and '.join(map(str, whole))} both hold step {step} of some cards, and none of "
                f"all {cards}. Give the path of a checkpoint in the one that is meant."
            )
        whole = [folder for folder in whole if card in found[folder] and step in common[folder]]
    if not whole:
        raise UserError(_no_common_step(step, found, cards))
    folder = whole[0]
    return open_resume_point(found[folder][card][steps[folder]])


def _named_step(named: Path, folders: list[Path]) -> tuple[Step, list[Path]]:
    """The step that a card's checkpoint tells by its name, and where to look for those of all cards."""
    step = step_of(named)
    if step is None:
        raise UserError(
            f"resume_training: {named} does not end in -<epoch>_<step>.ckpt. Where a model is cut over cards the name "
            "tells the step, of which each card takes its own checkpoint."
        )
    if named.name == str(named):
        return step, folders
    if rank_of_file(named) is None:
        raise UserError(
            f"resume_training: {named} does not lie in a folder rank_<r>. Where a model is cut over cards each goes on "
            "from the checkpoint in its own; give the path of any of them."
        )
    return step, [named.absolute().parent.parent]


def _steps_of_ranks(folder: Path, cards: int) -> dict[int, dict[Step, Path]]:
    """The checkpoints of the ranks 0 to cards - 1 by step, as far as their folders are there."""
    return {rank: by_step(path) for rank, path in rank_folders(folder).items() if rank < cards}


def _no_common_step(step: Step | None, found: Mapping[Path, Mapping[int, Iterable[Step]]], cards: int) -> str:
    """The message: what was looked for, what each folder has, and what to do."""
    asked = "that all" if step is None else f"of step {step} (epoch_step) that all"
    have = [
        f"{folder} has {listed([f'rank_{rank}: {_steps(files)}' for rank, files in ranks.items()], 8) or 'no rank_<r>'}"
        for folder, ranks in found.items()
    ]
    way_out = ""
    if step is None and any(0 < len(ranks) < cards for ranks in found.values()):
        way_out = (
            " Where the machines have no common disk, each sees only the checkpoints of its own cards: name a step "
            "that all have (--resume_training <prefix>_rank_0-<epoch>_<step>.ckpt)."
        )
    return f"resume_training: there is no checkpoint {asked} {cards} cards have: {'; '.join(have)}.{way_out}"


def _steps(found: Iterable[Step]) -> str:
    return listed([str(step) for step in sorted(found)]) or "none"


def _newest_first(folders: list[Path]) -> Iterator[Path]:
    """All of the first folder that holds any."""
    for folder in folders:
        found = checkpoints_in(folder)
        if found:
            return reversed(found)
    return iter(())


def check_same_plan(point: ResumePoint, plan: Mapping[str, Any]) -> None:
    """Whether the run that is to go on is the one that was cut off.

    Raises:
        UserError: it is another; all differences are listed.
    """
    differences = [
        f"{name} was {point.plan.get(name, 'not set')} and is {plan.get(name, 'not set')}"
        for name in dict.fromkeys([*plan, *point.plan])
        if point.plan.get(name) != plan.get(name)
    ]
    if differences:
        raise UserError(
            f"{point.path} is of another run: {'; '.join(differences)}. To go on exactly, set them as they were; to "
            "start a new run from its weights, use --load_checkpoint without --resume_training."
        )


def restore_parameters(step: nn.Cell, point: ResumePoint) -> None:
    """Put every parameter of the training step back to what it was.

    Raises:
        UserError: the checkpoint is of another model, optimizer or layout; names and shapes are listed.
    """
    file = CheckpointFile(point.path)
    parameters = parameters_of_step(step)
    if step.parameter_layout_dict:
        # Cards draw masks with their own generator, and a step over micro-batches, from which slices that were cut anew
        # for a layout without may come, has no key.
        parameters = {name: p for name, p in parameters.items() if name != _CPU_KEY or name in file.entries}
    problems = [
        f"{name} {list(parameter.shape)}"
        + (f" is {list(file.entries[name].shape)} in the file" if name in file.entries else " is missing in the file")
        for name, parameter in parameters.items()
        if name not in file.entries or tuple(file.entries[name].shape) != tuple(parameter.shape)
    ]
    not_needed = (*COUNTERS, _CPU_KEY) if step.parameter_layout_dict else COUNTERS
    left_over = [name for name in file.entries if name not in parameters and name not in not_needed]
    problems += [f"{name} is in the file alone" for name in left_over]
    if problems:
        raise UserError(
            f"{point.path} is of another training step: "
            + "; ".join(problems[:5])
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            + ". Model, optimizer, loss scale and the layout on cards must be those of the run that wrote it."
        )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(file.read(name), parameter.dtype))


class StartAt(Callback):
    """Lets MindSpore's loop count from a step; it must come before all callbacks that ask for the step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def on_train_begin(self, run_context: RunContext) -> None:
        run_context.original_args().cur_step_num = self.step
