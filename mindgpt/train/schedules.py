"""Learning-rate schedules: a table of the rate at every step, made in float64 before training.

`s` counts updates of the weights from 0, `w` is the warm-up, `p = (s - w) / (total - w)` the progress after it, in
[0, 1]. The formulas are those of transformers' `optimization.py`, with `lr_end` in place of its 0.
"""

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.config.errors import UserError
from mindgpt.config.training import LRScheduleSection


def _cosine(p: float, section: LRScheduleSection) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * section.num_cycles * p)))


def _cosine_with_restarts(p: float, section: LRScheduleSection) -> float:
    return 0.0 if p >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * ((section.num_cycles * p) % 1.0)))


# Type -> the fraction of the way from lr_end up to learning_rate at progress p, after the warm-up.
DECAYS: dict[str, Callable[[float, LRScheduleSection], float]] = {
    "constant": lambda p, section: 1.0,
    "linear": lambda p, section: 1.0 - p,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": lambda p, section: (1.0 - p) ** section.power,
}


def learning_rates(section: LRScheduleSection, steps: int) -> np.ndarray:
    """The learning rate of every step.

    Args:
        section: the schedule. Its `total_steps` goes before `steps`; after it the rate stays where it ended.
        steps: updates of the weights in the whole run.

    Returns:
        (steps,) float64: from `warmup_lr_init` straight up to `learning_rate` in the warm-up, then down by the type.

    Raises:
        UserError: the warm-up is longer than the run.
    """
    total = steps if section.total_steps == -1 else section.total_steps
    ratio = section.warmup_ratio
    warmup = section.warmup_steps if ratio is None else int(ratio * total)
    if warmup > total:
        raise UserError(
            f"lr_schedule.warmup_steps is {warmup}, but the run has only {total} steps. Lower it, or set warmup_ratio."
        )
    decay, peak, end = DECAYS[section.type], section.learning_rate, section.lr_end or 0.0
    rates = np.empty(steps, np.float64)
    for step in range(steps):
        if step < warmup:
            rates[step] = section.warmup_lr_init + (peak - section.warmup_lr_init) * step / warmup
        else:
            progress = min(1.0, (step - warmup) / max(1, total - warmup))
            rates[step] = end + (peak - end) * decay(progress, section)
    return rates


class LearningRateTable(nn.learning_rate_schedule.LearningRateSchedule):
    """The schedule as MindSpore's optimizers want it: step -> rate, looked up."""

    def __init__(self, rates: np.ndarray):
        super().__init__()
        self.rates = Tensor(rates.astype(np.float32))
        self.last = len(rates) - 1
        self.gather = ops.Gather()

    def construct(self, global_step: Tensor) -> Tensor:
        """global_step: (1,) int32 -> (1,) float32"""
        return self.gather(self.rates, ops.minimum(global_step, Tensor(self.last, ms.int32)), 0)
