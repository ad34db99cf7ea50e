"""Evaluation during training, with early stopping."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mindspore.train import Callback, RunContext

from mindgpt.config.callback_sections import EvalCallBackSection
from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say
from mindgpt.train.best import BestCheckpoint, BestScore, deciding_metric
from mindgpt.train.progress import RunProgress
from mindgpt.train.run_log import RunLog


class EvaluationCallback(Callback):
    """Evaluates before training, at an interval of steps or epochs, and at the end; keeps the best weights; stops
    early.

    Args:
        evaluate: returns the metric's values, such as {"loss": .., "PPL": ..}.
        section: when to evaluate, the metric that decides, when to stop.
        progress: the length of the run.
        log: JSON-lines file of the results; see `RunLog`. A resumed run continues it.
        keep: saves the weights of the best score; None: they are not saved.
        report: called with step and values after every evaluation.

    Attributes:
        best: the best score so far.
        metric: the name of that score; None before the first evaluation.
        stopped_early: whether early stopping ended the run.

    Raises:
        UserError: the metric that the section names is not evaluated.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        section: EvalCallBackSection,
        progress: RunProgress,
        log: Path,
        keep: BestCheckpoint | None = None,
        report: Callable[[int, Mapping[str, float]], None] | None = None,
    ):
        super().__init__()
        self.evaluate = evaluate
        self.section = section
        self.progress = progress
        self.log = RunLog(log)
        self.keep = keep
        self.report = report
        self.metric: str | None = None
        self.best = BestScore(min_delta=section.min_delta, patience=section.early_stop_patience)
        self.stopped_early = False
        self._last_step: int | None = None  # that was evaluated
        self._restored = False

    def state(self) -> dict[str, float]:
        """The state for `restore`, as plain numbers; empty before the first evaluation."""
        if self._last_step is None:
            return {}
        return {"last_step": self._last_step, **self.best.state()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a `state`: for a resumed run, before it begins."""
        self._restored = True
        if self.keep is not None:
            self.keep.restore()
        if state:
            self._last_step = int(state["last_step"])
            self.best.restore(state)

    def on_train_begin(self, run_context: RunContext) -> None:
        step = run_context.original_args().cur_step_num
        if not self._restored:
            self.log.begin()
            self._run(step, run_context)
            return
        self.log.begin(after_step=-1 if self._last_step is None else self._last_step)
        if self.best.exhausted:
            raise UserError(
                f"this run was ended early at step {self._last_step}, after {self.best.waited} evaluations without a "
                "better score. To go on, raise early_stop_patience of the EvalCallBack, or set it to 0"
            )
        if step == 0 or self._due(step):  # the checkpoint of a step is written before its evaluation
            self._run(step, run_context)

    def on_train_step_end(self, run_context: RunContext) -> None:
        step = run_context.original_args().cur_step_num
        if self._due(step):
            self._run(step, run_context)

    def on_train_end(self, run_context: RunContext) -> None:
        self._run(run_context.original_args().cur_step_num, run_context)

    def close(self) -> None:
        """Close the log; also for a run that ended by an error."""
        self.log.close()

    def _due(self, step: int) -> bool:
        every_steps, every_epochs = self.section.eval_steps, self.section.eval_epochs
        if every_steps > 0 and step % every_steps == 0:
            return True
        return every_epochs > 0 and step % (every_epochs * self.progress.steps_per_epoch) == 0

    def _run(self, step: int, run_context: RunContext) -> None:
        if step == self._last_step:
            return
        values = self.evaluate()
        if self.metric is None:
            self.metric, self.best.greater_is_better = deciding_metric(
                values, self.section.metric, self.section.greater_is_better
            )
        self._last_step = step
        self.log.write({"step": step, **values})
        shown = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
        say(f"evaluation {when(step)}: {shown}")
        if self.report is not None:
            self.report(step, values)
        if self.best.update(step, values[self.metric]) and self.keep is not None:
            self.keep.save(step)
        if self.best.exhausted and step < self.progress.total_steps:
            self._stop(step, run_context)

    def _stop(self, step: int, run_context: RunContext) -> None:
        """Request the end of the run after this step, through the callbacks' `on_train_end`."""
        self.stopped_early = True
        run_context.request_stop()
        margin = f" by more than {self.section.min_delta:g}" if self.section.min_delta else ""
        best = "" if self.best.score is None else f"; the best was {self.best.score:.4f}, {when(self.best.step)}"
        say(
            f"stopped early after step {step}: {self.metric} was not better{margin} in {self.best.waited} evaluations "
            f"in a row{best}"
        )


def when(step: int) -> str:
    """ "after step 5", "before training"."""
    return f"after step {step}" if step else "before training"
