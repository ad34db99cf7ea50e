"""The sections about training and judging that have no file of their own: loss scale, metric, trainer."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.section import (
    ANY_VALUE,
    Count,
    Number,
    PathText,
    Positive,
    Section,
    one_of,
    only,
    refuse,
)

LOSS_SCALES = {
    "static": "static",
    "dynamic": "dynamic",
    "StaticLossScale": "static",
    "FixedLossScaleUpdateCell": "static",
    "DynamicLossScaleUpdateCell": "dynamic",
}


class ScaleSenseSection(Section):
    """`runner_wrapper.scale_sense`: what the loss is multiplied by, so that small fp16 gradients survive.

    A dynamic scale is divided by `scale_factor` after an overflow and multiplied by it after `scale_window` steps
    without one; with a factor of 1 it is a static one. After validation `loss_scale_value` has a value: 1 if static,
    2^16 if dynamic.
    """

    type: Annotated[str, one_of(LOSS_SCALES)] = "static"
    loss_scale_value: Positive | None = None
    scale_factor: Annotated[Number, Field(ge=1)] | None = None
    scale_window: Count | None = None

    def complete(self) -> None:
        if self.type == "dynamic" and self.scale_factor == 1:
            self.fill(type="static", scale_factor=None, scale_window=None)
        if self.type == "static":
            given = [key for key in ("scale_factor", "scale_window") if getattr(self, key) is not None]
            refuse((key, "has no effect on a static loss scale") for key in given)
            self.fill(loss_scale_value=self.loss_scale_value or 1.0)
        else:
            self.fill(
                loss_scale_value=self.loss_scale_value or 2.0**16,
                scale_factor=self.scale_factor or 2.0,
                scale_window=self.scale_window or 1000,
            )


_TRAIN_STEPS = {
    "MFTrainOneStepCell": "MFTrainOneStepCell",
    "MFPipelineWithLossScaleCell": "MFTrainOneStepCell",  # what early releases wrote for pipeline stages
}


def _static_scale(value: Any) -> Any:
    """A bare number is a static scale."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"type": "static", "loss_scale_value": value} if is_number else value


class RunnerWrapperSection(Section):
    """`runner_wrapper`: the train-step cell. `max_skipped_steps` non-finite steps in a row end the run."""

    type: Annotated[str, one_of(_TRAIN_STEPS)] = "MFTrainOneStepCell"
    scale_sense: Annotated[ScaleSenseSection, BeforeValidator(_static_scale)] = Field(default_factory=ScaleSenseSection)
    use_clip_grad: bool = True
    max_grad_norm: Positive = 1.0
    max_skipped_steps: Count = 20

    ignored: ClassVar = {
        "enable_check_overflow": ANY_VALUE,  # overflow is always looked for
        "local_norm": only(False, reason="norms of single parameters are not recorded"),
        "calculate_per_token_loss": only(False, reason="the loss is the mean over the tokens of a micro-batch"),
        "sens": only(1, 1.0, reason="the key is scale_sense, a number or a group of keys"),
    }

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """MindFormers' manual has `use_clip_grad` inside `scale_sense`."""
        inner = data.get("scale_sense")
        if not isinstance(inner, Mapping) or "use_clip_grad" not in inner:
            return data
        rest = {key: value for key, value in inner.items() if key != "use_clip_grad"}
        clips = inner["use_clip_grad"]
        if data.get("use_clip_grad", clips) != clips:
            refuse([("scale_sense.use_clip_grad", "differs from runner_wrapper.use_clip_grad; keep one of the two")])
        return {**data, "scale_sense": rest, "use_clip_grad": clips}


class MetricSection(Section):
    """`metric`: what an evaluation reports. `type` follows from `trainer.type` where it is absent.

    `GenerationMetric` generates a response to each prompt of the data and compares it with the data's own.
    """

    type: Literal["PerplexityMetric", "Accuracy", "GenerationMetric"] | None = None
    eval_type: Literal["classification"] | None = None

    def complete(self) -> None:
        if self.eval_type is not None and self.type in ("PerplexityMetric", "GenerationMetric"):
            refuse([("eval_type", f"has no effect on the metric {self.type!r}")])


class TrainerSection(Section):
    """`trainer`: the task. `model_name` is a label in the log.

    `class_weights`, for classification only, are factors of the labels' losses, or "balanced": the rarer the heavier.
    """

    type: Literal["CausalLanguageModelingTrainer", "TextClassificationTrainer"] = "CausalLanguageModelingTrainer"
    model_name: str = "gpt2"
    class_weights: list[Positive] | Literal["balanced"] | None = None

    def complete(self) -> None:
        if self.class_weights is not None and self.type != "TextClassificationTrainer":
            refuse([("class_weights", f"has no effect with the type {self.type!r}")])


class TensorBoardSection(Section):
    """`tensorboard`: the other place where MindFormers has the folder of a `SummaryMonitor`."""

    tensorboard_dir: PathText = ""

    ignored: ClassVar = {
        "tensorboard_queue_size": ANY_VALUE,
        "log_loss_scale_to_tensorboard": ANY_VALUE,  # loss scale and speed are always among the scalars
        "log_timers_to_tensorboard": ANY_VALUE,
    }
