"""TensorBoard events: the numbers of the logs, for those who watch many runs in one browser window."""

import importlib.util
import math
import time
from collections.abc import Mapping
from pathlib import Path

from mindspore.train import Callback, RunContext

from mindgpt.config.errors import UserError
from mindgpt.data.files import make_folder
from mindgpt.train.callbacks import StepMeter

TRAIN_SCALARS = ("loss", "learning_rate", "grad_norm", "loss_scale", "tokens_per_second")
_FLUSH_SECONDS = 10  # what a kill may cost


def check_tensorboard() -> None:
    """Raise a UserError if the package that writes events is missing: before the minutes of building a model."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "callbacks: SummaryMonitor needs the package tensorboard, which is not installed: "
            'pip install "mindgpt[tensorboard]" (from a checkout: pip install ".[tensorboard]"), or take '
            "SummaryMonitor out of callbacks"
        )


class SummaryMonitor(Callback):
    """Writes the scalars `train/<name>` every so many steps and `eval/<name>` at evaluations, where they are finite.

    Events of an earlier run in the folder stay on the disk; TensorBoard shows this run's from its first step on.

    Args:
        meter: what measures the steps.
        folder: of the event files; made if it is missing.
        every: steps between two records.
    """

    def __init__(self, meter: StepMeter, folder: Path, every: int = 1):
        super().__init__()
        self.meter = meter
        self.folder = Path(folder)
        self.every = every
        self._writer = None

    def on_train_begin(self, run_context: RunContext) -> None:
        self._open(run_context.original_args().cur_step_num)

    def on_train_step_end(self, run_context: RunContext) -> None:
        record = self.meter.record
        if record["step"] % self.every == 0:
            self._add("train", record["step"], {name: record[name] for name in TRAIN_SCALARS})

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of an evaluation after `step`."""
        self._add("eval", step, values)

    def _open(self, step: int) -> None:
        """Begin a file with the mark by which TensorBoard drops what earlier files have after `step`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        make_folder(self.folder)
        self._writer = EventFileWriter(str(self.folder), flush_secs=_FLUSH_SECONDS)
        first = step + 1 if step else 0  # 0: the evaluation before training
        mark = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=first, wall_time=time.time(), session_log=mark))

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [
            Summary.Value(tag=f"{group}/{name}", simple_value=value)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=scalars)))

    def flush(self) -> None:
        """Write what is waiting to be written."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file; also for a run that ended by an error."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
