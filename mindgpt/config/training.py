"""The sections about training and judging that have no file of their own: loss scale, metric, trainer."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.section import (
    Count,
    Number,
    Positive,
    Section,
    one_of,
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


class MetricSection(Section):
    """`metric`: what an evaluation reports. `type` follows from `trainer.type` where it is absent."""

    type: Literal["PerplexityMetric", "Accuracy"] | None = None
    eval_type: Literal["classification"] | None = None

    def complete(self) -> None:
        if self.eval_type is not None and self.type == "PerplexityMetric":
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
