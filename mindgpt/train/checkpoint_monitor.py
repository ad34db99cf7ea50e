"""Checkpoints of a training run: when they are written, what they contain, how many are kept."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
from mindgpt.checkpoints.weights import save_checkpoint, storable
from mindgpt.config.callback_sections import CheckpointMonitorSection
from mindgpt.io.files import make_folder
from mindgpt.runtime.ranks import say
from mindgpt.train.background_job import BackgroundJob
from mindgpt.train.progress import RunProgress

COUNTERS = ("epoch_num", "step_num")  # in a checkpoint beside the parameters, under MindFormers' names


class CheckpointMonitor(Callback):
    """Writes `<prefix>_rank_<r>-<epoch>_<step>.ckpt` atomically, and deletes the oldest checkpoints.

    `step` counts within the epoch, as in MindFormers. A checkpoint holds weights, optimizer state, loss scale and
    counters. Beside it lie `config.json`, so that `from_pretrained` opens it, and `meta.json`, which lists the
    checkpoints of this run. Files of other runs are never replaced: if there are any, this run's names are
    `<prefix>_rank_<r>_1-...`.

    With `async_save` all values are copied into the memory of the host and written by a thread, while training goes on;
    the files are the same. A save waits for the one before, whose error it raises; the end of the training waits for
    the last.

    Args:
        section: when to save and what to keep.
        progress: the length of the run.
        output_dir: `<output_dir>/checkpoint/rank_<r>` unless the section names another folder.
        model: its parameters are the weights.
        config: written beside the checkpoints.
        rank: of this process.
        state: further entries of a step's checkpoint, from which the run resumes exactly.
        is_sharded: each rank writes a shard of the model. Then one checkpoint more than `keep_checkpoint_max` is kept:
            if a run breaks off while some ranks still write the newest, all ranks must still have an older one. With
            `async_save` it is two, since some ranks may then write the newest and others the one before.
    """

    def __init__(
        self,
        section: CheckpointMonitorSection,
        progress: RunProgress,
        output_dir: str | Path,
        model: nn.Cell,
        config: GPT2Config,
        rank: int = 0,
        state: Callable[[int], Mapping[str, str]] = lambda step: {},
        is_sharded: bool = False,
    ):
        super().__init__()
        self.state = state
        self.section = section
        self.progress = progress
        self.model = model
        self.config = config
        self.rank = rank
        spare = is_sharded * (2 if section.async_save else 1)
        self.limit = section.keep_checkpoint_max and section.keep_checkpoint_max + spare  # 0: all are kept
        self.base = Path(section.directory or Path(output_dir) / "checkpoint")
        self.folder = self.base / f"rank_{rank}"
        self._stem = f"{section.prefix}_rank_{rank}"
        self._extra_folders = {
            kind: self.base.parent / f"checkpoint_{kind}" / f"rank_{rank}" for kind in ("network", "trainable")
        }
        self.written: list[Path] = []
        self._background = BackgroundJob()
        self._last_step = 0
        self._last_time = time.monotonic()

    def on_train_begin(self, run_context: RunContext) -> None:
        """Create the folder, so that a run that cannot write it stops now, not after hours."""
        make_folder(self.folder)
        self._last_step = run_context.original_args().cur_step_num
        if self._last_step:  # resumed: earlier checkpoints of this run count, too
            self.written, self._stem = files_to_continue(self.folder, self._stem)
        else:
            self._stem = free_stem([self.folder, *self._extra_folders.values()], self._stem)

    def on_train_step_end(self, run_context: RunContext) -> None:
        self._background.check()
        step = run_context.original_args().cur_step_num
        every_steps, every_seconds = self.section.save_checkpoint_steps, self.section.save_checkpoint_seconds
        due = every_steps and step - self._last_step >= every_steps
        due = due or (every_seconds and time.monotonic() - self._last_time >= every_seconds)
        if due:
            self._save(run_context.original_args().train_network, step)

    def on_train_end(self, run_context: RunContext) -> None:
        """Save the last step, unless it has just been saved. Returns when everything is written."""
        state = run_context.original_args()
        if state.cur_step_num > self._last_step:
            self._save(state.train_network, state.cur_step_num)
        self._background.wait()

    def close(self) -> None:
        """Wait for the last save of a run that ended by an error, beside which an error of the save is only a line."""
        try:
            self._background.wait()
        except Exception as error:
            say(f"the last checkpoint was not written: {error}")

    def save(self, train_step: nn.Cell, step: int) -> Path:
        """Write a checkpoint of all parameters of `train_step` after step number `step`. Returns its path."""
        path = self._save(train_step, step)
        self._background.wait()
        return path

    def _save(self, train_step: nn.Cell, step: int) -> Path:
        """As `save`; with `async_save` it returns when the values are copied."""
        self._background.wait()  # before the copies, so that there is one set of them
        epoch = self.progress.epoch(step)
        name = f"{self._stem}-{epoch}_{self.progress.step_in_epoch(step)}"
        values = {**parameters_of_step(train_step), **dict(zip(COUNTERS, (epoch, step), strict=True))}
        values |= self.state(step)
        of_model = self.model.parameters_dict()
        extra = {
            "network": self.section.save_network_params and list(of_model),
            "trainable": self.section.save_trainable_params and [k for k, p in of_model.items() if p.requires_grad],
        }
        if self.section.async_save:
            copies = {key: copied(value) for key, value in values.items()}
            self._background.start(lambda: self._write(name, copies, extra))
        else:
            self._write(name, values, extra)
        self._last_step, self._last_time = step, time.monotonic()
        return self.folder / f"{name}.ckpt"

    def _write(self, name: str, values: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Write the files of a step. extra: the names of the weights that are also written without optimizer state, in
        MindFormers' folders beside `checkpoint`; False: none."""
        path = self.folder / f"{name}.ckpt"
        self._save_config(self.folder)
        save_checkpoint(path, values)
        for kind, names in extra.items():
            if names:
                target = self._extra_folders[kind]
                self._save_config(target)
                save_checkpoint(target / f"{name}-{kind}.ckpt", {key: values[key] for key in names if key in values})
        self._keep_the_last(path)

    def _save_config(self, folder: Path) -> None:
        self.config.save_pretrained(folder, type(self.model).__name__)

    def _keep_the_last(self, path: Path) -> None:
        """Record the checkpoints to keep, then delete the older ones: `meta.json` never lists a missing file."""
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
    """For a resumed run: its checkpoints in a folder and their stem, by `meta.json`, or else by `stem`."""
    if names := files_of_last_run(folder):
        files = [folder / name for name in names]
        return files, stem_of(files[-1]) or stem
    return [path for path in checkpoints_in(folder) if path.name.startswith(f"{stem}-")], stem


def copied(value: Any) -> Any:
    """A copy of a checkpoint's entry, which later steps do not change; on a CPU, `asnumpy` shares memory."""
    return np.array(storable(value)) if isinstance(value, Parameter) else value


def parameters_of_step(step: nn.Cell) -> Mapping[str, Parameter]:
    """All parameters of a train step but the gradient sums, which are zero after a step.

    For a sharded model, this rank's shards, without parameters of other pipeline stages.
    """
    here = step.parameter_layout_dict
    return {
        name: p
        for name, p in step.parameters_dict().items()
        if not name.startswith(("accu_grads.", "norm_shares")) and (not here or name in here or p.size == 1)
    }
