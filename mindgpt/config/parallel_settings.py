"""Groups of keys that go to MindSpore as they are: `context.ascend_config` and, of `parallel`, how messages are fused,
what the optimizer shards and in which order pipeline stages compute.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mindgpt.config.no_effect import NoEffect, Run, when
from mindgpt.config.section import ANY_VALUE, Count, CountOrZero, PathText, Section, only, refuse
from mindgpt.config.strategy import Strategy
from mindgpt.config.unsupported import INTERLEAVED_STAGES


class AscendConfigSection(Section):
    """`context.ascend_config`: settings of the Ascend back end. None leaves a setting to MindSpore.

    `parallel_speed_up_json_path` is a file of switches, a JSON object; `mindgpt.runtime.speed_up` lists them.
    """

    jit_compile: bool | None = None
    atomic_clean_policy: Literal[0, 1] | None = None
    hccl_watchdog: bool | None = None
    host_scheduling_max_threshold: CountOrZero | None = None
    op_debug_option: Literal["oom"] | None = None
    topo_order: dict[str, Literal["bfs", "dfs", "rdfs"]] | None = None
    parallel_speed_up_json_path: PathText = ""

    ignored: ClassVar = {
        "precision_mode": only(
            "must_keep_origin_dtype",
            reason="the precision is what model.model_config says (compute_dtype, softmax_compute_type and the like)",
        ),
        "matmul_allow_hf32": only(
            False, reason="it would compute float32 products in fewer bits; set model.model_config.compute_dtype"
        ),
        "op_precision_mode": only("", reason="the precision of single operators cannot be set"),
        "ge_options": only({}, "", reason="options of the graph engine are not handed on"),
        "conv_allow_hf32": ANY_VALUE,  # GPT-2 has no convolution
        "exception_dump": ANY_VALUE,  # MindSpore has removed it
    }

    def given(self) -> dict[str, Any]:
        """The settings that are given, under MindSpore's names."""
        return {key: value for key, value in self.model_dump().items() if value not in (None, "")}


NO_FUSION_BY_INDEX = (
    "messages are not grouped by the place of a weight in the network; parallel_config.gradient_aggregation_group says "
    "how many blocks send their gradients together, or comm_fusion a size"
)


def _by_size(value: Any) -> Any:
    if value == "index":
        raise ValueError(f"must be 'auto' or 'size', not 'index': {NO_FUSION_BY_INDEX}")
    return value


class FusionSection(Section):
    """`parallel.comm_fusion.<kind>`: how messages of a kind are fused. `config` is a size in MB for mode "size"."""

    mode: Annotated[Literal["auto", "size"], BeforeValidator(_by_size)]
    config: Count | None = None

    def complete(self) -> None:
        if (self.config is None) != (self.mode == "auto"):
            wanted = "absent" if self.mode == "auto" else "a number of MB"
            refuse([("config", f"must be {wanted} with mode {self.mode!r}, not {self.config!r}")])


class CommFusionSection(Section):
    """`parallel.comm_fusion`: messages of gradients and weights that travel as one."""

    openstate: bool = True
    allreduce: FusionSection | None = None
    allgather: FusionSection | None = None
    reducescatter: FusionSection | None = None

    def given(self) -> dict[str, Any]:
        """MindSpore's form of it."""
        kinds = self.model_dump(exclude={"openstate"}, exclude_none=True)
        return {"openstate": self.openstate} | {kind: {"config": None} | value for kind, value in kinds.items()}


WHOLE_SUMS = (
    "gradients are summed whole, and weights are gathered once in a step; that a step is right with MindSpore's other "
    "levels has not been shown"
)


def _shards_no_optimizer(run: Run) -> bool:
    config = run.config
    wanted = config.parallel_config.optimizer_shard
    shards = config.parallel.enable_parallel_optimizer if wanted is None else wanted
    return config.trains and not (shards and run.strategy is Strategy.SEMI_AUTO)


class ParallelOptimizerSection(Section):
    """`parallel.parallel_optimizer_config`: which weights and optimizer state are sharded, and over how many cards.

    Weights below `parallel_optimizer_threshold` KB stay whole (at 0, MindSpore 2.10 breaks off). The cards that hold
    the same weight shard it in groups of `optimizer_weight_shard_size`; -1: all of them.
    """

    parallel_optimizer_threshold: Count = 64
    optimizer_weight_shard_size: int = Field(default=-1, ge=-1)

    ignored: ClassVar = {
        "gradient_accumulation_shard": only(False, reason=WHOLE_SUMS),
        "optimizer_level": only("level1", reason=WHOLE_SUMS),
    }
    no_effect: ClassVar = tuple(
        NoEffect(key, when(_shards_no_optimizer, "the optimizer is not sharded over cards"))
        for key in ("parallel_optimizer_threshold", "optimizer_weight_shard_size")
    )

    def complete(self) -> None:
        if self.optimizer_weight_shard_size == 0:
            refuse([("optimizer_weight_shard_size", "must be -1 (all cards) or a number of cards, not 0")])

    def given(self) -> dict[str, Any]:
        """MindSpore's form of it."""
        return self.model_dump()


class PipelineConfigSection(Section):
    """`parallel.pipeline_config`: the order in which pipeline stages compute."""

    ignored: ClassVar = {
        "pipeline_interleave": only(False, reason=INTERLEAVED_STAGES),
        "pipeline_scheduler": only("1f1b", "", reason="without interleaved stages MindSpore 2.10 has this order alone"),
    }
