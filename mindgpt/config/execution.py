"""The sections about where and how a job runs: device, epochs and batches, parallel layout, recomputation."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from mindgpt.config.section import ANY_VALUE, Count, CountOrZero, PathText, Section, one_of, shown

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


class ContextSection(Section):
    """`context`: the device and MindSpore's settings on it. None leaves a setting to MindSpore or to our runtime."""

    mode: Literal[0, 1] = 0
    device_target: Literal["Ascend", "CPU"] | None = None
    device_id: CountOrZero | None = None
    jit_config: JitConfigSection = Field(default_factory=JitConfigSection)
    max_call_depth: Count | None = None
    max_device_memory: str | None = None
    memory_optimize_level: Literal["O0", "O1"] | None = None
    enable_graph_kernel: bool | None = None
    graph_kernel_flags: str | None = None
    save_graphs: bool = False
    save_graphs_path: PathText = "./graph"

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
    """`runner_config`. After the whole configuration is validated, `batch_size` always has a value.

    `batch_size` counts sequences per step and per data-parallel rank, before gradient accumulation.
    """

    epochs: Count = 1
    batch_size: Count | None = None
    sink_mode: bool = False
    sink_size: Annotated[int, Field(ge=-1)] = 1
    gradient_accumulation_steps: Count = 1

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


class StrategyCheckpointSection(Section):
    """`parallel.strategy_ckpt_config`: the file that records how parameters are sliced."""

    save_file: PathText = "./ckpt_strategy.ckpt"
    only_trainable_params: bool = False


class ParallelSection(Section):
    """`parallel`: how the cards share the work. `parallel_mode` is stored as MindSpore's name."""

    parallel_mode: Annotated[str, one_of(_PARALLEL_MODES), BeforeValidator(_parallel_mode_name)] = "data_parallel"
    gradients_mean: bool | None = None
    loss_repeated_mean: bool | None = None
    full_batch: bool | None = None
    enable_parallel_optimizer: bool = False
    strategy_ckpt_save_file: PathText = "./ckpt_strategy.ckpt"
    strategy_ckpt_config: StrategyCheckpointSection | None = None

    ignored: ClassVar = {"search_mode": ANY_VALUE}


class ParallelConfigSection(Section):
    """`parallel_config`: the layout. data_parallel x model_parallel x pipeline_stage must be the number of cards."""

    data_parallel: Count = 1
    model_parallel: Count = 1
    pipeline_stage: Count = 1
    use_seq_parallel: bool = False
    micro_batch_num: Count = 1
    vocab_emb_dp: bool = True
    optimizer_shard: bool | None = None
    gradient_aggregation_group: Count = 4

    ignored: ClassVar = {"expert_parallel": 1, "context_parallel": 1}


class RecomputeSection(Section):
    """`recompute_config`: which activations are computed again in the backward pass rather than kept."""

    recompute: bool = False
    select_recompute: bool = False
    parallel_optimizer_comm_recompute: bool = False
    mp_comm_recompute: bool = True
    recompute_slice_activation: bool = False


class MoESection(Section):
    """`moe_config`: mixture of experts, which mindgpt does not do. One expert is the plain network."""

    ignored: ClassVar = {
        "expert_num": 1,
        "capacity_factor": ANY_VALUE,
        "aux_loss_factor": ANY_VALUE,
        "num_experts_chosen": 1,
    }
