"""Several processes as one: coming together, and telling each other small things.

What is computed in a training step is reduced there (`mindgpt/train/step.py`); this is for what lies outside of it.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import init

from mindgpt.runtime.ranks import rank, world_size


def join_data_parallel() -> None:
    """Meet the other processes, each of which holds the whole model; returns when all are there.

    After the device is chosen and before anything is computed. Without a cluster it does nothing.
    """
    if world_size() > 1:
        init()
        ms.set_auto_parallel_context(parallel_mode="data_parallel", device_num=world_size(), gradients_mean=True)


def join_tensor_parallel() -> None:
    """Meet the other processes, each of which has a part of every layer (`models/gpt2/gpt2_tensor_parallel.py`)."""
    init()


@dataclass(frozen=True)
class Cut:
    """How a model will be cut, as far as MindSpore has to know before it is built.

    Attributes:
        stages: pipeline stages.
        shard_optimizer: data-parallel cards share out weights and optimizer state (ZeRO, Rajbhandari et al. 2020).
        strategy_folder: where each card writes how its parameters are cut, `ckpt_strategy_rank_<r>.ckpt`.
    """

    stages: int
    shard_optimizer: bool
    strategy_folder: Path

    @property
    def stage(self) -> int:
        """The pipeline stage of this process."""
        return rank() // (world_size() // self.stages)


def join_cut(cut: Cut) -> None:
    """Meet the other cards, over which MindSpore's semi-automatic parallelism will cut the model.

    Every card is given the whole batch, and the loss is the mean over it, so gradients are summed, not averaged.
    """
    init()
    cut.strategy_folder.mkdir(parents=True, exist_ok=True)
    ms.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        device_num=world_size(),
        global_rank=rank(),
        full_batch=True,
        gradients_mean=False,
        pipeline_stages=cut.stages,
        enable_parallel_optimizer=cut.shard_optimizer,
        strategy_ckpt_config={
            "save_file": str(cut.strategy_folder / f"ckpt_strategy_rank_{rank()}.ckpt"),
            "only_trainable_params": False,  # the weights that LoRA freezes are cut too
        },
    )


def data_parallel_ranks() -> int:
    """How many processes hold the whole model and share the rows of a step; 1 if it is one, or if the model is cut."""
    return world_size() if ms.get_auto_parallel_context("parallel_mode") == "data_parallel" else 1


def model_is_cut() -> bool:
    """Whether MindSpore's semi-automatic parallelism cuts the model over the cards."""
    return ms.get_auto_parallel_context("parallel_mode") == "semi_auto_parallel"


def cards_of_a_stage() -> int:
    """Over how many cards each stage of a model is cut; all of them if it has but one."""
    return world_size() // ms.get_auto_parallel_context("pipeline_stages")


def share(number: int) -> range:
    """Which of `number` pieces of work are this process's: every n-th of n data-parallel processes."""
    ranks = data_parallel_ranks()
    return range(rank() if ranks > 1 else 0, number, ranks)


def joined(mine: list[Any]) -> list[Any]:
    """The results of all processes, each of its `share`, in the order of the pieces; as `gathered`."""
    parts = gathered(mine) if data_parallel_ranks() > 1 else [mine]
    whole = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


class _Sum(nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)


@functools.cache
def _sum() -> _Sum:
    return _Sum()


def gathered(value: Any) -> list[Any]:
    """What each process has, in the order of their ranks; all processes must call it, and all get the same.

    Args:
        value: anything that JSON can hold. Numbers arrive bit for bit.
    """
    if world_size() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = [high * 256 + low for high, low in _filled_in(np.array([len(text) // 256, len(text) % 256])).tolist()]
    longest = 1 << (max(lengths) - 1).bit_length()  # graphs are compiled by shape: few shapes, few graphs
    rows = _filled_in(np.pad(text, (0, longest - len(text)))).astype(np.uint8)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _filled_in(mine: np.ndarray) -> np.ndarray:
    """(ranks, n) int64: `mine`, (n,) small whole numbers, of every process.

    A sum in which every process leaves the others' rows zero, in float32: on a CPU, MindSpore 2.10 sums nothing else.
    """
    rows = np.zeros((world_size(), len(mine)), np.float32)
    rows[rank()] = mine
    return _sum()(Tensor(rows)).asnumpy().astype(np.int64)
