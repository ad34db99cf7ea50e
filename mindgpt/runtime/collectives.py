"""Several processes as one: joining them, and exchanging small values.

The collectives of a training step are in `mindgpt/train/step.py`; these are for what happens outside of it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import create_group, init

from mindgpt.config.strategy import Strategy
from mindgpt.runtime.ranks import rank, world_size

_strategy = Strategy.SINGLE


@dataclass(frozen=True)
class Sharding:
    """How a model will be sharded for training, as far as MindSpore has to know before it is built.

    Attributes:
        stages: pipeline stages.
        shard_optimizer: weights and optimizer state are sharded over data-parallel ranks (ZeRO, Rajbhandari et al.
            2020).
        strategy_folder: where each rank writes how its parameters are sharded, `ckpt_strategy_rank_<r>.ckpt`.
        settings: further arguments of `mindspore.set_auto_parallel_context`.
    """

    stages: int
    shard_optimizer: bool
    strategy_folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> int:
        """The pipeline stage of this process."""
        return rank() // (world_size() // self.stages)


def join(strategy: Strategy, sharding: Sharding | None = None) -> None:
    """Meet the other processes of a run; returns when all are there. Without others it does nothing.

    Call it once, after the device is chosen and before anything is computed. Under `SEMI_AUTO` every rank is given the
    whole batch, and the loss is the mean over it, so gradients are summed, not averaged.

    Args:
        strategy: of the run; `strategy()` returns it from now on.
        sharding: for `SEMI_AUTO`.
    """
    global _strategy
    _strategy = strategy
    if strategy is not Strategy.SINGLE:
        init()
    if strategy is Strategy.DATA_PARALLEL:
        ms.set_auto_parallel_context(parallel_mode="data_parallel", device_num=world_size(), gradients_mean=True)
    elif strategy is Strategy.SEMI_AUTO:
        sharding.strategy_folder.mkdir(parents=True, exist_ok=True)
        ms.set_auto_parallel_context(
            parallel_mode="semi_auto_parallel",
            device_num=world_size(),
            global_rank=rank(),
            full_batch=True,
            gradients_mean=False,
            pipeline_stages=sharding.stages,
            enable_parallel_optimizer=sharding.shard_optimizer,
            strategy_ckpt_config={
                "save_file": str(sharding.strategy_folder / f"ckpt_strategy_rank_{rank()}.ckpt"),
                "only_trainable_params": False,  # the weights that LoRA freezes are sharded too
            },
            **sharding.settings,
        )


def strategy() -> Strategy:
    """How the run of this process is spread; `SINGLE` before `join`."""
    return _strategy


def data_parallel_ranks() -> int:
    """How many processes hold the whole model and share the rows of a step; 1 if it is one, or the model is sharded."""
    return world_size() if _strategy is Strategy.DATA_PARALLEL else 1


def ranks_per_stage() -> int:
    """Over how many ranks each pipeline stage of a model is sharded; all of them if it has but one stage."""
    return world_size() // ms.get_auto_parallel_context("pipeline_stages")


def neighbours(ranks: int) -> str:
    """The group of so many consecutive ranks that this one is in: a model-parallel group, if `ranks` are that many."""
    first = rank() // ranks * ranks
    name = f"ranks_{first}_to_{first + ranks - 1}"
    create_group(name, list(range(first, first + ranks)))
    return name


def share(number: int) -> range:
    """Which of `number` pieces of work are this process's: every n-th of n data-parallel processes."""
    ranks = data_parallel_ranks()
    return range(rank() if ranks > 1 else 0, number, ranks)


def gather_shares(mine: list[Any]) -> list[Any]:
    """The results of all processes, each of its `share`, in the order of the pieces; as `gather_objects`."""
    shares = gather_objects(mine) if data_parallel_ranks() > 1 else [mine]
    results = [None] * sum(map(len, shares))
    for number, of_rank in enumerate(shares):
        results[number :: len(shares)] = of_rank
    return results


class _AllReduce(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)


@functools.cache
def _all_reduce() -> _AllReduce:
    return _AllReduce()


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks. All processes must call it.

    Args:
        value: anything that JSON can hold. Numbers arrive bit for bit.
    """
    if world_size() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = [high * 256 + low for high, low in _all_gather(np.array([len(text) // 256, len(text) % 256])).tolist()]
    longest = 1 << (max(lengths) - 1).bit_length()  # graphs are compiled by shape: few shapes, few graphs
    rows = _all_gather(np.pad(text, (0, longest - len(text)))).astype(np.uint8)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _all_gather(mine: np.ndarray) -> np.ndarray:
    """(ranks, n) int64: `mine`, (n,) small whole numbers, of every process.

    An AllReduce in which every process leaves the others' rows zero, in float32: on a CPU, MindSpore 2.10 sums nothing
    else.
    """
    rows = np.zeros((world_size(), len(mine)), np.float32)
    rows[rank()] = mine
    return _all_reduce()(Tensor(rows)).asnumpy().astype(np.int64)
