"""The sections about training and judging: schedule, optimizer, loss scale, callbacks, metric, trainer.

The names under `type` are stored as our own; MindFormers' names are accepted. To add an optimizer or a schedule, add
its names to the table and the keys it obeys to `SCHEDULE_KEYS`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, SerializeAsAny

from mindgpt.config.section import (
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Number,
    Positive,
    Section,
    nearest,
    one_of,
    refuse,
    shown,
)

OPTIMIZERS = {
    "adamw": "adamw",
    "AdamWeightDecay": "adamw",
    "FusedAdamWeightDecay": "adamw",
    "FP32StateAdamWeightDecay": "adamw",
    "FusedAdamW": "adamw",
    "FusedCastAdamWeightDecay": "adamw",
}
SCHEDULES = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
    "CosineWithWarmUpLR": "cosine",
    "CosineWithRestartsAndWarmUpLR": "cosine_with_restarts",
    "PolynomialWithWarmUpLR": "polynomial",
}
SCHEDULE_KEYS: dict[str, dict[str, float]] = {
    "constant": {},
    "linear": {"lr_end": 0.0},
    "cosine": {"lr_end": 0.0, "num_cycles": 0.5},
    "cosine_with_restarts": {"lr_end": 0.0, "num_cycles": 1.0},
    "polynomial": {"lr_end": 1e-7, "power": 1.0},
}
"""For each schedule the keys that only some schedules obey, with their defaults."""

LOSS_SCALES = {
    "static": "static",
    "dynamic": "dynamic",
    "StaticLossScale": "static",
    "FixedLossScaleUpdateCell": "static",
    "DynamicLossScaleUpdateCell": "dynamic",
}


class LRScheduleSection(Section):
    """`lr_schedule`: the learning rate at every step. A key that the schedule does not obey is refused.

    After validation `warmup_steps` has a value unless `warmup_ratio` (a fraction of all steps) has one, and the keys
    in `SCHEDULE_KEYS[type]` have one. `total_steps` -1 means as many as the data and the epochs give.
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

    def complete(self) -> None:
        obeyed = SCHEDULE_KEYS[self.type]
        problems = [
            (key, f"has no effect on the schedule {self.type!r}, which obeys {', '.join(obeyed) or 'none of these'}")
            for key in ("lr_end", "num_cycles", "power")
            if getattr(self, key) is not None and key not in obeyed
        ]
        for key, default in obeyed.items():
            if getattr(self, key) is None:
                setattr(self, key, default)
        if self.lr_end is not None and self.lr_end > self.learning_rate:
            problems.append(("lr_end", f"must be at most learning_rate {self.learning_rate}, not {self.lr_end}"))
        if self.warmup_lr_init > self.learning_rate:
            message = f"must be at most learning_rate {self.learning_rate}, not {self.warmup_lr_init}"
            problems.append(("warmup_lr_init", message))
        refuse(problems + self._step_problems())
        if self.warmup_ratio is None:
            self.warmup_steps = self.warmup_steps or 0

    def _step_problems(self) -> list[tuple[str, str]]:
        problems = []
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            problems.append(("warmup_ratio", "and warmup_steps are both set; keep one of the two"))
        if self.total_steps != -1 and self.total_steps < 1:
            problems.append(("total_steps", f"must be -1 (taken from the data) or at least 1, not {self.total_steps}"))
        elif self.total_steps != -1 and (self.warmup_steps or 0) > self.total_steps:
            message = f"must be at most total_steps {self.total_steps}, not {self.warmup_steps}"
            problems.append(("warmup_steps", message))
        return problems


class OptimizerSection(Section):
    """`optimizer`. `learning_rate` is for runs without an `lr_schedule`, and stays constant."""

    type: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
    beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    learning_rate: Positive | None = None

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Take `betas: [0.9, 0.95]` apart."""
        data = dict(data)
        betas = data.pop("betas", None)
        if betas is None:
            return data
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            refuse([("betas", f"must be a list of two numbers such as [0.9, 0.95], not {shown(betas)}")])
        for key, value in zip(("beta1", "beta2"), betas, strict=True):
            if data.get(key, value) != value:
                refuse(
                    [("betas", f"{shown(betas)} differs from {key}, which is {shown(data[key])}; keep one of the two")]
                )
            data[key] = value
        return data


class ScaleSenseSection(Section):
    """`runner_wrapper.scale_sense`: what the loss is multiplied by, so that small fp16 gradients survive.

    A dynamic scale is divided by `scale_factor` after an overflow and multiplied by it after `scale_window` steps
    without one. After validation `loss_scale_value` has a value: 1 if static, 2^16 if dynamic.
    """

    type: Annotated[str, one_of(LOSS_SCALES)] = "static"
    loss_scale_value: Positive | None = None
    scale_factor: Annotated[Number, Field(gt=1)] | None = None
    scale_window: Count | None = None

    def complete(self) -> None:
        if self.type == "static":
            given = [key for key in ("scale_factor", "scale_window") if getattr(self, key) is not None]
            refuse((key, "has no effect on a static loss scale") for key in given)
            self.loss_scale_value = self.loss_scale_value or 1.0
        else:
            self.loss_scale_value = self.loss_scale_value or 2.0**16
            self.scale_factor = self.scale_factor or 2.0
            self.scale_window = self.scale_window or 1000


def _static_scale(value: Any) -> Any:
    """A bare number is a static scale."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"type": "static", "loss_scale_value": value} if is_number else value


class RunnerWrapperSection(Section):
    """`runner_wrapper`: the train-step cell. `max_skipped_steps` non-finite steps in a row end the run."""

    type: Literal["MFTrainOneStepCell"] = "MFTrainOneStepCell"
    scale_sense: Annotated[ScaleSenseSection, BeforeValidator(_static_scale)] = Field(default_factory=ScaleSenseSection)
    use_clip_grad: bool = True
    max_grad_norm: Positive = 1.0
    max_skipped_steps: Count = 20


class LossMonitorSection(Section):
    """A callback that reports step, loss, learning rate and speed every `per_print_times` steps."""

    type: Annotated[str, one_of({"MFLossMonitor": "MFLossMonitor", "LossMonitor": "MFLossMonitor"})] = "MFLossMonitor"
    per_print_times: Count = 1


class CheckpointMonitorSection(Section):
    """A callback that saves checkpoints; `directory` "" means `output_dir`/checkpoint.

    Every `save_checkpoint_steps` steps or `save_checkpoint_seconds` seconds (0: never by that measure) one is written,
    and the oldest goes once there are more than `keep_checkpoint_max` (0: all are kept).
    """

    type: Literal["CheckpointMonitor"] = "CheckpointMonitor"
    prefix: Annotated[str, Field(min_length=1)] = "gpt2"
    directory: str = ""
    save_checkpoint_steps: CountOrZero = 500
    save_checkpoint_seconds: CountOrZero = 0
    keep_checkpoint_max: CountOrZero = 5
    integrated_save: bool = True
    async_save: bool = False
    save_network_params: bool = True
    save_trainable_params: bool = False

    def complete(self) -> None:
        if "/" in self.prefix or "\\" in self.prefix:
            refuse(
                [("prefix", f"begins a file's name and must not contain a slash: {shown(self.prefix)}; see directory")]
            )


class EvalCallBackSection(Section):
    """A callback that evaluates during training, every so many steps or epochs; -1 means never."""

    type: Literal["EvalCallBack"] = "EvalCallBack"
    eval_steps: int = -1
    eval_epochs: int = -1

    other_names: ClassVar = {
        "eval_step_interval": "eval_steps",
        "step_interval": "eval_steps",
        "eval_epoch_interval": "eval_epochs",
        "epoch_interval": "eval_epochs",
    }

    def complete(self) -> None:
        refuse(
            (key, f"must be -1 (never) or at least 1, not {getattr(self, key)}")
            for key in ("eval_steps", "eval_epochs")
            if getattr(self, key) == 0 or getattr(self, key) < -1
        )
        if self.eval_steps == -1 and self.eval_epochs == -1:
            self.eval_epochs = 1


class ObsMonitorSection(Section):
    """MindFormers' upload to Huawei's cloud: accepted with whatever it holds, and without effect."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["ObsMonitor"] = "ObsMonitor"


CALLBACKS: dict[str, type[Section]] = {
    "MFLossMonitor": LossMonitorSection,
    "LossMonitor": LossMonitorSection,
    "CheckpointMonitor": CheckpointMonitorSection,
    "EvalCallBack": EvalCallBackSection,
    "ObsMonitor": ObsMonitorSection,
}
EVAL_CALLBACKS: dict[str, type[Section]] = {"ObsMonitor": ObsMonitorSection}


def _item_of(classes: Mapping[str, type[Section]]) -> BeforeValidator:
    """Validate an item of a list by the section class that its `type` names."""

    def build(value: Any) -> Any:
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a group of keys with a type, not {shown(value)}")
        name = value.get("type")
        if name not in classes:
            hint = nearest(name, classes) if isinstance(name, str) else f"known are: {', '.join(classes)}"
            raise ValueError(f"type {shown(name)} is not known; {hint}")
        return classes[name].model_validate(value)

    return BeforeValidator(build)


Callback = Annotated[SerializeAsAny[InstanceOf[Section]], _item_of(CALLBACKS)]
EvalCallback = Annotated[SerializeAsAny[InstanceOf[Section]], _item_of(EVAL_CALLBACKS)]


class MetricSection(Section):
    """`metric`: what an evaluation reports."""

    type: Literal["PerplexityMetric", "Accuracy"] = "PerplexityMetric"
    eval_type: Literal["classification"] | None = None

    def complete(self) -> None:
        if self.eval_type is not None and self.type != "Accuracy":
            refuse([("eval_type", f"has no effect on the metric {self.type!r}")])


class TrainerSection(Section):
    """`trainer`: the task. `model_name` is a label in the log."""

    type: Literal["CausalLanguageModelingTrainer", "TextClassificationTrainer"] = "CausalLanguageModelingTrainer"
    model_name: str = "gpt2"
