"""Learning-rate schedules: tables of the learning rate at every step, computed in float64 before training.

`s` counts updates of the weights from 0, `w` is the number of warm-up steps, `p = (s - w) / (total - w)` the progress
after it, in [0, 1]. The first five formulas are those of transformers' `optimization.py`, with `lr_end` instead of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.config.errors import UserError
from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection


@dataclass(frozen=True)
class _Steps:
    """The steps of a run: the number `s` of each step, at most `total`, and the length of the warm-up."""

    s: np.ndarray  # (steps,) float64
    warmup: int
    total: int

    def progress(self, start: int) -> np.ndarray:
        """The progress from step `start` to the end, in [0, 1]."""
        return np.clip((self.s - start) / max(1, self.total - start), 0.0, 1.0)


def _cosine(steps: _Steps, section: LRScheduleSection) -> np.ndarray:
    angle = 2.0 * np.pi * section.num_cycles * steps.progress(steps.warmup)
    return np.maximum(0.0, 0.5 * (1.0 + np.cos(angle)))


def _cosine_with_restarts(steps: _Steps, section: LRScheduleSection) -> np.ndarray:
    p = steps.progress(steps.warmup)
    return np.where(p >= 1.0, 0.0, 0.5 * (1.0 + np.cos(np.pi * ((section.num_cycles * p) % 1.0))))


def _inverse_sqrt(steps: _Steps, section: LRScheduleSection) -> np.ndarray:
    """sqrt(timescale / (s - w + timescale)); with the default timescale w that is sqrt(w / s), as in fairseq."""
    timescale = section.timescale or steps.warmup or 10_000
    return np.sqrt(timescale / (np.maximum(steps.s - steps.warmup, 0.0) + timescale))


def _constant_with_cooldown(steps: _Steps, section: LRScheduleSection) -> np.ndarray:
    """1, then linear to 0 over the last steps of the run (Hägele et al. 2024)."""
    ratio = section.decay_start_ratio
    start = section.decay_start_steps if ratio is None else int(ratio * steps.total)
    if steps.warmup < steps.total and not steps.warmup <= start <= steps.total:
        raise UserError(
            f"lr_schedule: the cool-down would begin at step {start}, but the warm-up ends at {steps.warmup} and the "
            f"run at {steps.total}. Set decay_start_steps or decay_start_ratio in between."
        )
    return 1.0 - steps.progress(start)


# Type -> the position between lr_end (0) and learning_rate (1) at each step after the warm-up.
FRACTIONS: dict[str, Callable[[_Steps, LRScheduleSection], np.ndarray]] = {
    "constant": lambda steps, section: np.ones_like(steps.s),
    "linear": lambda steps, section: 1.0 - steps.progress(steps.warmup),
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": lambda steps, section: (1.0 - steps.progress(steps.warmup)) ** section.power,
    "inverse_sqrt": _inverse_sqrt,
    "constant_with_cooldown": _constant_with_cooldown,
}


def learning_rates(section: LRScheduleSection, steps: int) -> np.ndarray:
    """The learning rate of every step.

    Args:
        section: the schedule. Its `total_steps` takes precedence over `steps`; after it the learning rate is constant.
        steps: updates of the weights in the whole run.

    Returns:
        (steps,) float64: a linear warm-up from `warmup_lr_init` to `learning_rate`, then a decay by the type. `noam` is
        one formula from the first step on. A warm-up that is longer than the run does not reach `learning_rate`.

    Raises:
        UserError: the cool-down does not fit into the run.
    """
    total = steps if section.total_steps == -1 else section.total_steps
    ratio = section.warmup_ratio
    warmup = section.warmup_steps if ratio is None else int(ratio * total)
    plan = _Steps(np.minimum(np.arange(steps, dtype=np.float64), total), warmup, total)
    if section.type == "noam":
        return section.learning_rate * _noam(plan)
    peak, end, start = section.learning_rate, section.lr_end or 0.0, section.warmup_lr_init
    rising = start + (peak - start) * plan.s / max(1, warmup)
    falling = end + (peak - end) * FRACTIONS[section.type](plan, section)
    return np.where(plan.s < warmup, rising, falling)


def _noam(steps: _Steps) -> np.ndarray:
    """min(n^-0.5, n w^-1.5) with n = s + 1 (Vaswani et al. 2017, section 5.3, whose d_model^-0.5 is learning_rate)."""
    if steps.warmup == 0:
        raise UserError(
            f"lr_schedule: the schedule noam needs a warm-up of at least 1 step, and warmup_ratio of {steps.total} "
            "steps is none. Raise it, or set warmup_steps."
        )
    n = steps.s + 1.0
    return np.minimum(n**-0.5, n * steps.warmup**-1.5)


def relative_step_sizes(steps: int, warmup_init: bool) -> np.ndarray:
    """AdaFactor's rho_t = min(1e-2, 1 / sqrt(t)), t from 1; with `warmup_init` 1e-6 t instead of 1e-2.

    Shazeer & Stern 2018, section 9 and algorithm 6. (steps,) float64.
    """
    t = np.arange(1, steps + 1, dtype=np.float64)
    return np.minimum(1e-6 * t if warmup_init else 1e-2, 1.0 / np.sqrt(t))


def learning_rates_of_run(schedule: LRScheduleSection | None, optimizer: OptimizerSection, steps: int) -> np.ndarray:
    """The learning rate of every step, by the schedule, or by the optimizer if that sets its own.

    Returns (steps,) float64. Raises as `learning_rates`.
    """
    if optimizer.relative_step:
        return optimizer.relative_step_factor * relative_step_sizes(steps, optimizer.warmup_init)
    return learning_rates(schedule, steps)


def schedule_line(schedule: LRScheduleSection | None, values: np.ndarray) -> str:
    """A line for the user: the highest and the last learning rate, and a warning if the warm-up is too long."""
    name = "AdaFactor's relative step" if schedule is None else schedule.type
    peak = int(values.argmax())
    line = f"learning rate: {name}, highest {values[peak]:.3g} at step {peak + 1}, {values[-1]:.3g} at the end"
    warmup = 0 if schedule is None else schedule.warmup_steps or 0
    steps, given = len(values), -1 if schedule is None else schedule.total_steps
    rising = steps if given == -1 else min(steps, given)
    if warmup <= rising:
        return line
    top = schedule.learning_rate * (warmup**-0.5 if schedule.type == "noam" else 1.0)
    whose = "the run has" if rising == steps else "lr_schedule.total_steps gives it"
    return (
        f"{line}\nwarning: lr_schedule.warmup_steps is {warmup}, and {whose} {rising} steps: the learning rate never "
        f"reaches its top, {top:.3g}. Lower warmup_steps, or set warmup_ratio instead."
    )


class LearningRateTable(nn.learning_rate_schedule.LearningRateSchedule):
    """A schedule for MindSpore's optimizers: step -> learning rate, from a table of shape (steps,)."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.values = Tensor(values.astype(np.float32))
        self.last = len(values) - 1
        self.highest = float(values.max())
        self.gather = ops.Gather()

    def construct(self, global_step: Tensor) -> Tensor:
        """global_step: (1,) int32 -> (1,) float32"""
        return self.gather(self.values, ops.minimum(global_step, Tensor(self.last, ms.int32)), 0)
