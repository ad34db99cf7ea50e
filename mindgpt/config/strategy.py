"""How a run is spread over processes: one `Strategy`, computed once from the resolved configuration."""

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindgpt.config.run_config import RunConfig


class Strategy(Enum):
    """How a run is spread over processes, each with a device of its own."""

    SINGLE = "single"
    """One process."""
    DATA_PARALLEL = "data_parallel"
    """Every process has the whole model and its share of the rows."""
    SEMI_AUTO = "semi_auto"
    """Training: MindSpore's semi-automatic parallelism shards the model by `parallel_config`."""
    TENSOR_PARALLEL = "tensor_parallel"
    """Evaluation and prediction: every process has its share of the heads and widths of every layer."""


def asks_for_semi_auto(config: "RunConfig") -> bool:
    """Whether the configuration asks for a model that is sharded over several devices."""
    return config.use_parallel and config.parallel.parallel_mode == "semi_auto_parallel"


def strategy_of(config: "RunConfig", target: str, processes: int) -> Strategy:
    """The strategy of a run on `processes` devices of the kind `target` ("Ascend" or "CPU")."""
    if processes == 1:
        return Strategy.SINGLE
    if target != "Ascend" or not asks_for_semi_auto(config):
        return Strategy.DATA_PARALLEL
    if config.trains:
        return Strategy.SEMI_AUTO
    section = config.parallel_config
    return Strategy.TENSOR_PARALLEL if section.model_parallel * section.pipeline_stage > 1 else Strategy.DATA_PARALLEL
