"""Checkpoints of a training run: when they are written, what is in them, how long they are kept."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mindspore import Parameter, nn
from mindspore.train import Callback, RunContext

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.run_folder import (
    checkpoints_in,
    files_of_last_run,
    free_stem,
    record_checkpoints,
    stem_of,
)
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.callback_sections import CheckpointMonitorSection
from mindgpt.io.files import make_folder
from mindgpt.train.progress import Progress

COUNTERS = ("epoch_num", "step_num")  # in a checkpoint beside the parameters, under MindFormers' names


class CheckpointMonitor(Callback):
    """Writes `<prefix>_rank_<r>-<epoch>_<step>.ckpt`, each whole or not at all, and deletes the oldest.

    `step` counts within the epoch, as MindFormers does it. With the weights go the optimizer's state, the loss scale
    and the counters; `config.json` lies beside them, so that `from_pretrained` opens any of them, and `meta.json`,
    which lists those of this run. Files of other runs are never replaced: where there are some, the names of this run
    are `<prefix>_rank_<r>_1-...`.

    Args:
        section: when to save and what to keep.
        progress: the plan of the run.
        output_dir: `<output_dir>/checkpoint/rank_<r>` unless the section names another folder.
        model: whose parameters are the weights.
        config: written beside the checkpoints.
        rank: the process's number.
        state: what else to write into the checkpoint of a step, so that the run can go on from it exactly.
        in_parts: each card writes a part of the model. Then one checkpoint more than `keep_checkpoint_max` is kept: a
            card that deleted its oldest part as soon as its newest is written would leave no whole model behind if the
            run broke off while others are still writing theirs.
    """

    def __init__(
        self,
        section: CheckpointMonitorSection,
        progress: Progress,
        output_dir: str | Path,
        model: nn.Cell,
        config: GPT2Config,
        rank: int = 0,
        state: Callable[[int], Mapping[str, str]] = lambda step: {},
        in_parts: bool = False,
    ):
        super().__init__()
        self.state = state
        self.section = section
        self.progress = progress
        self.model = model
        self.config = config
        self.rank = rank
        self.limit = section.keep_checkpoint_max and section.keep_checkpoint_max + in_parts  # 0: all are kept
        self.base = Path(section.directory or Path(output_dir) / "checkpoint")
        self.folder = self.base / f"rank_{rank}"
        self._stem = f"{section.prefix}_rank_{rank}"
        self._extra_folders = {
            kind: self.base.parent / f"checkpoint_{kind}" / f"rank_{rank}" for kind in ("network", "trainable")
        }
        self.written: list[Path] = []
        self._last_step = 0
        self._last_time = time.monotonic()

    def on_train_begin(self, run_context: RunContext) -> None:
        """Make the folder: one that cannot be written should stop the run now, not after hours of it."""
        make_folder(self.folder)
        self._last_step = run_context.original_args().cur_step_num
        if self._last_step:  # resumed: what the run had written before is among the files to keep or to delete
            self.written, self._stem = files_to_continue(self.folder, self._stem)
        else:
            self._stem = free_stem([self.folder, *self._extra_folders.values()], self._stem)

    def on_train_step_end(self, run_context: RunContext) -> None:
        step = run_context.original_args().cur_step_num
        every_steps, every_seconds = self.section.save_checkpoint_steps, self.section.save_checkpoint_seconds
        due = every_steps and step - self._last_step >= every_steps
        due = due or (every_seconds and time.monotonic() - self._last_time >= every_seconds)
        if due:
            self.save(run_context.original_args().train_network, step)

    def on_train_end(self, run_context: RunContext) -> None:
        """Save the end of the run, unless its last step was just saved."""
        state = run_context.original_args()
        if state.cur_step_num > self._last_step:
            self.save(state.train_network, state.cur_step_num)

    def save(self, train_step: nn.Cell, step: int) -> Path:
        """Write a checkpoint of all parameters of `train_step` after step number `step`. Returns its path."""
        epoch = self.progress.epoch(step)
        name = f"{self._stem}-{epoch}_{self.progress.step_in_epoch(step)}"
        path = self.folder / f"{name}.ckpt"
        self.config.save_pretrained(self.folder, type(self.model).__name__)
        counters = dict(zip(COUNTERS, (epoch, step), strict=True))
        parameters = parameters_of_step(train_step)
        save_checkpoint(path, {**parameters, **counters, **self.state(step)})
        of_model = self.model.parameters_dict()
        weights = {key: p for key, p in parameters.items() if key in of_model}
        self._save_extra("network", self.section.save_network_params, name, weights)
        trained = {key: p for key, p in weights.items() if p.requires_grad}
        self._save_extra("trainable", self.section.save_trainable_params, name, trained)
        self._last_step, self._last_time = step, time.monotonic()
        self._keep_the_last(path)
        return path

    def _save_extra(self, kind: str, wanted: bool, name: str, parameters: Mapping[str, Parameter]) -> None:
        """The weights without the optimizer's state, as MindFormers puts them beside the checkpoint folder."""
        if not wanted:
            return
        target = self._extra_folders[kind]
        self.config.save_pretrained(target, type(self.model).__name__)
        save_checkpoint(target / f"{name}-{kind}.ckpt", parameters)

    def _keep_the_last(self, path: Path) -> None:
        """Note what this run keeps, then delete the rest of what it has written: killed at any instant, the folder has
        a note of whole files."""
        written = [file for file in self.written if file != path] + [path]
        surplus = max(0, len(written) - self.limit) if self.limit else 0
        outdated, self.written = written[:surplus], written[surplus:]
        record_checkpoints(self.folder, self.written)
        for kind, folder in self._extra_folders.items():
            if kept := [file for one in self.written if (file := folder / f"{one.stem}-{kind}.ckpt").exists()]:
                record_checkpoints(folder, kept)
        for file in outdated:
            extra = (folder / f"{file.stem}-{kind}.ckpt" for kind, folder in self._extra_folders.items())
            for each in (file, *extra):
                each.unlink(missing_ok=True)


def files_to_continue(folder: Path, stem: str) -> tuple[list[Path], str]:
    """For a run that is resumed: the checkpoints that it has written into a folder, and how their names begin. Where
    nothing tells which these are, those whose names begin with `stem`."""
    if names := files_of_last_run(folder):
        files = [folder / name for name in names]
        return files, stem_of(files[-1]) or stem
    return [path for path in checkpoints_in(folder) if path.name.startswith(f"{stem}-")], stem


def parameters_of_step(step: nn.Cell) -> Mapping[str, Parameter]:
    """All parameters of a train step but the sums of unfinished gradient accumulation, which are zero here.

    Where the model is cut over cards: what this card holds, without the parameters of other pipeline stages.
    """
    here = step.parameter_layout_dict
    return {
        name: p
        for name, p in step.parameters_dict().items()
        if not name.startswith(("accu_grads.", "norm_shares")) and (not here or name in here or p.size == 1)
    }
