"""`RunConfig`: all settings of one run, section by section, and the checks across sections."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mindgpt.config.callback_sections import (
    LAST_CHECKPOINT_IS_INTACT,
    Callback,
    CheckpointMonitorSection,
    EvalCallback,
    EvalCallBackSection,
    IgnoredCallbackSection,
    LossMonitorSection,
    SummaryMonitorSection,
)
from mindgpt.config.data_sections import DatasetTaskSection, EvalDatasetSection, ProcessorSection, TrainDatasetSection
from mindgpt.config.execution_sections import (
    ContextSection,
    ParallelConfigSection,
    ParallelSection,
    RunnerConfigSection,
)
from mindgpt.config.model_sections import ModelSection
from mindgpt.config.no_effect import NoEffect, if_unsharded
from mindgpt.config.optimizer_sections import NO_LEARNING_RATE_WITH_RELATIVE_STEP, LRScheduleSection, OptimizerSection
from mindgpt.config.paths import expanded
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.config.section import ANY_VALUE, Count, PathText, Section, any_value, only, refuse, shown
from mindgpt.config.training_sections import (
    MetricSection,
    RunnerWrapperSection,
    TensorBoardSection,
    TrainerSection,
)
from mindgpt.config.unsupported import KernelLaunchGroupSection, MoESection, MonitorSection, SwapSection

_ARCH_OF_TRAINER = {
    "CausalLanguageModelingTrainer": "GPT2LMHeadModel",
    "TextClassificationTrainer": "GPT2ForSequenceClassification",
}


_METRICS_OF_TRAINER = {  # the first where none is named
    "CausalLanguageModelingTrainer": ("PerplexityMetric", "GenerationMetric"),
    "TextClassificationTrainer": ("Accuracy",),
}

_DATASET_OF_TRAINER = {
    "CausalLanguageModelingTrainer": "CausalLanguageModelDataset",
    "TextClassificationTrainer": "TextClassificationDataset",
}

_WITHOUT_COPIES = (
    "shards without their copies on other cards are not read. Save with remove_redundancy: False, or merge them first "
    "with the release that wrote them"
)
_OF_LATER_RELEASES = "checkpoint folders of MindFormers 1.7 and later are not read; save with use_legacy_format: True"


class RunConfig(Section):
    """One run. Made by `load_config`, and frozen: every section is there, and every default is filled in.

    After validation `runner_config.batch_size` has a value; `lr_schedule` has one if a learning rate is given anywhere;
    `callbacks` holds what runs (`ObsMonitor` and the like are gone), with an `EvalCallBack` among it exactly if
    `do_eval` is True, and a `SummaryMonitor` if `tensorboard` names a folder. `train_precision_sync` and
    `infer_precision_sync` set `context.deterministic`, `predict_batch_size` sets `model.model_config.batch_size`.
    `resize_embeddings` lets `load_checkpoint` have other numbers of positions or tokens than `model.model_config`.
    """

    run_mode: Literal["train", "finetune", "eval", "predict"] = "train"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output_dir: PathText = "./output"
    load_checkpoint: PathText = ""
    resize_embeddings: bool = False
    src_strategy_path_or_dir: PathText = ""
    auto_trans_ckpt: bool = False
    transform_process_num: Count = 1
    only_save_strategy: bool = False
    resume_training: bool | str = False

    trainer: TrainerSection = Field(default_factory=TrainerSection)
    model: ModelSection = Field(default_factory=ModelSection)
    processor: ProcessorSection = Field(default_factory=ProcessorSection)

    train_dataset: TrainDatasetSection = Field(default_factory=TrainDatasetSection)
    train_dataset_task: DatasetTaskSection = Field(default_factory=DatasetTaskSection)
    eval_dataset: EvalDatasetSection = Field(default_factory=EvalDatasetSection)
    eval_dataset_task: DatasetTaskSection = Field(default_factory=DatasetTaskSection)

    runner_config: RunnerConfigSection = Field(default_factory=RunnerConfigSection)
    runner_wrapper: RunnerWrapperSection = Field(default_factory=RunnerWrapperSection)
    lr_schedule: LRScheduleSection | None = None
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    callbacks: list[Callback] = Field(default_factory=lambda: [LossMonitorSection(), CheckpointMonitorSection()])
    eval_callbacks: list[EvalCallback] = []
    metric: MetricSection = Field(default_factory=MetricSection)
    do_eval: bool | None = None
    eval_step_interval: int | None = None
    eval_epoch_interval: int | None = None
    tensorboard: TensorBoardSection | None = None
    predict_batch_size: Count | None = None
    train_precision_sync: bool | None = None
    infer_precision_sync: bool | None = None

    context: ContextSection = Field(default_factory=ContextSection)
    use_parallel: bool = False
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    parallel_config: ParallelConfigSection = Field(default_factory=ParallelConfigSection)
    micro_batch_interleave_num: Count = 1
    recompute_config: RecomputeSection = Field(default_factory=RecomputeSection)

    profile: bool = False
    profile_start_step: Count = 1
    profile_stop_step: Count = 10
    init_start_profile: bool = False
    profile_communication: bool = False
    profile_memory: bool = True

    other_names: ClassVar = {"resume_or_finetune_checkpoint": "load_checkpoint"}  # until MindFormers 0.6
    ignored: ClassVar = any_value(
        "remote_save_url aicc_config auto_tune filepath_prefix autotune_per_step layer_decay lr_scale_factor "
        "load_ckpt_async exclude_cann_cpu postprocess_use_numpy print_separate_loss profiler_level profile_rank_ids "
        "profile_pipeline profile_output with_stack data_simplification mstx"
    ) | {
        "save_file": ANY_VALUE,  # predictions are in output_dir
        "profile_level": ANY_VALUE,  # how to profile, which `profile: True` asks for
        "moe_config": MoESection,
        "swap_config": SwapSection,
        "monitor_config": MonitorSection,
        "kernel_launch_group": KernelLaunchGroupSection,
        "layer_scale": only(False, reason="all layers learn at the same rate"),
        "lr_scale": only(False, reason="write the learning rate itself into lr_schedule.learning_rate"),
        "load_ckpt_format": only("ckpt", "safetensors", "", reason="weights are .ckpt or .safetensors, as the file is"),
        "remove_redundancy": only(False, reason=_WITHOUT_COPIES),
        "ckpt_use_legacy_format": only(True, reason=_OF_LATER_RELEASES),
        "use_legacy_format": only(True, reason=_OF_LATER_RELEASES),
        "use_legacy": only(True, reason="MindFormers' newer model code has no GPT-2"),
        "use_graceful_exit": only(False, reason=LAST_CHECKPOINT_IS_INTACT),
        "ignore_data_skip": only(False, reason="a run that is resumed goes on where it stopped in the data"),
        "data_skip_steps": only(0, reason="a run that is resumed goes on where it stopped in the data"),
        "input_data": only("", [], reason="name prompts, or files of them, with --predict_data"),
        "adapter_id": only("", reason="one adapter at a time: model.model_config.pet_config.adapter, or --adapter"),
    }

    no_effect: ClassVar = (
        NoEffect("transform_process_num", lambda run: "each card reads its own shard of a checkpoint"),
        NoEffect("micro_batch_interleave_num", if_unsharded("the model is not sharded over cards")),
    )

    @field_validator("resume_training", mode="before")
    @classmethod
    def _resume_from(cls, value: Any) -> Any:
        if not isinstance(value, bool | str):
            raise ValueError(f"must be True, False or the name of a checkpoint, not {shown(value)}")
        return expanded(value) if isinstance(value, str) else value

    @field_validator("callbacks", "eval_callbacks")
    @classmethod
    def _without_effectless(cls, value: list[Section]) -> list[Section]:
        return [callback for callback in value if not isinstance(callback, IgnoredCallbackSection)]

    @property
    def trains(self) -> bool:
        """Whether the run mode is a training."""
        return self.run_mode in ("train", "finetune")

    def complete(self) -> None:
        refuse([*self._task_problems(), *self._training_problems(), *self._stage_problems()])
        self.fill(**self.replaced(dict(self._derived_values())).__dict__)

    def _derived_values(self) -> Iterator[tuple[str, Any]]:
        """The fields whose values follow from others, by dotted name."""
        if self.runner_config.batch_size is None:
            dataset = self.eval_dataset if self.run_mode == "eval" else self.train_dataset
            yield "runner_config.batch_size", dataset.batch_size or 1
        if self.lr_schedule is None and self.optimizer.learning_rate is not None:
            yield "lr_schedule", LRScheduleSection(learning_rate=self.optimizer.learning_rate)
        if self.metric.type is None:
            yield "metric.type", _METRICS_OF_TRAINER[self.trainer.type][0]
        for task in ("train_dataset_task", "eval_dataset_task"):
            yield f"{task}.type", _DATASET_OF_TRAINER[self.trainer.type]
        evaluates = EvalCallBackSection in map(type, self.callbacks) if self.do_eval is None else self.do_eval
        yield "do_eval", evaluates
        yield "callbacks", [*self.callbacks, *self._callbacks_of_other_keys(evaluates)]
        if self.train_precision_sync if self.trains else self.infer_precision_sync:
            yield "context.deterministic", True
        if self.predict_batch_size is not None:
            yield "model.config.batch_size", self.predict_batch_size

    def _callbacks_of_other_keys(self, evaluates: bool) -> Iterator[Section]:
        """The callbacks that are not listed, and that `do_eval` and `tensorboard` ask for."""
        listed = set(map(type, self.callbacks))
        if evaluates and EvalCallBackSection not in listed:
            intervals: dict[str, Any] = {"eval_steps": self.eval_step_interval, "eval_epochs": self.eval_epoch_interval}
            yield EvalCallBackSection(**intervals)  # None: the callback's default
        folder = self.tensorboard.tensorboard_dir if self.tensorboard else ""
        if folder and SummaryMonitorSection not in listed:
            yield SummaryMonitorSection(summary_dir=folder)

    def _task_problems(self) -> Iterator[tuple[str, str]]:
        arch, wanted = self.model.arch.type, _ARCH_OF_TRAINER[self.trainer.type]
        if arch != wanted:
            yield "model.arch.type", f"{arch!r} does not fit trainer.type {self.trainer.type!r}, which needs {wanted!r}"
        rows = _DATASET_OF_TRAINER[self.trainer.type]
        for name in ("train_dataset_task", "eval_dataset_task"):
            if (given := getattr(self, name).type) not in (None, rows):
                yield (
                    f"{name}.type",
                    f"{given!r} does not fit trainer.type {self.trainer.type!r}, which needs {rows!r}",
                )
        yield from self._classification_problems()
        inner = self.model.config.batch_size
        if self.predict_batch_size is not None and inner not in (None, self.predict_batch_size):
            yield "predict_batch_size", f"differs from model.model_config.batch_size, {inner}; keep one of the two"
        if self.profile and self.profile_stop_step < self.profile_start_step:
            yield "profile_stop_step", f"must be at least profile_start_step {self.profile_start_step}"

    def _classification_problems(self) -> Iterator[tuple[str, str]]:
        metrics = _METRICS_OF_TRAINER[self.trainer.type]
        if self.metric.type not in (None, *metrics):
            yield (
                "metric.type",
                f"{self.metric.type!r} does not fit trainer.type {self.trainer.type!r}, which has "
                f"{' or '.join(map(repr, metrics))}",
            )
        if self.trainer.type != "TextClassificationTrainer":
            for name in ("train_dataset", "eval_dataset"):
                if getattr(self, name).num_buckets is not None:
                    yield f"{name}.num_buckets", f"has no effect with trainer.type {self.trainer.type!r}"
            return
        for name in ("reset_attention_mask", "reset_position_ids"):
            if getattr(self.model.config, name):
                reason = "is for packed rows of a language model; a classifier's row is one text"
                yield f"model.model_config.{name}", reason
        weights, labels = self.trainer.class_weights, self.model.config.num_labels
        if labels < 2:
            yield "model.model_config.num_labels", f"must be at least 2 for classification, not {labels}"
        if isinstance(weights, list) and len(weights) != labels:
            yield "trainer.class_weights", f"has {len(weights)} factors, and model.model_config.num_labels is {labels}"

    def _stage_problems(self) -> Iterator[tuple[str, str]]:
        """Lists that do not fit the number of pipeline stages."""
        stages, network = self.parallel_config.pipeline_stage, self.model.config
        for key, problem in self.recompute_config.wrong_lengths(stages):
            yield f"recompute_config.{key}", problem
        offset, layers = network.offset, network.num_layers
        if isinstance(offset, list) and layers >= stages:
            if len(offset) != stages:
                yield "model.model_config.offset", f"has {len(offset)} numbers, and pipeline_stage is {stages}"
            elif sum(offset) != layers % stages:
                yield (
                    "model.model_config.offset",
                    f"{offset} adds up to {sum(offset)}, and must to {layers % stages}, the remainder of num_layers "
                    f"{layers} by pipeline_stage {stages}: a stage has {layers // stages} blocks and its number",
                )
            elif min(offset) + layers // stages < 1:
                stage = offset.index(min(offset))
                yield "model.model_config.offset", f"{offset} leaves stage {stage} (from 0) without a block"

    def _training_problems(self) -> Iterator[tuple[str, str]]:
        kinds = [callback.type for callback in self.callbacks]
        for kind in sorted(set(kinds)):
            if kinds.count(kind) > 1:
                yield "callbacks", f"lists {kind} {kinds.count(kind)} times; once is allowed"
        if self.do_eval is False and "EvalCallBack" in kinds:
            yield "do_eval", "is False, but callbacks lists an EvalCallBack; keep one of the two"
        rate = self.optimizer.learning_rate
        if self.lr_schedule is not None and rate is not None and rate != self.lr_schedule.learning_rate:
            yield (
                "optimizer.learning_rate",
                f"{rate} differs from lr_schedule.learning_rate {self.lr_schedule.learning_rate}, "
                "which counts; keep one of the two",
            )
        if self.optimizer.relative_step:
            if self.lr_schedule is not None:
                yield "lr_schedule", NO_LEARNING_RATE_WITH_RELATIVE_STEP
        elif self.trains and self.lr_schedule is None and rate is None:
            yield "lr_schedule", f"is missing, and run_mode {self.run_mode!r} needs lr_schedule.learning_rate"
