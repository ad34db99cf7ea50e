"""What happens between steps: reporting, stopping on bad numbers, evaluating."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspore.train import Callback, RunContext

from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say
from mindgpt.train.progress import Progress


class LossMonitor(Callback):
    """A line every so many steps, and a JSON object in `log` for every step.

    Both hold step, epoch, loss, learning rate, global gradient norm, loss scale, tokens per second and the time left. A
    loss that is not finite is `null` in the file, with `"skipped": true`. After `max_skipped_steps` steps in a row that
    were not finite the run ends with a `UserError` that says where.

    Args:
        progress: the plan of the run.
        log: the JSON-lines file; its folder is made and an older file of that name replaced.
        tokens_per_step: tokens that all processes together predict in a step.
        every: steps between two lines on the console.
        max_skipped_steps: see above.
    """

    def __init__(
        self, progress: Progress, log: Path, tokens_per_step: int, every: int = 1, max_skipped_steps: int = 20
    ):
        super().__init__()
        self.progress = progress
        self.log = Path(log)
        self.tokens_per_step = tokens_per_step
        self.every = every
        self.max_skipped_steps = max_skipped_steps
        self.losses: list[float] = []
        self._file = None
        self._skipped = 0
        self._first_step: int | None = None
        self._after_first_step = self._before_step = 0.0

    def on_train_begin(self, run_context: RunContext) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.log, "w", encoding="utf-8")  # noqa: SIM115 (closed at the end of training)

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
        self.losses.append(loss)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        first = self._first_step is None
        seconds_left = self._seconds_left(step, now)
        if first or skipped or step % self.every == 0 or step == self.progress.total_steps:
            say(self._line(record, first, seconds_left))
        self._stop_if_hopeless(record)

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

    def _stop_if_hopeless(self, record: dict[str, Any]) -> None:
        self._skipped = self._skipped + 1 if record["skipped"] else 0
        if self._skipped < self.max_skipped_steps:
            return
        step = record["step"]
        raise UserError(
            f"training stopped at step {step} (epoch {record['epoch']}, batch {self.progress.step_in_epoch(step)} of "
            f"{self.progress.steps_per_epoch}): loss or gradients were not finite in {self._skipped} steps in a row, "
            f"last with loss {self.losses[-1]} at loss scale {record['loss_scale']:g}. None of these steps changed the "
            "weights. Lower the learning rate, look at the data of these batches, or, if the loss scale is still "
            "falling, raise runner_wrapper.max_skipped_steps."
        )

    def on_train_end(self, run_context: RunContext) -> None:
        self.close()

    def close(self) -> None:
        """Close the log; also for a run that ended by an error."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EvaluationCallback(Callback):
    """Evaluates during training, every so many steps or epochs, and at the end.

    Args:
        evaluate: returns the metric's values, such as {"loss": .., "PPL": ..}.
        progress: the plan of the run.
        every_steps, every_epochs: -1 means never by that measure.
        log: JSON-lines file that every result is added to.
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
        self._last_step = 0

    def on_train_begin(self, run_context: RunContext) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

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
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.results[-1]) + "\n")
        shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
        say(f"evaluation after step {step}: {shown}")


def _duration(seconds: float) -> str:
    """ "1h 02m", "3m 20s" or "12s"."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
