"""The lists `callbacks` and `eval_callbacks`. To add a callback, write its section and add it to `CALLBACKS`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, SerializeAsAny

from mindgpt.config.no_effect import NoEffect, if_sharded
from mindgpt.config.section import (
    ANY_VALUE,
    Count,
    CountOrZero,
    NonNegative,
    PathText,
    Section,
    any_value,
    nearest,
    one_of,
    only,
    refuse,
    shown,
)
from mindgpt.config.unsupported import ONE_EXPERT, MoESection

LAST_CHECKPOINT_IS_INTACT = (
    "an interrupted run leaves its last checkpoint intact; save_checkpoint_steps or save_checkpoint_seconds limit how "
    "much progress can be lost"
)


class CallbackSection(Section):
    """A callback of a run, of the kind that `type` names."""

    type: str


class LossMonitorSection(CallbackSection):
    """A callback that reports step, loss, learning rate and speed every `per_print_times` steps."""

    type: Annotated[str, one_of({"MFLossMonitor": "MFLossMonitor", "LossMonitor": "MFLossMonitor"})] = "MFLossMonitor"
    per_print_times: Count = 1

    ignored: ClassVar = any_value(  # the run knows these about itself
        "learning_rate micro_batch_num micro_batch_interleave_num origin_epochs dataset_size initial_epoch "
        "initial_step global_batch_size gradient_accumulation_steps"
    ) | {
        "check_for_nan_in_loss_and_grad": only(
            False, reason="runner_wrapper.max_skipped_steps: 1 ends a run at its first step that is not finite"
        ),
        "calculate_per_token_loss": only(False, reason="the loss is the mean over the tokens of a micro-batch"),
    }


class CheckpointMonitorSection(CallbackSection):
    """A callback that saves checkpoints; `directory` "" means `output_dir`/checkpoint.

    It writes one every `save_checkpoint_steps` steps or `save_checkpoint_seconds` seconds (0: disabled), and
    deletes the oldest when there are more than `keep_checkpoint_max` (0: all are kept). With `async_save` the values
    are copied and training goes on while they are written.
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

    ignored: ClassVar = {
        "checkpoint_format": only(
            "ckpt",
            reason="a run writes .ckpt; mindgpt/models/gpt2/convert_weight.py --reversed makes safetensors of it",
        ),
        "remove_redundancy": only(
            False, reason="each process saves every parameter that it holds, replicated ones included"
        ),
        "exception_save": only(False, reason=LAST_CHECKPOINT_IS_INTACT),
        "keep_checkpoint_per_n_minutes": only(
            0, reason="save_checkpoint_seconds and keep_checkpoint_max say what is written and what is kept"
        ),
        "enc_key": only("", reason="checkpoints are not encrypted; encrypt the folder"),
        "enc_mode": ANY_VALUE,
        "config": only({}, reason="set the options of CheckpointConfig directly on the callback"),
        "saved_network": only(reason="save_network_params and save_trainable_params choose what else is saved"),
        "append_info": ANY_VALUE,  # epoch, step and loss scale are always written
        "global_batch_size": ANY_VALUE,
    }
    no_effect: ClassVar = (
        NoEffect(
            "integrated_save",
            if_sharded("each card writes its shards; tools/transform_ckpt.py merges"),
            value=True,
        ),
    )

    def complete(self) -> None:
        if "/" in self.prefix or "\\" in self.prefix:
            refuse(
                [("prefix", f"begins a file's name and must not contain a slash: {shown(self.prefix)}; see directory")]
            )


class EvalCallBackSection(CallbackSection):
    """A callback that evaluates during training every `eval_steps` steps or `eval_epochs` epochs (-1: never).

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
            problems.append(("greater_is_better", "has no effect without metric, which it describes"))
        refuse(problems)
        if self.eval_steps == -1 and self.eval_epochs == -1:
            self.fill(eval_epochs=1)


class SummaryMonitorSection(CallbackSection):
    """A callback that writes TensorBoard events; `summary_dir` "" means `output_dir`/tensorboard.

    It writes every `collect_freq` steps, and at every evaluation. The ignored keys are of MindSpore's own collector.
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


class IgnoredCallbackSection(CallbackSection):
    """A callback of MindFormers that is accepted and has no effect."""


class ObsMonitorSection(IgnoredCallbackSection):
    """Upload to Huawei's cloud; any keys are accepted."""

    model_config = ConfigDict(extra="ignore")


class TimeMonitorSection(IgnoredCallbackSection):
    """MindSpore's step timer; every log line of a step has its duration anyway."""

    ignored: ClassVar = {"data_size": ANY_VALUE, "data_time": ANY_VALUE}


class StopAtStepSection(IgnoredCallbackSection):
    """MindFormers' `TrainCallBack`, which stops a run at a given step; only the values that disable it are accepted."""

    ignored: ClassVar = {
        "stop_step": only(0, -1, reason="epochs and train_dataset.num_samples say how long a run is"),
    }


class MoECallbackSection(IgnoredCallbackSection):
    """The settings of MindFormers' mixture-of-experts callbacks, which have nothing to do in a dense model."""

    ignored: ClassVar = any_value(
        "topk_bias_update_rate num_layers mtp_depth micro_batch_num gradient_accumulation_steps capacity_factor "
        "hidden_size ffn_hidden_size expert_parallel model_parallel save_checkpoint_steps"
    ) | {
        "expert_num": only(1, reason=ONE_EXPERT),
        "balance_via_topk_bias": only(False, reason=ONE_EXPERT),
        "moe_config": MoESection,
    }


CALLBACKS: dict[str, type[CallbackSection]] = {
    "MFLossMonitor": LossMonitorSection,
    "LossMonitor": LossMonitorSection,
    "CheckpointMonitor": CheckpointMonitorSection,
    "CheckpointMointor": CheckpointMonitorSection,  # as MindFormers spelt it for years
    "EvalCallBack": EvalCallBackSection,
    "SummaryMonitor": SummaryMonitorSection,
    "ObsMonitor": ObsMonitorSection,
    "TimeMonitor": TimeMonitorSection,
    "TrainCallBack": StopAtStepSection,
    "ColdHotExpertMonitor": MoECallbackSection,
    "TopkBiasBalanceCallback": MoECallbackSection,
    "MoEDropRateCallback": MoECallbackSection,
}
REFUSED = {
    "ProfileMonitor": "profiling is not in this version; start the run under MindSpore's own profiler",
    "TrainingStateMonitor": "norms of single parameters are not recorded; log/train.jsonl has the global gradient norm",
    "OnRequestExit": LAST_CHECKPOINT_IS_INTACT,
    "StressDetectCallBack": "mindgpt does not test the hardware; use Ascend's own tools before the run",
}
"""Types of callbacks that are refused, each with the reason or what to use instead."""

EVAL_CALLBACKS: dict[str, type[CallbackSection]] = {"ObsMonitor": ObsMonitorSection}


def _item_of(classes: Mapping[str, type[CallbackSection]]) -> BeforeValidator:
    """Validate an item of a list by the section class that its `type` names."""

    def build(value: Any) -> Any:
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a group of keys with a type, not {shown(value)}")
        name = value.get("type")
        if name in REFUSED:
            raise ValueError(f"{name} is not in mindgpt: {REFUSED[name]}")
        if not isinstance(name, str) or name not in classes:
            hint = nearest(name, classes) if isinstance(name, str) else f"known are: {', '.join(classes)}"
            raise ValueError(f"type {shown(name)} is not known; {hint}")
        return classes[name].model_validate(value)

    return BeforeValidator(build)


Callback = Annotated[SerializeAsAny[InstanceOf[CallbackSection]], _item_of(CALLBACKS)]
EvalCallback = Annotated[SerializeAsAny[InstanceOf[CallbackSection]], _item_of(EVAL_CALLBACKS)]
