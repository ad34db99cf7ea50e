"""TensorBoard events with the numbers of the logs."""

import contextlib
import importlib.util
import itertools
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore.train import Callback, RunContext

from mindgpt.config.errors import UserError
from mindgpt.io.files import appending_to, make_folder
from mindgpt.train.callbacks import StepMeter

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

TRAIN_SCALARS = ("loss", "learning_rate", "grad_norm", "loss_scale", "tokens_per_second")


def check_tensorboard() -> None:
    """Raise a UserError if tensorboard is not installed, before a model is built."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "callbacks: SummaryMonitor needs the package tensorboard, which is not installed: "
            'pip install "mindgpt[tensorboard]" (from a checkout: pip install ".[tensorboard]"), or take '
            "SummaryMonitor out of callbacks"
        )


class SummaryMonitor(Callback):
    """Writes scalars `train/<name>` at an interval of steps and `eval/<name>` at evaluations, if they are finite.

    Events of an earlier run in the folder are kept; TensorBoard shows this run's from its first step on.

    Args:
        meter: measures the steps.
        folder: of the event files; created if it is missing.
        every: steps between two records.
    """

    def __init__(self, meter: StepMeter, folder: Path, every: int = 1):
        super().__init__()
        self.meter = meter
        self.folder = Path(folder)
        self.every = every
        self._path = self.folder
        self._file = None

    def on_train_begin(self, run_context: RunContext) -> None:
        self._open(run_context.original_args().cur_step_num)

    def on_train_step_end(self, run_context: RunContext) -> None:
        record = self.meter.record
        if record["step"] % self.every == 0:
            self._add("train", record["step"], {name: record[name] for name in TRAIN_SCALARS})

    def on_evaluation_end(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of an evaluation after `step`."""
        self._add("eval", step, values)

    def _open(self, step: int) -> None:
        """Begin a file with the event that makes TensorBoard drop later steps of earlier files."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        make_folder(self.folder)
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        paths = (self.folder / f"{name}.{number}" for number in itertools.count())
        self._path = next(path for path in paths if not path.exists())
        with appending_to(self._path):
            self._file = open(self._path, "xb")  # noqa: SIM115 (closed by `close`)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        first = step + 1 if step else 0  # 0: the evaluation before training
        mark = SessionLog(status=SessionLog.START)
        self._write(Event(step=first, wall_time=time.time(), session_log=mark))

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._write(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))

    def _write(self, event: "Event") -> None:
        """Write an event unbuffered. TensorBoard's own writer works in a thread, which would die with a traceback on a
        full disk while training continues."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        with appending_to(self._path):
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file, also after an error, such as a failed write."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing retries a failed write
                self._file.close()
            self._file = None
