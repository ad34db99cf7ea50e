"""What happens between steps: reporting, stopping on bad numbers, evaluating."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspore.train import Callback, RunContext

from mindgpt.config.errors import UserError
from mindgpt.data.files import make_folder
from mindgpt.runtime.ranks import say
from mindgpt.train.progress import Progress


class LossMonitor(Callback):
    """A line every so many steps, and a JSON object in `log` for every step.

    Both hold step, epoch, loss, learning rate, global gradient norm, loss scale and tokens per second; the line also
    the time left. A number that is not finite is `null` in the file; a step that changed nothing has `"skipped": true`.

    Args:
        progress: the plan of the run.
        log: the JSON-lines file; its folder is made, and an older file of that name replaced after the first step.
        tokens_per_step: tokens that all processes together predict in a step.
        every: steps between two lines on the console.
    """

    def __init__(self, progress: Progress, log: Path, tokens_per_step: int, every: int = 1):
        super().__init__()
        self.progress = progress
        self.log = Path(log)
        self.tokens_per_step = tokens_per_step
        self.every = every
        self._file = None
        self._first_step: int | None = None
        self._after_first_step = self._before_step = 0.0

    def on_train_begin(self, run_context: RunContext) -> None:
        make_folder(self.log.parent)

    def on_train_step_begin(self, run_context: RunContext) -> None:
        self._before_step = time.monotonic()

    def on_train_step_end(self, run_context: RunContext) -> None:
        step = run_context.original_args().cur_step_num
        loss, skipped, scale, rate, norm = (value.asnumpy().item() for value in run_context.original_args().net_outputs)
        now = time.monotonic()
        record = {
            "step": step,
            "epoch": self.progress.epoch(step),
            "loss": loss if math.isfinite(loss) else None,
            "learning_rate": rate,
            "grad_norm": norm if math.isfinite(norm) else None,
            "loss_scale": scale,
            "skipped": skipped,
            "tokens_per_second": round(self.tokens_per_step / (now - self._before_step), 1),
        }
        if self._file is None:
            self._file = open(self.log, "w", encoding="utf-8")  # noqa: SIM115 (closed at the end of training)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        first = self._first_step is None
        seconds_left = self._seconds_left(step, now)
        if first or skipped or step % self.every == 0 or step == self.progress.total_steps:
            say(self._line(record, first, seconds_left))

    def _seconds_left(self, step: int, now: float) -> float | None:
        """From the mean of all steps of this run but the first, which compiles."""
        if self._first_step is None:
            self._first_step, self._after_first_step = step, now
            return None
        mean = (now - self._after_first_step) / (step - self._first_step)
        return mean * (self.progress.total_steps - step)

    def _line(self, record: dict[str, Any], first: bool, seconds_left: float | None) -> str:
        loss = "not finite, step skipped" if record["skipped"] else f"{record['loss']:.4f}"
        norm = "not finite" if record["grad_norm"] is None else f"{record['grad_norm']:.3f}"
        scale = "" if record["loss_scale"] == 1.0 else f", scale {record['loss_scale']:g}"
        left = "" if seconds_left is None else f", {_duration(seconds_left)} left"
        return (
            f"epoch {record['epoch']}/{self.progress.epochs}, step {record['step']}/{self.progress.total_steps}: "
            f"loss {loss}, lr {record['learning_rate']:.3e}, grad norm {norm}{scale}, "
            f"{record['tokens_per_second']:.0f} tokens/s{' (compiling included)' if first else ''}{left}"
        )

    def on_train_end(self, run_context: RunContext) -> None:
        self.close()

    def close(self) -> None:
        """Close the log; also for a run that ended by an error."""
        if self._file is not None:
            self._file.close()
            self._file = None


class SkippedSteps(Callback):
    """Counts the steps whose loss or gradients were not finite, and ends a run that has too many of them in a row.

    Args:
        progress: the plan of the run.
        most_in_a_row: that many end the run.

    Raises:
        UserError: after the last of these steps; it says where the run stopped and what to do.
    """

    def __init__(self, progress: Progress, most_in_a_row: int):
        super().__init__()
        self.progress = progress
        self.most_in_a_row = most_in_a_row
        self.count = 0
        self._in_a_row = 0

    def on_train_step_end(self, run_context: RunContext) -> None:
        state = run_context.original_args()
        loss, skipped, scale, _, _ = state.net_outputs
        if not skipped.asnumpy().item():
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        if self._in_a_row < self.most_in_a_row:
            return
        step = state.cur_step_num
        raise UserError(
            f"training stopped at step {step} (epoch {self.progress.epoch(step)}, batch "
            f"{self.progress.step_in_epoch(step)} of {self.progress.steps_per_epoch}): loss or gradients were not "
            f"finite in {self._in_a_row} steps in a row, last with loss {loss.asnumpy().item()} at loss scale "
            f"{scale.asnumpy().item():g}. None of these steps changed the weights. Lower the learning rate, look at "
            "the data of these batches and at the weights the run began with, or, if the loss scale is still falling, "
            "raise runner_wrapper.max_skipped_steps."
        )


class EvaluationCallback(Callback):
    """Evaluates before training, every so many steps or epochs, and at the end.

    Args:
        evaluate: returns the metric's values, such as {"loss": .., "PPL": ..}.
        progress: the plan of the run.
        every_steps, every_epochs: -1 means never by that measure.
        log: JSON-lines file of the results; an older file of that name is replaced by the first one.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        progress: Progress,
        every_steps: int,
        every_epochs: int,
        log: Path,
    ):
        super().__init__()
        self.progress = progress
        self.evaluate = evaluate
        self.every_steps = every_steps
        self.every_epochs = every_epochs
        self.log = Path(log)
        self.results: list[dict[str, float]] = []
        self._last_step: int | None = None

    def on_train_begin(self, run_context: RunContext) -> None:
        make_folder(self.log.parent)
        self._run(run_context.original_args().cur_step_num)

    def on_train_step_end(self, run_context: RunContext) -> None:
        step = run_context.original_args().cur_step_num
        due = self.every_steps > 0 and step % self.every_steps == 0
        if self.every_epochs > 0:
            due = due or step % (self.every_epochs * self.progress.steps_per_epoch) == 0
        if due:
            self._run(step)

    def on_train_end(self, run_context: RunContext) -> None:
        self._run(run_context.original_args().cur_step_num)

    def _run(self, step: int) -> None:
        if step == self._last_step:
            return
        self._last_step = step
        values = self.evaluate()
        self.results.append({"step": step, **values})
        with open(self.log, "w" if len(self.results) == 1 else "a", encoding="utf-8") as file:
            file.write(json.dumps(self.results[-1]) + "\n")
        shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
        say(f"evaluation {f'after step {step}' if step else 'before training'}: {shown}")


def _duration(seconds: float) -> str:
    """ "1h 02m", "3m 20s" or "12s"."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
