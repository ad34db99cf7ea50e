"""The sections of execution: device, epochs and batches, parallel layout, recomputation."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from mindgpt.config.section import ANY_VALUE, Count, CountOrZero, PathText, Section, one_of, only, refuse, shown
from mindgpt.config.strategy import Strategy
from mindgpt.config.unsupported import AscendConfigSection, ParallelOptimizerSection, PipelineConfigSection

if TYPE_CHECKING:
    from mindgpt.config.run_config import RunConfig
    from mindgpt.config.strategy import Run

_MEMORY_SIZE = re.compile(r"\d+(\.\d+)?GB")
_PARALLEL_MODES = {
    "stand_alone": "stand_alone",
    "data_parallel": "data_parallel",
    "semi_auto_parallel": "semi_auto_parallel",
}
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

    ignored: ClassVar = dict.fromkeys(
        (
            "affinity_cpu_list",
            "mempool_block_size",
            "variable_memory_max_size",
            "graph_memory_max_size",
            "runtime_num_threads",
            "inter_op_parallel_num",
            "infer_boost",
            "op_timeout",
            "save_dump_path",
            "reserve_class_name_in_scope",
            "pynative_synchronize",
            "enable_reduce_precision",
            "check_bprop",
            "grad_for_scalar",
            "enable_compile_cache",  # mindgpt keeps compiled graphs itself
            "compile_cache_path",
            "disable_format_transform",
            "jit_syntax_level",
            "gpu_config",
            "debug_level",
            "exec_order",
            "env_config_path",
        ),
        ANY_VALUE,
    ) | {
        "ascend_config": AscendConfigSection,
        "enable_dump": only(False, reason="MindSpore's environment variable MINDSPORE_DUMP_CONFIG switches dumps on"),
        "print_file_path": only("", reason="nothing is printed from within a graph"),
        "precompile_only": only(False, reason="tools/dry_run.py checks a run without starting it"),
        "memory_offload": only(
            "OFF", False, reason="mindgpt keeps everything on the card; recompute_config saves memory"
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


class RunnerConfigSection(Section):
    """`runner_config`. In a validated configuration `batch_size` always has a value.

    `batch_size` counts sequences per step and per data-parallel rank, before gradient accumulation.
    """

    epochs: Count = 1
    batch_size: Count | None = None
    sink_mode: bool = False
    sink_size: Annotated[int, Field(ge=-1)] = 1
    gradient_accumulation_steps: Count = 1

    ignored: ClassVar = {
        "num_classes": ANY_VALUE,  # of pictures, as the next
        "image_size": ANY_VALUE,
        "stop_step": only(0, -1, reason="epochs and train_dataset.num_samples say how long a run is"),
        "initial_epoch": only(0, reason="resume_training: True goes on where a run stopped"),
        "has_trained_epoches": only(0, reason="resume_training: True goes on where a run stopped"),
        "has_trained_steps": only(0, reason="resume_training: True goes on where a run stopped"),
        "per_epoch_size": ANY_VALUE,  # the steps that a device is given at once
    }

    @field_validator("sink_size")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (a whole epoch) or a number of steps of at least 1, not 0")
        return value

    def without_effect(self, run: "Run") -> Iterator[tuple[str, str]]:
        if run.config.trains and self.sink_mode and (reason := self.why_no_sink(run.config, run.target)):
            yield "sink_mode: True", reason

    def why_no_sink(self, config: "RunConfig", target: str) -> str | None:
        """Why a training cannot feed its data through the device; None: it can."""
        if target != "Ascend":
            return "on CPU batches are handed over one by one"
        if self.gradient_accumulation_steps > 1:
            return "gradient accumulation hands over its micro-batches one by one"
        if config.trainer.type == "TextClassificationTrainer":
            return "batches of several lengths are handed over one by one"
        return None


def _parallel_mode_name(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value not in _NUMBERED_PARALLEL_MODES:
            raise ValueError(f"must be 0 (data_parallel) or 1 (semi_auto_parallel), not {value}")
        return _NUMBERED_PARALLEL_MODES[value]
    return value


_STRATEGY_FILE = "./ckpt_strategy.ckpt"


class StrategyCheckpointSection(Section):
    """`parallel.strategy_ckpt_config`: the file that records how parameters are sharded."""

    save_file: PathText = _STRATEGY_FILE
    only_trainable_params: bool = False

    def without_effect(self, run: "Run") -> Iterator[tuple[str, str]]:
        if not run.config.trains:
            return
        if self.save_file != _STRATEGY_FILE:
            yield "save_file", f"strategy files go to {run.config.output_dir}/strategy"
        if self.only_trainable_params:
            yield "only_trainable_params: True", "strategy files describe frozen weights, too"


class ParallelSection(Section):
    """`parallel`: how the devices share the work. `parallel_mode` is stored as MindSpore's name."""

    parallel_mode: Annotated[str, one_of(_PARALLEL_MODES), BeforeValidator(_parallel_mode_name)] = "data_parallel"
    gradients_mean: bool | None = None
    loss_repeated_mean: bool | None = None
    full_batch: bool | None = None
    enable_parallel_optimizer: bool = False
    strategy_ckpt_save_file: PathText = _STRATEGY_FILE
    strategy_ckpt_config: StrategyCheckpointSection | None = None

    ignored: ClassVar = dict.fromkeys(
        (
            "search_mode",
            "auto_parallel_search_mode",
            "device_num",  # the launcher says how many processes there are, and which one this is
            "global_rank",
            "parameter_broadcast",  # processes begin equal, which is checked
            "gradient_fp32_sync",
            "enable_alltoall",
            "all_reduce_fusion_config",
            "comm_fusion",
            "force_fp32_communication",
            "pipeline_result_broadcast",
            "group_ckpt_save_file",
        ),
        ANY_VALUE,
    ) | {
        "parallel_optimizer_config": ParallelOptimizerSection,
        "pipeline_config": PipelineConfigSection,
        "dataset_strategy": only(
            "full_batch",
            "data_parallel",
            allows=lambda value: _shards_rows_only(value),
            reason="only the rows of a batch are shared out: lists such as [[8, 1], [8, 1]]",
        ),
        "pipeline_stages": only(1, reason="the key is parallel_config.pipeline_stage"),
        "grad_accumulation_step": only(1, reason="the key is runner_config.gradient_accumulation_steps"),
        "strategy_ckpt_load_file": only(
            "",
            reason="the layout of a run is what parallel_config says; for that of load_checkpoint there is "
            "src_strategy_path_or_dir",
        ),
        "auto_pipeline": only(False, reason="layers are shared out evenly over pipeline stages"),
    }

    def without_effect(self, run: "Run") -> Iterator[tuple[str, str]]:
        if not run.config.trains:
            return
        if self.strategy_ckpt_save_file != _STRATEGY_FILE:
            yield "strategy_ckpt_save_file", f"strategy files go to {run.config.output_dir}/strategy"
        if run.strategy is Strategy.SEMI_AUTO:
            if self.full_batch is False:
                yield "full_batch: False", "every card reads the whole batch and computes its shard"
            if self.gradients_mean:
                yield "gradients_mean: True", "the loss is a mean over all rows, so gradients are summed"
            if self.loss_repeated_mean is False:
                yield "loss_repeated_mean: False", "what several cards compute counts once"
        elif run.config.use_parallel and self.gradients_mean is False:
            yield "gradients_mean: False", "data-parallel processes compute what one process computes"


def _shards_rows_only(value: Any) -> bool:
    """Whether a `dataset_strategy` shards the rows of each column, and no other dimension."""
    return isinstance(value, list) and all(
        isinstance(column, list) and column and all(shards == 1 for shards in column[1:]) for column in value
    )


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
        "context_parallel": only(1, reason="a sequence is not sharded over cards; use_seq_parallel saves memory"),
        "context_parallel_algo": ANY_VALUE,  # without context_parallel these two mean nothing
        "ulysses_degree_in_cp": ANY_VALUE,
        "seq_split_num": only(1, reason="pipeline stages take whole sequences; micro_batch_num divides a batch"),
        "mem_coeff": ANY_VALUE,  # of the automatic search for a layout
    }

    def without_effect(self, run: "Run") -> Iterator[tuple[str, str]]:
        if not run.config.trains:
            return
        vocab_size = run.config.model.config.vocab_size
        if run.strategy is not Strategy.SEMI_AUTO:
            group = self.gradient_aggregation_group
            if run.config.use_parallel and group != type(self).model_fields["gradient_aggregation_group"].default:
                yield "gradient_aggregation_group", "the gradients of a model that is not sharded travel together"
        elif self.model_parallel > 1 and not self.vocab_emb_dp and vocab_size % self.model_parallel:
            yield (
                "vocab_emb_dp: False",
                f"model_parallel {self.model_parallel} does not divide vocab_size {vocab_size}, so every card keeps "
                "the whole vocabulary",
            )
        if run.config.use_parallel and self.micro_batch_num > 1 and self.pipeline_stage == 1:
            yield (
                "micro_batch_num",
                "there are no pipeline stages; runner_config.gradient_accumulation_steps divides a step",
            )


_ONE_ANSWER = "must be True or False, for all blocks alike: layers of single stages cannot be chosen"


def _for_all_blocks(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"{_ONE_ANSWER}; not {shown(value)}")
    return value


Recompute = Annotated[bool, BeforeValidator(_for_all_blocks)]


class RecomputeSection(Section):
    """`recompute_config`: which activations are recomputed in the backward pass rather than kept."""

    recompute: Recompute = False
    select_recompute: Recompute = False
    parallel_optimizer_comm_recompute: Recompute = False
    mp_comm_recompute: Recompute = True
    recompute_slice_activation: Recompute = False

    ignored: ClassVar = {
        "select_comm_recompute": only(False, [], {}, reason="the key is mp_comm_recompute, for all blocks alike"),
        "select_recompute_exclude": only(False, [], {}, reason="single operators cannot be left out of recomputation"),
        "select_comm_recompute_exclude": only(
            False, [], {}, reason="single operators cannot be left out of recomputation"
        ),
    }

    def without_effect(self, run: "Run") -> Iterator[tuple[str, str]]:
        sharding_keys = {
            "recompute_slice_activation": self.recompute_slice_activation,
            "parallel_optimizer_comm_recompute": self.parallel_optimizer_comm_recompute,
            "mp_comm_recompute": not self.mp_comm_recompute,
        }
        set_keys = [key for key, is_set in sharding_keys.items() if is_set]
        if run.config.trains and run.strategy is not Strategy.SEMI_AUTO and set_keys:
            yield ", ".join(set_keys), "the model is not sharded over cards"
