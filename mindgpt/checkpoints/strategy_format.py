"""MindSpore's strategy files, which say how each parameter is sharded over the ranks of a parallel run.

`output/strategy/ckpt_strategy_rank_<r>.ckpt` is a protobuf message (`node_strategy.proto` of MindSpore, whose reader is
used). For every parameter of the rank's pipeline stage it holds:

- a device matrix, whose cells are the ranks of the stage in order, the last axis fastest;
- for each dimension of the parameter, the axes of that matrix that shard it, counted from the right, or -1;
- over how many of the replicas the first dimension is sharded again (optimizer sharding).

The parameter's full shape follows from the shape of a shard.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.tensor_source import Box
from mindgpt.config.errors import UserError
from mindgpt.io.files import open_to_read

_RANK_IN_NAME = re.compile(r"_rank_(\d+)\.ckpt$")
_STAGE_IN_NAME = re.compile(r"^(\d+)-")  # of a parameter name, in a file that merge_pipeline_strategys wrote


@dataclass(frozen=True)
class TensorLayout:
    """How a parameter is sharded over the ranks of one pipeline stage.

    Attributes:
        device_matrix: its product is the number of ranks in the stage.
        tensor_map: for each dimension, the axes of the device matrix that shard it, outermost first, from the left.
        optimizer_shards: over how many replicas the first dimension is sharded again.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    optimizer_shards: int = 1

    @property
    def ranks(self) -> int:
        """Ranks in the stage."""
        return math.prod(self.device_matrix)

    @cached_property
    def shards(self) -> tuple[int, ...]:
        """The number of shards along each dimension."""
        shards = [math.prod(self.device_matrix[axis] for axis in axes) for axes in self.tensor_map]
        if shards:
            shards[0] *= self.optimizer_shards
        return tuple(shards)

    @property
    def is_whole(self) -> bool:
        """Whether every rank of the stage holds the whole parameter."""
        return all(count == 1 for count in self.shards)

    def full_shape(self, shard_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The parameter's shape, from that of any rank's shard."""
        return tuple(size * count for size, count in zip(shard_shape, self._shards_of(shard_shape), strict=True))

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a parameter of that full shape can be sharded so."""
        return len(self.tensor_map) in (0, len(shape)) and all(
            size % count == 0 for size, count in zip(shape, self._shards_of(shape), strict=True)
        )

    def box(self, local_rank: int, shape: tuple[int, ...]) -> Box:
        """The place of a rank's shard in a parameter.

        Args:
            local_rank: number of the rank within its stage.
            shape: full shape of the parameter; `divides(shape)` is true.
        """
        coordinates = self._coordinates(local_rank)
        indices = [
            _mixed_radix((coordinates[axis], self.device_matrix[axis]) for axis in axes) for axes in self.tensor_map
        ]
        if indices and self.optimizer_shards > 1:
            used = {axis for axes in self.tensor_map for axis in axes}
            unused = [axis for axis in range(len(self.device_matrix)) if axis not in used]
            replica = _mixed_radix((coordinates[axis], self.device_matrix[axis]) for axis in unused)
            indices[0] = indices[0] * self.optimizer_shards + replica % self.optimizer_shards
        sizes = [size // count for size, count in zip(shape, self._shards_of(shape), strict=True)]
        indices = indices or [0] * len(shape)
        return tuple(slice(index * size, (index + 1) * size) for index, size in zip(indices, sizes, strict=True))

    def _shards_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shards or (1,) * len(shape)  # an empty tensor map: not sharded, whatever the shape

    def _coordinates(self, local_rank: int) -> list[int]:
        coordinates = []
        for size in reversed(self.device_matrix):
            local_rank, coordinate = divmod(local_rank, size)
            coordinates.append(coordinate)
        return coordinates[::-1]


def _mixed_radix(digits: Any) -> int:
    """The number with the digits (digit, base), the most significant first."""
    number = 0
    for digit, base in digits:
        number = number * base + digit
    return number


@dataclass(frozen=True)
class ShardingStrategy:
    """How the parameters of a run are sharded over its ranks.

    Attributes:
        path: the file or folder it was read from.
        stages: for each pipeline stage, the layouts of the parameters that it holds, by name.
        ranks_per_stage: rank r is in stage r // ranks_per_stage.
    """

    path: Path
    stages: tuple[Mapping[str, TensorLayout], ...]
    ranks_per_stage: int

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return len(self.stages) * self.ranks_per_stage

    @cached_property
    def names(self) -> frozenset[str]:
        """The parameters of all stages."""
        return frozenset(name for stage in self.stages for name in stage)

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds the whole model, as in data parallel training."""
        return len(self.stages) == 1 and all(layout.is_whole for layout in self.stages[0].values())

    def stages_of(self, name: str) -> list[int]:
        """The stages that hold a parameter, the owner first."""
        return [number for number, stage in enumerate(self.stages) if name in stage]


def read_strategy(path: Path) -> ShardingStrategy:
    """Read a run's folder of strategy files, the one file of a run without pipeline stages, or a merged file.

    Raises:
        UserError: it does not exist, holds no strategy, is incomplete, or its files contradict each other.
    """
    files = _strategy_files(path)
    stages: dict[int, dict[str, TensorLayout]] = {}
    origin: dict[int, Path] = {}
    seen: set[bytes] = set()
    for file in files:
        with open_to_read(file) as opened:
            content = opened.read()
        if content in seen:
            continue
        seen.add(content)
        for stage, layouts in _read_file(file, content).items():
            if stages.setdefault(stage, layouts) != layouts:
                raise UserError(
                    f"{file} and {origin[stage]} shard the same pipeline stage {stage} in two ways: they are of two "
                    "runs. Keep the files of one run in a folder."
                )
            origin.setdefault(stage, file)
    missing = sorted(set(range(max(stages) + 1)) - set(stages))
    if missing:
        raise UserError(
            f"{path}: the strategy files of pipeline stage {', '.join(map(str, missing))} are missing; at least one "
            "rank's file of every stage is needed."
        )
    sizes = {layout.ranks for layouts in stages.values() for layout in layouts.values()}
    if len(sizes) > 1:
        raise UserError(f"{path}: contradicts itself: its stages are of {' and '.join(map(str, sorted(sizes)))} ranks.")
    strategy = ShardingStrategy(path, tuple(stages[number] for number in range(len(stages))), sizes.pop())
    _check_ranks_in_names(strategy, origin)
    return strategy


def _strategy_files(path: Path) -> list[Path]:
    """The files of the ranks, in order; the merged one that MindFormers leaves beside them is ignored."""
    if not path.exists():
        raise UserError(f"{path}: no such strategy file or folder. A run leaves them in <output_dir>/strategy.")
    if path.is_file():
        if path.suffix == ".json":
            raise UserError(f"{path}: strategies in JSON are not read; name the .ckpt that MindSpore saves by default.")
        return [path]
    numbered = {int(match[1]): file for file in path.glob("*.ckpt") if (match := _RANK_IN_NAME.search(file.name))}
    if numbered:
        return [numbered[rank] for rank in sorted(numbered)]
    files = sorted(path.glob("*.ckpt"))
    if len(files) != 1:
        what = f"several, none of them named by its rank: {', '.join(file.name for file in files)}" if files else "none"
        raise UserError(f"{path}: looked for strategy files ckpt_strategy_rank_<r>.ckpt and found {what}.")
    return files


def _check_ranks_in_names(strategy: ShardingStrategy, origin: Mapping[int, Path]) -> None:
    for stage, file in origin.items():
        match = _RANK_IN_NAME.search(file.name)
        if match and int(match[1]) // strategy.ranks_per_stage != stage:
            raise UserError(
                f"{file}: is of pipeline stage {stage}, and rank {match[1]} is in stage "
                f"{int(match[1]) // strategy.ranks_per_stage} of {strategy.ranks_per_stage} ranks each: it is of "
                "another run, or was renamed."
            )


def _read_file(file: Path, content: bytes) -> dict[int, dict[str, TensorLayout]]:
    """Pipeline stage -> parameter -> layout."""
    from google.protobuf.message import DecodeError
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    message = ParallelStrategyMap()
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise UserError(f"{file}: is not a strategy file, or is damaged.") from None
    if not message.parallel_layout_item:
        raise UserError(f"{file}: holds no layout of any parameter; it is empty, or not a strategy file.")
    items = message.parallel_strategy_item
    own_stage = items[0].parallel_strategys.stage if items else 0
    stages: dict[int, dict[str, TensorLayout]] = defaultdict(dict)
    for item in message.parallel_layout_item:
        prefix = _STAGE_IN_NAME.match(item.param_name)
        stage = int(prefix[1]) if prefix else own_stage
        name = item.param_name[prefix.end() :] if prefix else item.param_name
        stages[stage][name] = _layout(file, name, item.parallel_layouts)
    return dict(stages)


def _layout(file: Path, name: str, stored: Any) -> TensorLayout:
    """A layout from its protobuf message.

    Raises:
        UserError: the shards are of unequal size, which GPT-2's never are, or the tensor map does not fit the matrix.
    """
    if stored.field or any(part.dim for part in (*stored.param_split_shape, *stored.indices_offset)):
        raise UserError(f"{file}: {name} has shards of unequal size, which is not supported.")
    matrix = tuple(stored.dev_matrix[0].dim) if stored.dev_matrix else ()
    maps = [tuple(part.dim) for part in stored.tensor_map]
    by_dimension = maps if len(maps) > 1 else [(axis,) for part in maps for axis in part]
    axes = [[axis for axis in dimension if axis >= 0] for dimension in by_dimension if dimension]
    if any(axis >= len(matrix) for dimension in axes for axis in dimension):
        raise UserError(f"{file}: {name}: its tensor map {maps} is not of its device matrix {list(matrix)}.")
    from_left = tuple(tuple(len(matrix) - 1 - axis for axis in dimension) for dimension in axes)
    whole = TensorLayout(matrix, from_left)
    replicas = whole.ranks // math.prod(whole.shards)
    shards = stored.opt_weight_shard_size if stored.opt_weight_shard_step else 0
    shards = replicas if shards == -1 else max(shards, 1)
    if replicas % shards:
        raise UserError(f"{file}: {name}: {replicas} replicas cannot be sharded {shards} ways.")
    return TensorLayout(matrix, from_left, shards)
