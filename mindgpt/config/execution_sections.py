"""The sections of execution: device, epochs and batches, parallel layout, recomputation."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from mindgpt.config.no_effect import NoEffect, Run, if_data_parallel, if_sharded, if_unsharded, in_training, when
from mindgpt.config.parallel_settings import (
    NO_FUSION_BY_INDEX,
    AscendConfigSection,
    CommFusionSection,
    ParallelOptimizerSection,
    PipelineConfigSection,
)
from mindgpt.config.section import (
    ANY_VALUE,
    TO_BE_COMPLETED,
    CompletedCount,
    Count,
    CountOrZero,
    PathText,
    Section,
    any_value,
    one_of,
    only,
    refuse,
    shown,
)
from mindgpt.config.strategy import Strategy

_MEMORY_SIZE = re.compile(r"\d+(\.\d+)?GB")
_PARALLEL_MODES = {
    "stand_alone": "stand_alone",
    "data_parallel": "data_parallel",
    "semi_auto_parallel": "semi_auto_parallel",
}
_MODES = {"GRAPH_MODE": 0, "PYNATIVE_MODE": 1}  # MindFormers' names
_NUMBERED_PARALLEL_MODES = {0: "data_parallel", 1: "semi_auto_parallel"}  # MindFormers' numbers; 2 and 3 we do not do

JitLevel = Literal["O0", "O1", "O2"]


class JitConfigSection(Section):
    """`context.jit_config`."""

    jit_level: JitLevel | None = None

    ignored: ClassVar = {"exc_mode": ANY_VALUE, "jit_syntax_level": ANY_VALUE, "infer_boost": ANY_VALUE}


class ContextSection(Section):
    """`context`: the device and MindSpore's settings on it. None leaves a setting to MindSpore or to our runtime.

    `deterministic` is MindSpore's "ON" or "OFF" as a bool. Threads, caches and dumps of MindSpore are not set here.
    """

    mode: Literal[0, 1] = 0
    device_target: Literal["Ascend", "CPU"] | None = None
    device_id: CountOrZero | None = None
    jit_config: JitConfigSection = Field(default_factory=JitConfigSection)
    max_call_depth: Count | None = None
    max_device_memory: str | None = None
    memory_optimize_level: Literal["O0", "O1"] | None = None
    enable_graph_kernel: bool | None = None
    graph_kernel_flags: str | None = None
    save_graphs: bool | Literal[0, 1, 2, 3] = False
    save_graphs_path: PathText = "./graph"
    deterministic: bool = False
    ascend_config: AscendConfigSection = Field(default_factory=AscendConfigSection)

    ignored: ClassVar = any_value(
        "affinity_cpu_list mempool_block_size variable_memory_max_size graph_memory_max_size runtime_num_threads "
        "inter_op_parallel_num infer_boost op_timeout save_dump_path reserve_class_name_in_scope pynative_synchronize "
        "enable_reduce_precision check_bprop grad_for_scalar compile_cache_path disable_format_transform "
        "jit_syntax_level gpu_config debug_level exec_order env_config_path"
    ) | {
        "enable_compile_cache": ANY_VALUE,  # mindgpt keeps compiled graphs itself
        "enable_dump": only(False, reason="MindSpore's environment variable MINDSPORE_DUMP_CONFIG switches dumps on"),
        "print_file_path": only("", reason="nothing is printed from within a graph"),
        "precompile_only": only(False, reason="tools/dry_run.py checks a run without starting it"),
        "memory_offload": only(
            "OFF", False, reason="MindSpore 2.9 and 2.10 have no such setting; recompute_config saves memory"
        ),
        "support_binary": only(False, reason="mindgpt runs from its sources"),
    }

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`jit_level` may stand here as well as in `jit_config`."""
        level, inner = data.get("jit_level"), data.get("jit_config") or {}
        if level is None or not isinstance(inner, Mapping):
            return {key: value for key, value in data.items() if key != "jit_level"}
        if inner.get("jit_level", level) != level:
            refuse([("jit_level", f"differs from jit_config.jit_level, {shown(inner['jit_level'])}; keep one")])
        kept = {key: value for key, value in data.items() if key != "jit_level"}
        return kept | {"jit_config": {**inner, "jit_level": level}}

    @field_validator("deterministic", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        """YAML reads a bare ON as True."""
        if isinstance(value, str) and value.upper() in ("ON", "OFF"):
            return value.upper() == "ON"
        if not isinstance(value, bool):
            raise ValueError(f"must be ON or OFF, not {shown(value)}")
        return value

    @field_validator("save_graphs", mode="before")
    @classmethod
    def _is_a_level(cls, value: Any) -> Any:
        if not isinstance(value, bool) and value not in (0, 1, 2, 3):
            raise ValueError(f"must be True, False or a level from 0 to 3, not {shown(value)}")
        return value

    @field_validator("mode", mode="before")
    @classmethod
    def _not_a_truth_value(cls, value: Any) -> Any:
        if isinstance(value, str) and value in _MODES:
            return _MODES[value]
        if isinstance(value, bool):  # True == 1, which a Literal would let pass
            raise ValueError(f"must be 0 (graph) or 1 (pynative), not {value}")
        return value

    @field_validator("device_target", mode="before")
    @classmethod
    def _only_ascend_and_cpu(cls, value: Any) -> Any:
        if value not in ("Ascend", "CPU"):
            raise ValueError(f"must be 'Ascend', 'CPU' or absent (Ascend if there is one), not {shown(value)}")
        return value

    @field_validator("max_device_memory")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        if not _MEMORY_SIZE.fullmatch(value):
            raise ValueError(f"must be a size in GB such as '59GB', not {shown(value)}")
        return value


def why_no_data_sinking(run: Run) -> str | None:
    """Why a training run cannot use data sinking; None if it can."""
    if not run.config.trains:
        return None
    if run.target != "Ascend":
        return "on CPU batches are passed from the host one by one"
    if run.config.trainer.type == "TextClassificationTrainer":
        return "batches of several lengths are passed from the host one by one"
    return None


class RunnerConfigSection(Section):
    """`runner_config`. In a validated configuration `batch_size` always has a value.

    `batch_size` counts sequences per step and per data-parallel rank, before gradient accumulation.
    """

    epochs: Count = 1
    batch_size: CompletedCount = TO_BE_COMPLETED
    sink_mode: bool = False
    sink_size: Annotated[int, Field(ge=-1)] = 1
    gradient_accumulation_steps: Count = 1

    ignored: ClassVar = {
        "num_classes": ANY_VALUE,  # for image classification, like image_size
        "image_size": ANY_VALUE,
        "stop_step": only(0, -1, reason="epochs and train_dataset.num_samples say how long a run is"),
        "initial_epoch": only(0, reason="resume_training: True resumes a stopped run"),
        "has_trained_epoches": only(0, reason="resume_training: True resumes a stopped run"),
        "has_trained_steps": only(0, reason="resume_training: True resumes a stopped run"),
        "per_epoch_size": ANY_VALUE,  # steps per data-sink call
    }
    no_effect: ClassVar = (NoEffect("sink_mode", why_no_data_sinking),)

    @field_validator("sink_size")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (a whole epoch) or a number of steps of at least 1, not 0")
        return value


def _parallel_mode_name(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value not in _NUMBERED_PARALLEL_MODES:
            raise ValueError(f"must be 0 (data_parallel) or 1 (semi_auto_parallel), not {value}")
        return _NUMBERED_PARALLEL_MODES[value]
    return value


_STRATEGY_FILE = "./ckpt_strategy.ckpt"
_STRATEGY_FOLDER = in_training("strategy files go to {config.output_dir}/strategy")


class StrategyCheckpointSection(Section):
    """`parallel.strategy_ckpt_config`: the file that records how parameters are sharded."""

    save_file: PathText = _STRATEGY_FILE
    only_trainable_params: bool = False

    no_effect: ClassVar = (
        NoEffect("save_file", _STRATEGY_FOLDER),
        NoEffect("only_trainable_params", in_training("strategy files describe frozen weights, too")),
    )


_OF_SHARDED_MODELS = (
    "comm_fusion",
    "enable_alltoall",
    "force_fp32_communication",
    "gradient_fp32_sync",
)


class ParallelSection(Section):
    """`parallel`: how the devices share the work. `parallel_mode` is stored as MindSpore's name."""

    parallel_mode: Annotated[str, one_of(_PARALLEL_MODES), BeforeValidator(_parallel_mode_name)] = "data_parallel"
    gradients_mean: bool | None = None
    loss_repeated_mean: bool | None = None
    full_batch: bool | None = None
    enable_parallel_optimizer: bool = False
    strategy_ckpt_save_file: PathText = _STRATEGY_FILE
    strategy_ckpt_config: StrategyCheckpointSection | None = None
    parallel_optimizer_config: ParallelOptimizerSection = Field(default_factory=ParallelOptimizerSection)
    comm_fusion: CommFusionSection | None = None
    enable_alltoall: bool = False
    force_fp32_communication: bool = False
    gradient_fp32_sync: bool = True

    no_effect: ClassVar = (
        NoEffect("strategy_ckpt_save_file", _STRATEGY_FOLDER),
        NoEffect("full_batch", if_sharded("every card reads the whole batch and computes its shard"), value=False),
        NoEffect("gradients_mean", if_sharded("the loss is a mean over all rows, so gradients are summed"), value=True),
        NoEffect(
            "gradients_mean",
            if_data_parallel("data-parallel training uses the same gradients as a single process"),
            value=False,
        ),
        NoEffect(
            "loss_repeated_mean",
            if_sharded("a value that several cards compute redundantly is counted once"),
            value=False,
        ),
        *(NoEffect(key, if_unsharded("the model is not sharded over cards")) for key in _OF_SHARDED_MODELS),
    )

    ignored: ClassVar = any_value(
        "search_mode auto_parallel_search_mode global_rank pipeline_result_broadcast group_ckpt_save_file"
    ) | {
        "device_num": ANY_VALUE,  # the launcher says how many processes there are, and which one this is
        "all_reduce_fusion_config": only([], reason=NO_FUSION_BY_INDEX),
        "parameter_broadcast": ANY_VALUE,  # processes begin equal, which is checked
        "pipeline_config": PipelineConfigSection,
        "dataset_strategy": only(
            "full_batch",
            "data_parallel",
            allows=lambda value: _shards_rows_only(value),
            reason="only the batch dimension can be sharded, as in [[8, 1], [8, 1]]",
        ),
        "pipeline_stages": only(1, reason="the key is parallel_config.pipeline_stage"),
        "grad_accumulation_step": only(1, reason="the key is runner_config.gradient_accumulation_steps"),
        "strategy_ckpt_load_file": only(
            "",
            reason="parallel_config sets the layout of a run; src_strategy_path_or_dir gives the layout of "
            "load_checkpoint",
        ),
        "auto_pipeline": only(False, reason="layers are shared out evenly over pipeline stages"),
    }

    def given(self) -> dict[str, Any]:
        """The settings that go to MindSpore as they are, for a sharded model, under MindSpore's names."""
        settings = {key: getattr(self, key) for key in _OF_SHARDED_MODELS}
        settings["parallel_optimizer_config"] = self.parallel_optimizer_config
        return {
            key: value.given() if isinstance(value, CommFusionSection | ParallelOptimizerSection) else value
            for key, value in settings.items()
            if value is not None
        }


def _shards_rows_only(value: Any) -> bool:
    """Whether a `dataset_strategy` shards the rows of each column, and no other dimension."""
    return isinstance(value, list) and all(
        isinstance(column, list) and column and all(shards == 1 for shards in column[1:]) for column in value
    )


_WHOLE_VOCABULARY = (
    "model_parallel {config.parallel_config.model_parallel} does not divide vocab_size "
    "{config.model.config.vocab_size}, so every card keeps the whole vocabulary; with rows of padding "
    "(model.model_config.unpadded_vocab_size) it can be divided"
)


def _cannot_shard_vocabulary(run: Run) -> bool:
    return (
        run.strategy is Strategy.SEMI_AUTO
        and run.config.model.config.vocab_size % run.config.parallel_config.model_parallel != 0
    )


_ONE_STAGE = (
    "there is only one pipeline stage; runner_config.gradient_accumulation_steps splits a step into micro-batches"
)


def _has_one_stage(run: Run) -> bool:
    return run.config.trains and run.config.use_parallel and run.config.parallel_config.pipeline_stage == 1


class ParallelConfigSection(Section):
    """`parallel_config`: the layout. data_parallel x model_parallel x pipeline_stage must be the number of devices."""

    data_parallel: Count = 1
    model_parallel: Count = 1
    pipeline_stage: Count = 1
    use_seq_parallel: bool = False
    micro_batch_num: Count = 1
    vocab_emb_dp: bool = True
    optimizer_shard: bool | None = None
    gradient_aggregation_group: Count = 4

    ignored: ClassVar = {
        "expert_parallel": only(1, reason="mindgpt has no mixture of experts"),
        "context_parallel": only(
            1,
            reason="a sequence is not sharded over cards: attention needs all keys of a row, and nothing here "
            "exchanges them. For long rows take use_flash_attention, model_parallel with use_seq_parallel, and "
            "recompute_config.recompute (docs/parallel.md, Long rows)",
        ),
        "context_parallel_algo": ANY_VALUE,  # without context_parallel these two mean nothing
        "ulysses_degree_in_cp": ANY_VALUE,
        "seq_split_num": only(
            1, reason="pipelining does not split sequences; micro_batch_num splits a batch into micro-batches"
        ),
        "mem_coeff": ANY_VALUE,  # used only by MindSpore's automatic search for a layout
    }
    no_effect: ClassVar = (
        NoEffect("vocab_emb_dp", when(_cannot_shard_vocabulary, _WHOLE_VOCABULARY)),
        NoEffect(
            "gradient_aggregation_group",
            if_data_parallel("without model sharding, all gradients are all-reduced together"),
        ),
        NoEffect("micro_batch_num", when(_has_one_stage, _ONE_STAGE)),
    )
