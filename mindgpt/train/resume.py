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

from mindgpt.config.errors import UserError
from mindgpt.models.checkpoint_file import CheckpointFile
from mindgpt.models.run_folder import Step, checkpoints_in, listed, rank_folders, step_of
from mindgpt.runtime.ranks import say
from mindgpt.train.checkpoints import COUNTERS, parameters_of_step

STATE = "training_state"


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
    looked = " or ".join(map(str, folders))
    if isinstance(wanted, str):
        for path in [Path(wanted), *(folder / wanted for folder in folders)]:
            if path.is_file():
                return open_resume_point(path)
        raise UserError(f"resume_training: there is no checkpoint {wanted}, neither by itself nor in {looked}.")
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
    raise UserError(
        f"resume_training: there is no checkpoint in {looked}. Give the output folder of the run with --output_dir, or "
        "the name of a checkpoint; to start a new run, leave --resume_training out."
    )


def find_resume_point_of_card(wanted: bool | str, folders: list[Path], card: int) -> ResumePoint:
    """As `find_resume_point`, for one card of a model that is cut over several: all must go on from the same step.

    That is the newest of which every card has a checkpoint, as far as their folders can be seen from here.

    Args:
        wanted: True, or the name of any card's checkpoint, whose step is meant.
        folders: folders that hold `rank_<r>`, in the order in which to look.
        card: the rank of this card.

    Raises:
        UserError: there is no such step, or this card's checkpoint of it cannot be read.
    """
    looked = " or ".join(map(str, folders))
    found = next((ranks for folder in folders if card in (ranks := rank_folders(folder))), None)
    if found is None:
        raise UserError(f"resume_training: there is no rank_{card} in {looked}; every card needs its own checkpoint.")
    by_card = {number: {step_of(file): file for file in checkpoints_in(folder)} for number, folder in found.items()}
    common = set.intersection(*(set(files) for files in by_card.values()))
    step = step_of(Path(wanted)) if isinstance(wanted, str) else max(common, default=None)
    if step not in common:
        asked = "that every card has" if step is None else f"of step {step} (epoch_step) that every card has"
        steps = "; ".join(f"rank_{number}: {_steps(files)}" for number, files in by_card.items())
        raise UserError(f"resume_training: there is no checkpoint {asked}, in {looked}. Found: {steps}.")
    return open_resume_point(by_card[card][step])


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
    problems = [
        f"{name} {list(parameter.shape)}"
        + (f" is {list(file.entries[name].shape)} in the file" if name in file.entries else " is missing in the file")
        for name, parameter in parameters.items()
        if name not in file.entries or tuple(file.entries[name].shape) != tuple(parameter.shape)
    ]
    left_over = [name for name in file.entries if name not in parameters and name not in COUNTERS]
    problems += [f"{name} is in the file alone" for name in left_over]
    if problems:
        raise UserError(
            f"{point.path} is of another training step: "
            + "; ".join(problems[:5])
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            + ". Model, optimizer and loss scale must be those of the run that wrote it."
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
