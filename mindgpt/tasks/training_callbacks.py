"""The callbacks of a training run, built from the list in the YAML, and what they report when it is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore.train import Callback

from mindgpt.config.callback_sections import (
    CheckpointMonitorSection,
    EvalCallBackSection,
    LossMonitorSection,
    SummaryMonitorSection,
)
from mindgpt.config.layout import holds_shards
from mindgpt.config.run_config import RunConfig
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.runtime.collectives import strategy
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.evaluate import Evaluator
from mindgpt.train.best import BestCheckpoint
from mindgpt.train.callbacks import LossMonitor, SkippedSteps, StepMeter
from mindgpt.train.checkpoint_monitor import CheckpointMonitor
from mindgpt.train.compilation_notice import CompilationNotice
from mindgpt.train.evaluation_callback import EvaluationCallback
from mindgpt.train.plot import PLOT_FILE, plot_finished_run
from mindgpt.train.progress import RunProgress
from mindgpt.train.resume import ResumePoint, StartAt, state_entry
from mindgpt.train.run_report import run_report
from mindgpt.train.summary import SummaryMonitor


class RunCallbacks:
    """Builds the callbacks of a run and holds them.

    Args:
        plan: values that must be equal when the run is resumed; saved in every checkpoint.

    Attributes:
        all: in the order in which they are called: the meter first, since the others read it; evaluation last, since
            it might fail and a checkpoint should not be lost by it.
        meter, checkpoints, evaluation: single ones; the last two may be None.
    """

    def __init__(
        self,
        config: RunConfig,
        progress: RunProgress,
        model: PretrainedCell,
        evaluator: Evaluator | None,
        tokens_per_step: int,
        plan: Mapping[str, Any],
    ):
        self.plan = plan
        self.output_dir = Path(config.output_dir)
        self.meter = StepMeter(progress, tokens_per_step)
        self.loss_monitor: LossMonitor | None = None
        self.checkpoints: CheckpointMonitor | None = None
        self.summary: SummaryMonitor | None = None
        self.evaluation: EvaluationCallback | None = None
        sections = {type(section): section for section in config.callbacks}  # one of a kind, as RunConfig checks
        evaluations = self.output_dir / "log" / "eval.jsonl"
        if section := sections.get(LossMonitorSection):
            self.loss_monitor = LossMonitor(
                self.meter,
                self.output_dir / "log" / "train.jsonl",
                section.per_print_times,
                outdated=None if EvalCallBackSection in sections else evaluations,
            )
        sharded = holds_shards(config, strategy())  # else all ranks hold the same weights, and rank 0 writes them
        if (section := sections.get(CheckpointMonitorSection)) and (rank() == 0 or sharded):
            self.checkpoints = CheckpointMonitor(
                section, progress, self.output_dir, model, model.config, rank(), self._state_entry, sharded
            )
        if (section := sections.get(SummaryMonitorSection)) and rank() == 0:
            folder = Path(section.summary_dir or self.output_dir / "tensorboard")
            self.summary = SummaryMonitor(self.meter, folder, section.collect_freq)
        if section := sections.get(EvalCallBackSection):
            self.evaluation = self._evaluation(section, progress, model, evaluator, evaluations)
        self.guard = SkippedSteps(self.meter, config.runner_wrapper.max_skipped_steps)
        wanted = [
            self.meter,
            CompilationNotice(already_announced=True),
            self.loss_monitor,
            self.checkpoints,
            self.summary,
            self.guard,
            self.evaluation,
        ]
        self.all: list[Callback] = [callback for callback in wanted if callback is not None]

    def resume(self, point: ResumePoint) -> None:
        """Restore the state of the callbacks at `point`, and the step count of the loop."""
        self.guard.restore(point.callbacks["skipped_steps"])
        if self.evaluation is not None:
            self.evaluation.restore(point.callbacks.get("evaluation", {}))
        self.all.insert(0, StartAt(point.step))

    def _state_entry(self, step: int) -> dict[str, str]:
        callbacks = {"skipped_steps": self.guard.state()}
        if self.evaluation is not None:
            callbacks["evaluation"] = self.evaluation.state()
        return state_entry(step, self.plan, callbacks)

    def _evaluation(
        self,
        section: EvalCallBackSection,
        progress: RunProgress,
        model: PretrainedCell,
        evaluator: Evaluator,
        log: Path,
    ) -> EvaluationCallback:
        keep = None
        if section.save_best and rank() == 0:
            monitor = self.checkpoints
            folder = self.output_dir if monitor is None else monitor.base.parent
            prefix = CheckpointMonitorSection().prefix if monitor is None else monitor.section.prefix
            keep = BestCheckpoint(folder, prefix, progress, model, model.config, rank())
        return EvaluationCallback(
            lambda: evaluator.run(model),
            section,
            progress,
            log,
            keep,
            None if self.summary is None else self.summary.on_evaluation_end,
        )

    def close(self) -> None:
        """Close all files; also called when a run ended by an error."""
        for callback in (self.checkpoints, self.loss_monitor, self.summary, self.evaluation):
            if callback is not None:
                callback.close()

    def say_interrupted(self) -> None:
        """Print how far an interrupted run came, and its last checkpoint."""
        step = self.meter.record.get("step")
        if step is None:
            say("interrupted before the first step was done")
            return
        checkpoint = self._files().get("checkpoint", "none was written")
        say(f"interrupted after step {step} of {self.meter.progress.total_steps}; last checkpoint: {checkpoint}")

    def close_with_table(self, config_file: Path, seconds: float) -> None:
        """Draw the plot and print the closing table of a run that took `seconds`."""
        files = self._files()
        if self.loss_monitor is not None and rank() == 0:
            files["plot"] = plot_finished_run(self.output_dir, self.output_dir / PLOT_FILE)
        files["configuration"] = config_file
        say(run_report(self.meter, self.evaluation, seconds, files))

    def _files(self) -> dict[str, object]:
        """The files that the run has written so far, by their names in the table."""
        files: dict[str, object] = {}
        if self.checkpoints is not None and self.checkpoints.written:
            files["checkpoint"] = self.checkpoints.written[-1]
        if self.evaluation is not None:
            if self.evaluation.keep is not None and self.evaluation.keep.written is not None:
                files["best checkpoint"] = self.evaluation.keep.written
            files["evaluations"] = self.evaluation.log.path
        if self.loss_monitor is not None:
            files["log"] = self.loss_monitor.log.path
        if self.summary is not None:
            files["TensorBoard"] = f"{self.summary.folder}  (tensorboard --logdir {self.summary.folder})"
        return files
