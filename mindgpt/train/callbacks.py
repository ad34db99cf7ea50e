"""Callbacks that measure and report steps, and stop a run whose numbers are not finite."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore.train import Callback, RunContext

from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say
from mindgpt.train.progress import RunProgress
from mindgpt.train.run_log import RunLog


class StepMeter(Callback):
    """Measures every step, for the callbacks that report it; it must be the first of them.

    Args:
        progress: the length of the run.
        tokens_per_step: tokens that all processes together predict in a step.

    Attributes:
        record: the last step: step, epoch, loss, learning rate, global gradient norm, loss scale, whether it was
        skipped
            (something was not finite, and nothing was updated), tokens per second. Empty before the first step.
        steps, skipped: number of steps of this process, and of those that were skipped.
        all_skipped: whether every step was skipped; False before the first.
        first_seconds: duration of the first step, including compilation.
    """

    def __init__(self, progress: RunProgress, tokens_per_step: int):
        super().__init__()
        self.progress = progress
        self.tokens_per_step = tokens_per_step
        self.record: dict[str, Any] = {}
        self.steps = self.skipped = self._reports = 0
        self.first_seconds = 0.0
        self._steady_seconds = 0.0
        self._steady_steps = 0
        self._last_step = 0
        self._before_step = 0.0

    def on_train_begin(self, run_context: RunContext) -> None:
        self._last_step = run_context.original_args().cur_step_num

    def on_train_step_begin(self, run_context: RunContext) -> None:
        self._before_step = time.monotonic()

    def on_train_step_end(self, run_context: RunContext) -> None:
        state = run_context.original_args()
        step = state.cur_step_num
        loss, skipped, scale, rate, norm = (value.asnumpy().item() for value in state.net_outputs)  # waits for the step
        seconds = time.monotonic() - self._before_step
        steps = step - self._last_step  # more than one in sink mode
        self._last_step = step
        if self.steps:
            self._steady_steps += steps
            self._steady_seconds += seconds
        else:
            self.first_seconds = seconds
        self.steps += steps
        self.skipped += skipped
        self._reports += 1
        self.record = {
            "step": step,
            "epoch": self.progress.epoch(step),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "loss_scale": scale,
            "skipped": skipped,
            "tokens_per_second": round(steps * self.tokens_per_step / seconds, 1),
        }

    @property
    def all_skipped(self) -> bool:
        return 0 < self._reports == self.skipped

    @property
    def tokens(self) -> int:
        """Tokens of all steps so far."""
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """Over all steps but the first, which compiles; without the time between steps."""
        return self._steady_steps * self.tokens_per_step / self._steady_seconds if self._steady_steps else None


class LossMonitor(Callback):
    """Prints a line at an interval of steps, with the time left, and logs the record of every step.

    Args:
        meter: measures the steps.
        log: the JSON-lines file; see `RunLog`. A resumed run continues it.
        every: steps between two lines on the console.
        outdated: see `RunLog`.
    """

    def __init__(self, meter: StepMeter, log: Path, every: int = 1, outdated: Path | None = None):
        super().__init__()
        self.meter = meter
        self.progress = meter.progress
        self.log = RunLog(log, outdated)
        self.every = every
        self._first_step: int | None = None
        self._after_first_step = 0.0

    def on_train_begin(self, run_context: RunContext) -> None:
        self.log.begin(run_context.original_args().cur_step_num or None)

    def on_train_step_end(self, run_context: RunContext) -> None:
        record = self.meter.record
        self.log.write(record)
        step, first = record["step"], self._first_step is None
        seconds_left = self._seconds_left(step)
        if first or record["skipped"] or step % self.every == 0 or step == self.progress.total_steps:
            say(self._line(record, first, seconds_left))

    def _seconds_left(self, step: int) -> float | None:
        """From the mean duration of all steps but the first, which compiles."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._after_first_step = step, now
            return None
        mean = (now - self._after_first_step) / (step - self._first_step)
        return mean * (self.progress.total_steps - step)

    def _line(self, record: dict[str, Any], first: bool, seconds_left: float | None) -> str:
        loss = f"{record['loss']:.4f}" if math.isfinite(record["loss"]) else "not finite"
        if record["skipped"]:
            loss += (
                f" ({non_finite_part(record)} not finite, step skipped)" if loss != "not finite" else ", step skipped"
            )
        norm = f"{record['grad_norm']:.3f}" if math.isfinite(record["grad_norm"]) else "not finite"
        scale = "" if record["loss_scale"] == 1.0 else f", scale {record['loss_scale']:g}"
        left = "" if seconds_left is None else f", {duration(seconds_left)} left"
        return (
            f"epoch {record['epoch']}/{self.progress.epochs}, step {record['step']}/{self.progress.total_steps}: "
            f"loss {loss}, lr {record['learning_rate']:.3e}, grad norm {norm}{scale}, "
            f"{record['tokens_per_second']:.0f} tokens/s{' (compiling included)' if first else ''}{left}"
        )

    def close(self) -> None:
        """Close the log; also for a run that ended by an error."""
        self.log.close()


class SkippedSteps(Callback):
    """Stops a run after too many consecutive steps whose loss or gradients were not finite.

    Args:
        meter: measures the steps.
        most_in_a_row: number of such steps that stops the run.

    Raises:
        UserError: after the last of these steps; it says where the run stopped and what to do.
    """

    def __init__(self, meter: StepMeter, most_in_a_row: int):
        super().__init__()
        self.meter = meter
        self.most_in_a_row = most_in_a_row
        self._in_a_row = 0

    def state(self) -> dict[str, int]:
        """The state for `restore`."""
        return {"in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue from a `state`."""
        self._in_a_row = int(state["in_a_row"])

    def on_train_step_end(self, run_context: RunContext) -> None:
        record, progress = self.meter.record, self.meter.progress
        if not record["skipped"]:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row < self.most_in_a_row:
            return
        step = record["step"]
        raise UserError(
            f"training stopped at step {step} (epoch {record['epoch']}, batch {progress.step_in_epoch(step)} of "
            f"{progress.steps_per_epoch}): loss or gradients were not finite in {self._in_a_row} steps in a row, last "
            f"the {non_finite_part(record)}, with loss {record['loss']} at loss scale {record['loss_scale']:g}. None "
            "of these steps changed the weights. Lower the learning rate, look at the data of these batches and at the "
            "weights the run began with, or, if the loss scale is still falling, raise "
            "runner_wrapper.max_skipped_steps."
        )


def non_finite_part(record: Mapping[str, Any]) -> str:
    """What was not finite in a skipped step: "loss", or "gradients" if the loss was finite."""
    return "gradients" if math.isfinite(record["loss"]) else "loss"


def duration(seconds: float) -> str:
    """ "1h 02m", "3m 20s" or "12s"."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
