"""The report at the end of a run: duration, speed, scores, and paths."""

from collections.abc import Mapping

from mindgpt.train.callbacks import StepMeter, duration, non_finite_part
from mindgpt.train.evaluation_callback import EvaluationCallback, when


def run_report(
    meter: StepMeter, evaluation: EvaluationCallback | None, seconds: float, files: Mapping[str, object]
) -> str:
    """The lines of the table, each a name and a value.

    Args:
        meter: measured the run's steps; at least one.
        evaluation: the run's evaluation; None: there was none.
        seconds: duration of the training: steps, evaluations, checkpoints.
        files: name -> path of a result.
    """
    last, total = meter.record, meter.progress.total_steps
    rows = {
        "steps": _steps(meter, evaluation is not None and evaluation.stopped_early),
        "time": f"{duration(seconds)} ({duration(meter.first_seconds)} for the first step, which compiles)",
        "tokens": f"{meter.tokens:,}",
        "tokens/s": _speed(meter),
        "loss": f"{last['loss']:.4f} (step {last['step']})",
    }
    if evaluation is not None and evaluation.best.score is not None:
        rows[f"best {evaluation.metric}"] = f"{evaluation.best.score:.4f} ({when(evaluation.best.step)})"
    if meter.skipped:
        rows["skipped"] = f"{meter.skipped} steps were not finite and changed nothing (last: {non_finite_part(last)})"
    rows |= {name: str(path) for name, path in files.items()}
    width = max(map(len, rows))
    heading = "training done" if last["step"] == total else "training ended"
    if meter.all_skipped:
        heading = "training ended, and the weights are those it began with"
    return "\n".join([f"{heading}:", *(f"  {name.ljust(width)}  {value}" for name, value in rows.items())])


def _steps(meter: StepMeter, stopped_early: bool) -> str:
    step, total = meter.record["step"], meter.progress.total_steps
    resumed = f", {meter.steps} of them now" if meter.steps != step else ""
    return f"{step} of {total}{resumed}{', stopped early' if stopped_early else ''}"


def _speed(meter: StepMeter) -> str:
    if meter.tokens_per_second is None:
        return "unknown: the only step compiled"
    return f"{meter.tokens_per_second:,.0f} (without the first step)"
