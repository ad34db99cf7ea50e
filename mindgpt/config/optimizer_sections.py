"""The sections `lr_schedule` and `optimizer`.

The names under `type` are stored as our own; MindFormers' names are accepted. To add an optimizer or a schedule, add
its names to `OPTIMIZERS` or `SCHEDULES` and the keys it obeys, with their defaults, to the table below that.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mindgpt.config.section import (
    ANY_VALUE,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Number,
    Positive,
    Section,
    one_of,
    only,
    refuse,
    shown,
)

SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "noam": "noam",
    "inverse_sqrt": "inverse_sqrt",
    "constant_with_cooldown": "constant_with_cooldown",
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
    "CosineWithWarmUpLR": "cosine",
    "CosineWithRestartsAndWarmUpLR": "cosine_with_restarts",
    "PolynomialWithWarmUpLR": "polynomial",
    "WarmUpStableDecayLR": "constant_with_cooldown",
}
SCHEDULE_KEYS: dict[str, dict[str, float | None]] = {
    "constant": {},
    "linear": {"lr_end": 0.0},
    "cosine": {"lr_end": 0.0, "num_cycles": 0.5},
    "cosine_with_restarts": {"lr_end": 0.0, "num_cycles": 1.0},
    "polynomial": {"lr_end": 1e-7, "power": 1.0},
    "noam": {},
    "inverse_sqrt": {"timescale": None},
    "constant_with_cooldown": {"lr_end": 1e-7, "decay_start_steps": None, "decay_start_ratio": None},
}
"""For each schedule the keys that only some schedules obey, with their defaults; None: worked out from other keys."""

OPTIMIZERS = {
    "adamw": "adamw",
    "adafactor": "adafactor",
    "lion": "lion",
    "sgd": "sgd",
    "AdamWeightDecay": "adamw",
    "FusedAdamWeightDecay": "adamw",
    "FP32StateAdamWeightDecay": "adamw",
    "FusedAdamW": "adamw",
    "FusedCastAdamWeightDecay": "adamw",
    "fused_adamw": "adamw",
    "fp32_adamw": "adamw",
    "Momentum": "sgd",
}
OPTIMIZER_KEYS: dict[str, dict[str, float | bool | None]] = {
    "adamw": {
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "correct_bias": True,
        "decay_all": False,
    },
    "adafactor": {
        "beta1": 0.0,
        "beta2": None,
        "decay_rate": 0.8,
        "eps": 1e-30,
        "clip_threshold": 1.0,
        "scale_parameter": True,
        "min_parameter_scale": 1e-3,
        "relative_step": False,
        "warmup_init": False,
        "relative_step_factor": 1.0,
        "min_dim_size_to_factor": 1,
        "weight_decay": 0.0,
    },
    "lion": {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1},
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
}
"""For each optimizer the keys that it obeys, with their defaults."""


def _apply_defaults(
    section: "LRScheduleSection | OptimizerSection", table: Mapping[str, Mapping[str, Any]], what: str
) -> list[tuple[str, str]]:
    """Fill in the defaults of the keys that `section.type` obeys. Returns a problem for every other key that is set."""
    obeyed = table[section.type]
    only_some = dict.fromkeys(key for keys in table.values() for key in keys)
    problems = [
        (key, f"has no effect on the {what} {section.type!r}, which obeys {', '.join(obeyed) or 'none of these'}")
        for key in only_some
        if getattr(section, key) is not None and key not in obeyed
    ]
    for key, default in obeyed.items():
        if getattr(section, key) is None:
            section.fill(**{key: default})
    return problems


class LRScheduleSection(Section):
    """`lr_schedule`: the learning rate at every step. A key that the schedule does not obey is refused.

    After validation `warmup_steps` has a value unless `warmup_ratio` (a fraction of all steps) has one, and the keys
    in `SCHEDULE_KEYS[type]` have the value given there; so has `decay_start_ratio` or `decay_start_steps`, where the
    cool-down begins, if the schedule has one. `total_steps` -1 means as many as the data and the epochs give.
    """

    type: Annotated[str, one_of(SCHEDULES)] = "constant"
    learning_rate: Positive
    lr_end: NonNegative | None = None
    warmup_steps: CountOrZero | None = None
    warmup_ratio: Fraction | None = None
    warmup_lr_init: NonNegative = 0.0
    total_steps: int = -1
    num_cycles: Positive | None = None
    power: Positive | None = None
    timescale: Count | None = None
    decay_start_steps: CountOrZero | None = None
    decay_start_ratio: Fraction | None = None

    ignored: ClassVar = {
        "warmup_epochs": only(0, reason="give warmup_steps, or warmup_ratio as a fraction of all steps"),
        "decay_steps": only(reason="the cool-down is given by decay_start_steps or decay_start_ratio"),
        "decay_ratio": only(reason="the cool-down is given by decay_start_steps or decay_start_ratio"),
    }

    def complete(self) -> None:
        problems = _apply_defaults(self, SCHEDULE_KEYS, "schedule")
        if self.lr_end is not None and self.lr_end > self.learning_rate:
            problems.append(("lr_end", f"must be at most learning_rate {self.learning_rate}, not {self.lr_end}"))
        if self.warmup_lr_init > self.learning_rate:
            message = f"must be at most learning_rate {self.learning_rate}, not {self.warmup_lr_init}"
            problems.append(("warmup_lr_init", message))
        if self.type == "noam":
            problems += self._noam_problems()
        if self.type == "constant_with_cooldown":
            problems += self._cooldown_problems()
        refuse(problems + self._step_problems())
        if self.warmup_ratio is None:
            self.fill(warmup_steps=self.warmup_steps or 0)

    def _step_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            problems.append(("warmup_ratio", "and warmup_steps are both set; keep one of the two"))
        if self.total_steps != -1 and self.total_steps < 1:
            problems.append(("total_steps", f"must be -1 (taken from the data) or at least 1, not {self.total_steps}"))
        return problems

    def _noam_problems(self) -> list[tuple[str, str]]:
        problems = []
        if not self.warmup_steps and not self.warmup_ratio:
            problems.append(("warmup_steps", "must be at least 1 for the schedule 'noam', whose formula divides by it"))
        if self.warmup_lr_init:
            problems.append(("warmup_lr_init", "has no effect on the schedule 'noam', whose formula has its warm-up"))
        return problems

    def _cooldown_problems(self) -> list[tuple[str, str]]:
        start, ratio = self.decay_start_steps, self.decay_start_ratio
        problems = []
        if start is None and ratio is None:
            self.fill(decay_start_ratio=0.8)
        elif start is not None and ratio is not None:
            problems.append(("decay_start_ratio", "and decay_start_steps are both set; keep one of the two"))
        if start is not None and start < (self.warmup_steps or 0):
            problems.append(("decay_start_steps", f"{start} is before the end of the warm-up, {self.warmup_steps}"))
        if start is not None and self.total_steps != -1 and start > self.total_steps:
            problems.append(("decay_start_steps", f"must be at most total_steps {self.total_steps}, not {start}"))
        if (self.decay_start_ratio or 1.0) < (self.warmup_ratio or 0.0):
            message = f"{self.decay_start_ratio} is before the end of the warm-up, warmup_ratio {self.warmup_ratio}"
            problems.append(("decay_start_ratio", message))
        return problems


class OptimizerSection(Section):
    """`optimizer`. A key that the optimizer does not obey is refused; see `OPTIMIZER_KEYS` for keys and defaults.

    `correct_bias: False` is the AdamW of BERT and UER-py: without bias correction, with the decay after the step.
    `decay_all: True` decays biases and layer norms, too, as one group of parameters in `torch.optim.AdamW` does.

    AdaFactor's second moment decays by `beta2` in every step, or by 1 - t^-decay_rate in step t.

    `learning_rate` is for runs without an `lr_schedule`, and stays constant. AdaFactor with `relative_step: True`
    chooses its own step sizes, so it goes with neither.
    """

    type: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
    learning_rate: Positive | None = None
    weight_decay: NonNegative | None = None
    beta1: Annotated[Number, Field(ge=0, lt=1)] | None = None
    beta2: Annotated[Number, Field(ge=0, lt=1)] | None = None
    eps: Positive | None = None
    correct_bias: bool | None = None
    decay_all: bool | None = None
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = None
    nesterov: bool | None = None
    decay_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    clip_threshold: Positive | None = None
    scale_parameter: bool | None = None
    min_parameter_scale: Positive | None = None
    relative_step: bool | None = None
    warmup_init: bool | None = None
    relative_step_factor: Positive | None = None
    min_dim_size_to_factor: Count | None = None

    other_names: ClassVar = {"use_nesterov": "nesterov"}
    ignored: ClassVar = {
        "compression": only(False, reason="the state is kept in float32"),
        "dampening": only(0.0, 0, reason="sgd has momentum without dampening"),
        "loss_scale": only(1.0, 1, reason="the key is runner_wrapper.scale_sense"),
        "use_fused": ANY_VALUE,
        "offload": only(False, reason="the state is kept on the card; optimizer_shard shards it"),
        "swap": only(False, reason="the state is kept on the card; optimizer_shard shards it"),
        "amsgrad": only(False, reason="the second moment is adamw's own"),
        "maximize": only(False, reason="the loss is minimized"),
    }

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Split `betas: [0.9, 0.95]`, and AdaFactor's `eps: [1e-30, 1e-3]`."""
        data = _split_pair(data, "betas", ("beta1", "beta2"), "[0.9, 0.95]")
        if isinstance(data.get("eps"), list | tuple):
            data = _split_pair(data, "eps", ("eps", "min_parameter_scale"), "[1e-30, 1e-3]")
        if str(data.get("type")).lower() == "momentum" and data.get("momentum") is None:
            refuse([("type", "the optimizer Momentum needs the key momentum; 0.9 is usual")])
        return data

    def complete(self) -> None:
        problems = []
        if self.type == "adafactor" and self.beta2 is not None and self.decay_rate is not None:
            problems.append(
                ("beta2", "and decay_rate are both set; keep one: beta2 is constant, 1 - t^-decay_rate rises")
            )
        constant_decay = self.beta2 is not None
        problems += _apply_defaults(self, OPTIMIZER_KEYS, "optimizer")
        if self.type == "adafactor" and constant_decay:
            self.fill(decay_rate=None)
        if self.relative_step and self.learning_rate is not None:
            problems.append(("learning_rate", NO_LEARNING_RATE_WITH_RELATIVE_STEP))
        if self.type == "adafactor" and self.warmup_init and not self.relative_step:
            problems.append(("warmup_init", "needs relative_step: True; the warm-up of an lr_schedule is set there"))
        if self.type == "adafactor" and self.relative_step_factor != 1.0 and not self.relative_step:
            problems.append(("relative_step_factor", "needs relative_step: True; without it set the learning rate"))
        if self.type == "sgd" and self.nesterov and not self.momentum:
            problems.append(("nesterov", "needs a momentum greater than 0; 0.9 is usual"))
        refuse(problems)


NO_LEARNING_RATE_WITH_RELATIVE_STEP = (
    "has no effect with optimizer.relative_step: True, which takes its step sizes from the step number alone; "
    "take it out, or set relative_step: False"
)


def _split_pair(data: dict[str, Any], key: str, names: tuple[str, str], example: str) -> dict[str, Any]:
    """`data` with the pair under `key`, if it is there, as the values of the two keys `names`."""
    data = dict(data)
    pair = data.pop(key, None)
    if pair is None:
        return data
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        refuse([(key, f"must be a list of two numbers such as {example}, not {shown(pair)}")])
    for name, value in zip(names, pair, strict=True):
        if data.get(name, value) != value:
            message = f"{shown(pair)} differs from {name}, which is {shown(data[name])}; keep one of the two"
            refuse([(key, message)])
        data[name] = value
    return data
