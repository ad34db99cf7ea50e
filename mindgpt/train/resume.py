"""Exact resume: an interrupted run continues from a checkpoint as if it had not stopped.

A run's checkpoint holds all parameters of the training step (weights, optimizer state, loss scale, counters, and the
dropout key) and, as `training_state`, a JSON object with the rest: the plan of the run, and the state of its callbacks.
The order of the data follows from seed and step.
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
from mindgpt.checkpoints.skip_rules import MASTER
from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say
from mindgpt.train.checkpoint_monitor import COUNTERS, parameters_of_step

STATE = "training_state"
_FORMER_PREFIXES = {"adafactor_row.": "exp_avg_sq_row_", "adafactor_col.": "exp_avg_sq_col_"}
_CPU_KEY = "dropout_key"  # determines the dropout masks on CPU


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run resumes.

    Attributes:
        path: the checkpoint.
        step: number of completed steps.
        plan: settings and data of the run, which must be the same when it resumes.
        callbacks: state of the callbacks.
    """

    path: Path
    step: int
    plan: Mapping[str, Any]
    callbacks: Mapping[str, Any] = field(default_factory=dict)


def state_entry(step: int, plan: Mapping[str, Any], callbacks: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint entry that `open_resume_point` reads."""
    return {STATE: json.dumps({"step": step, "plan": plan, "callbacks": callbacks})}


def open_resume_point(path: Path) -> ResumePoint:
    """Open a checkpoint to resume from.

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
        wanted: True for the newest that can be read, or the name of one in `folders`, or a path.
        folders: a run's folders `checkpoint/rank_<r>`, in search order.

    Raises:
        UserError: there is none, or the named one cannot be resumed from.
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
            say(f"resume_training: skipped: {failure}")
        return point
    if failures:
        raise UserError(f"resume_training: none of the checkpoints can be resumed from. The newest: {failures[0]}")
    looked = " or ".join(map(str, folders))
    raise UserError(
        f"resume_training: there is no checkpoint in {looked}. Give the output folder of the run with --output_dir, or "
        "the name of a checkpoint; to start a new run, leave --resume_training out."
    )


def find_resume_point_of_rank(wanted: bool | str, folders: list[Path], rank: int, ranks: int) -> ResumePoint:
    """As `find_resume_point`, for one rank of a sharded model: all ranks must resume from the same step of the same
    folder.

    The choice does not depend on `rank`, so ranks that see the same files agree. Folders of further ranks, which a
    larger run has left, are ignored.

    Args:
        wanted: True for the newest step of which all ranks have a checkpoint; or the name or path of any rank's
            checkpoint, for its step (a path also gives the folder). Then it suffices that the visible ranks have that
            step: machines without a shared disk see only their own.
        folders: folders that hold `rank_<r>`, in search order; the first with such a step is used.
        rank: of this process.
        ranks: of the run.

    Raises:
        UserError: there is no such step, the folder is ambiguous, or this rank's checkpoint cannot be read.
    """
    step = None
    if isinstance(wanted, str):
        step, folders = _named_step(Path(wanted), folders)
    found = {folder: _steps_of_ranks(folder, ranks) for folder in {path.resolve(): path for path in folders}.values()}
    common = {folder: set.intersection(*map(set, by_rank.values())) for folder, by_rank in found.items() if by_rank}
    steps = {folder: max(common[folder], default=None) if step is None else step for folder in common}
    complete = [folder for folder in common if len(found[folder]) == ranks and steps[folder] in common[folder]]
    if not complete and step is not None:  # other machines' folders may be invisible
        complete = [folder for folder in common if any(step in files for files in found[folder].values())]
        if len(complete) > 1:
            raise UserError(
                f"resume_training: {' and '.join(map(str, complete))} both hold step {step} of some cards, and none of "
                f"all {ranks}. Give the path of a checkpoint in the one that is meant."
            )
        complete = [folder for folder in complete if rank in found[folder] and step in common[folder]]
    if not complete:
        raise UserError(_no_common_step(step, found, ranks))
    folder = complete[0]
    return open_resume_point(found[folder][rank][steps[folder]])


def _named_step(named: Path, folders: list[Path]) -> tuple[Step, list[Path]]:
    """The step in the name of a rank's checkpoint, and the folders in which to look for those of all ranks."""
    step = step_of(named)
    if step is None:
        raise UserError(
            f"resume_training: {named} does not end in -<epoch>_<step>.ckpt. For a sharded model the name tells the "
            "step, of which each card loads its own checkpoint."
        )
    if named.name == str(named):
        return step, folders
    if rank_of_file(named) is None:
        raise UserError(
            f"resume_training: {named} does not lie in a folder rank_<r>. For a sharded model each card resumes from "
            "the checkpoint in its own folder; give the path of any of them."
        )
    return step, [named.absolute().parent.parent]


def _steps_of_ranks(folder: Path, ranks: int) -> dict[int, dict[Step, Path]]:
    """Rank -> step -> checkpoint, for the ranks below `ranks` whose folders exist."""
    return {rank: by_step(path) for rank, path in rank_folders(folder).items() if rank < ranks}


def _no_common_step(step: Step | None, found: Mapping[Path, Mapping[int, Iterable[Step]]], cards: int) -> str:
    """The error message: the step, what each folder has, and what to do."""
    asked = "that all" if step is None else f"of step {step} (epoch_step) that all"
    have = [
        f"{folder} has {listed([f'rank_{rank}: {_steps(files)}' for rank, files in ranks.items()], 8) or 'no rank_<r>'}"
        for folder, ranks in found.items()
    ]
    way_out = ""
    if step is None and any(0 < len(ranks) < cards for ranks in found.values()):
        way_out = (
            " Machines without a shared disk see only the checkpoints of their own cards: name a step "
            "that all have (--resume_training <prefix>_rank_0-<epoch>_<step>.ckpt)."
        )
    return f"resume_training: there is no checkpoint {asked} {cards} cards have: {'; '.join(have)}.{way_out}"


def _steps(found: Iterable[Step]) -> str:
    return listed([str(step) for step in sorted(found)]) or "none"


def _newest_first(folders: list[Path]) -> Iterator[Path]:
    """The checkpoints of the first folder that has any, the newest first."""
    for folder in folders:
        found = checkpoints_in(folder)
        if found:
            return reversed(found)
    return iter(())


def check_same_plan(point: ResumePoint, plan: Mapping[str, Any]) -> None:
    """Check that a run resumes with the plan that it began with.

    Raises:
        UserError: the plans differ; all differences are listed.
    """
    differences = [
        f"{name} was {point.plan.get(name, 'not set')} and is {plan.get(name, 'not set')}"
        for name in dict.fromkeys([*plan, *point.plan])
        if point.plan.get(name) != plan.get(name)
    ]
    if differences:
        raise UserError(
            f"{point.path} is of another run: {'; '.join(differences)}. To resume exactly, set them as they were; to "
            "start a new run from its weights, use --load_checkpoint without --resume_training."
        )


def restore_parameters(step: nn.Cell, point: ResumePoint) -> None:
    """Load every parameter of the training step from the checkpoint.

    The master copies of half-precision weights start from the weights if the checkpoint has none, and a weight that is
    now float32 is restored from the master that the checkpoint has of it.

    Raises:
        UserError: the checkpoint is of another model, optimizer or layout; names and shapes are listed.
    """
    file = CheckpointFile(point.path)
    held = {_today(name): name for name in file.entries}
    parameters = parameters_of_step(step)
    from_weights = [name for name in parameters if name.startswith(MASTER) and name not in held]
    held |= {name: held[of] for name in from_weights if (of := name.removeprefix(MASTER)) in held}
    from_masters = [name for name in held if name.startswith(MASTER) and name not in parameters]
    for name in from_masters:
        if (of := name.removeprefix(MASTER)) in parameters:
            held[of] = held.pop(name)
    entries = {name: file.entries[stored] for name, stored in held.items()}
    if step.parameter_layout_dict:
        # Ascend has its own generator of dropout masks. A step over micro-batches has no key, and its checkpoint may
        # have been resharded for a layout without micro-batches.
        parameters = {name: p for name, p in parameters.items() if name != _CPU_KEY or name in entries}
    problems = [
        f"{name} {list(parameter.shape)}"
        + (f" is {list(entries[name].shape)} in the file" if name in entries else " is missing in the file")
        for name, parameter in parameters.items()
        if name not in entries or tuple(entries[name].shape) != tuple(parameter.shape)
    ]
    not_needed = (*COUNTERS, _CPU_KEY) if step.parameter_layout_dict else COUNTERS
    left_over = [name for name in entries if name not in parameters and name not in not_needed]
    problems += [f"{name} is in the file alone" for name in left_over]
    if problems:
        raise UserError(
            f"{point.path} is of another training step: "
            + listed(problems, separator="; ")
            + ". Model, optimizer, loss scale and the layout on cards must be those of the run that wrote it."
        )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(file.read(held[name]), parameter.dtype))
    if from_weights:
        say(f"note: {point.path} has no float32 master copies of {len(from_weights)} weights: they start from these")


def _today(name: str) -> str:
    """The name that a parameter of a step has today; some of AdaFactor's state had other ones."""
    for former, today in _FORMER_PREFIXES.items():
        if name.startswith(former):
            return today + name.removeprefix(former)
    return name


class StartAt(Callback):
    """Makes MindSpore's loop count from a step. It must come before all callbacks that use the step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def on_train_begin(self, run_context: RunContext) -> None:
        run_context.original_args().cur_step_num = self.step
