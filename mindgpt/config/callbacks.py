"""The lists `callbacks` and `eval_callbacks`: what happens beside a run. To add one, write its section and name it in
`CALLBACKS`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, SerializeAsAny

from mindgpt.config.section import (
    ANY_VALUE,
    Count,
    CountOrZero,
    NonNegative,
    PathText,
    Section,
    nearest,
    one_of,
    refuse,
    shown,
)


class LossMonitorSection(Section):
    """A callback that reports step, loss, learning rate and speed every `per_print_times` steps."""

    type: Annotated[str, one_of({"MFLossMonitor": "MFLossMonitor", "LossMonitor": "MFLossMonitor"})] = "MFLossMonitor"
    per_print_times: Count = 1


class CheckpointMonitorSection(Section):
    """A callback that saves checkpoints; `directory` "" means `output_dir`/checkpoint.

    Every `save_checkpoint_steps` steps or `save_checkpoint_seconds` seconds (0: never by that measure) one is written,
    and the oldest goes once there are more than `keep_checkpoint_max` (0: all are kept).
    """

    type: Annotated[
        str, one_of({"CheckpointMonitor": "CheckpointMonitor", "CheckpointMointor": "CheckpointMonitor"})
    ] = "CheckpointMonitor"
    prefix: Annotated[str, Field(min_length=1)] = "gpt2"
    directory: PathText = ""
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
    """A callback that evaluates during training, every so many steps or epochs (-1: never by that measure).

    The best score is that of `metric` (absent: the metric's first in the order of `mindgpt.train.best.DIRECTIONS`);
    `greater_is_better` is only needed for a metric that is not in that table. With `save_best` the weights of the best
    score are kept in `output_dir`/checkpoint_best. The run ends early after `early_stop_patience` evaluations in a row
    (0: never) that were not better by more than `min_delta`.
    """

    type: Literal["EvalCallBack"] = "EvalCallBack"
    eval_steps: int = -1
    eval_epochs: int = -1
    metric: str | None = None
    greater_is_better: bool | None = None
    save_best: bool = True
    early_stop_patience: CountOrZero = 0
    min_delta: NonNegative = 0.0

    other_names: ClassVar = {
        "eval_step_interval": "eval_steps",
        "step_interval": "eval_steps",
        "eval_epoch_interval": "eval_epochs",
        "epoch_interval": "eval_epochs",
    }

    def complete(self) -> None:
        problems = [
            (key, f"must be -1 (never) or at least 1, not {getattr(self, key)}")
            for key in ("eval_steps", "eval_epochs")
            if getattr(self, key) == 0 or getattr(self, key) < -1
        ]
        if self.min_delta and not self.early_stop_patience:
            problems.append(("min_delta", "has no effect without early_stop_patience"))
        if self.greater_is_better is not None and self.metric is None:
            problems.append(("greater_is_better", "says nothing without metric, the name it is about"))
        refuse(problems)
        if self.eval_steps == -1 and self.eval_epochs == -1:
            self.eval_epochs = 1


class SummaryMonitorSection(Section):
    """A callback that writes TensorBoard events; `summary_dir` "" means `output_dir`/tensorboard.

    Every `collect_freq` steps, and at every evaluation. The other keys steered what MindSpore's own collector stored.
    """

    type: Literal["SummaryMonitor"] = "SummaryMonitor"
    summary_dir: PathText = ""
    collect_freq: Count = 1

    ignored: ClassVar = {
        "collect_specified_data": ANY_VALUE,
        "keep_default_action": ANY_VALUE,
        "custom_lineage_data": ANY_VALUE,
        "collect_tensor_freq": ANY_VALUE,
        "max_file_size": ANY_VALUE,
        "export_options": ANY_VALUE,
    }


class ObsMonitorSection(Section):
    """MindFormers' upload to Huawei's cloud: accepted with whatever it holds, and without effect."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["ObsMonitor"] = "ObsMonitor"


CALLBACKS: dict[str, type[Section]] = {
    "MFLossMonitor": LossMonitorSection,
    "LossMonitor": LossMonitorSection,
    "CheckpointMonitor": CheckpointMonitorSection,
    "CheckpointMointor": CheckpointMonitorSection,  # as MindFormers spelt it for years
    "EvalCallBack": EvalCallBackSection,
    "SummaryMonitor": SummaryMonitorSection,
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
