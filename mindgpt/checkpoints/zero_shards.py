"""The float32 weights in the files of DeepSpeed's ZeRO ranks; `deepspeed_format.py` finds these files.

ZeRO 1 and 2: the parameters of a group are flattened to one vector, which is padded and sharded over the ranks. ZeRO 3:
each parameter is flattened, padded and sharded by itself; a rank's file holds its shards one after another.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.restricted_unpickling import Inert, load_without_code
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_format import as_array, dtype_of
from mindgpt.config.errors import UserError

_FLAT_2, _FLAT_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
_ALIGNMENT = 2  # ZeRO 1 and 2 pad a group to a multiple of this times the number of ranks

Shapes = Mapping[str, tuple[int, ...]]


class ZeROShards:
    """The float32 weights in the files of ZeRO's ranks, as a `TensorSource`. A tensor's shards are joined when it is
    read, from files that are memory-mapped.

    Args:
        folder: of the checkpoint.
        models: data-parallel rank, None for a file of all -> file of model states.
        optimizers: data-parallel rank -> file of optimizer states.

    Attributes:
        path, entries, notes, tensor_parallel_size: as in `deepspeed_format.ModuleStates`.

    Raises:
        UserError: files are missing or broken, or do not hold as many numbers as the parameters have.
    """

    def __init__(self, folder: Path, models: Mapping[int | None, Path], optimizers: Mapping[int, Path]):
        self.path = folder
        first = models[min(models, key=lambda rank: -1 if rank is None else rank)]
        self._model = load_states(first)
        self.tensor_parallel_size = whole_number(self._model.get("mp_world_size"))
        ranks = [_optimizer_states(optimizers[rank]) for rank in sorted(optimizers)]
        self.world = _check_world(folder, sorted(optimizers), ranks)
        stage_3 = _FLAT_3 in ranks[0]
        groups = _param_shapes(first, self._model, ranks[0])
        self._runs = [_flat(rank, _FLAT_3 if stage_3 else _FLAT_2, folder) for rank in ranks]  # [rank][group]
        if not stage_3 and len({len(run) for run in self._runs}) > 1:
            raise UserError(f"{folder}: the ranks have other numbers of parameter groups: they do not belong together.")
        self._place: dict[str, tuple[int, int]] = {}  # name -> (group, offset)
        self._shapes: dict[str, tuple[int, ...]] = {name: shape for group in groups for name, shape in group.items()}
        if stage_3:
            self._place_sharded_parameters()
        else:
            self._place_sharded_groups(groups)
        self._stage_3 = stage_3
        self._whole = self._buffers() | self._frozen(models)
        self._same = self._shared()
        self.notes = [f"{folder}: ZeRO {3 if stage_3 else '1 or 2'}, {self.world} ranks; the float32 weights are read"]
        entries = {name: TensorInfo(shape, "float32") for name, shape in self._shapes.items()}
        entries |= {name: TensorInfo(shape, dtype) for name, (shape, dtype, _) in self._whole.items()}
        self.entries = entries | {name: entries[other] for name, other in self._same.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        name = self._same.get(name, name)
        if name in self._whole:
            shape, _, parts = self._whole[name]
            return _joined(parts, shape)
        shape, (group, offset) = self._shapes[name], self._place[name]
        count = math.prod(shape)
        if self._stage_3:
            part = math.ceil(count / self.world)
            return _joined([_span(run, offset, offset + part) for run in self._runs], shape)
        parts, begin = [], 0
        for run in self._runs:  # the shards of a group, one after another, are its vector
            length = run[group][0].numel()
            low, high = max(offset, begin), min(offset + count, begin + length)
            if low < high:
                parts.append(run[group][0][low - begin : high - begin])
            begin += length
        return _joined(parts, shape)

    def _place_sharded_groups(self, groups: Sequence[Shapes]) -> None:
        """ZeRO 1 and 2: where each parameter begins in its group's vector."""
        held = [sum(run[group][0].numel() for run in self._runs) for group in range(len(self._runs[0]))]
        groups = groups if len(groups) == len(held) else _regrouped(groups, held)
        for number, (shapes, length) in enumerate(zip(groups, held, strict=True)):
            offset = 0
            for name, shape in shapes.items():
                self._place[name] = (number, offset)
                offset += math.prod(shape)
            multiple = _ALIGNMENT * self.world
            if length < offset or math.ceil(offset / multiple) != math.ceil(length / multiple):
                raise UserError(
                    f"{self.path}: parameter group {number} has {offset:,} numbers by its shapes, and the "
                    f"files of {self.world} ranks hold {length:,}. They do not belong together, or are damaged."
                )

    def _place_sharded_parameters(self) -> None:
        """ZeRO 3: where each parameter's shard begins in every rank's vector."""
        offset = 0
        for name, shape in self._shapes.items():
            self._place[name] = (0, offset)
            offset += math.ceil(math.prod(shape) / self.world)
        for rank, run in enumerate(self._runs):
            length = sum(tensor.numel() for group in run for tensor in group)
            if length != offset:
                raise UserError(
                    f"{self.path}: rank {rank} holds {length:,} numbers, and its shards of the parameters are "
                    f"{offset:,}. The files do not belong together, or are damaged."
                )

    def _frozen(self, models: Mapping[int | None, Path]) -> dict[str, tuple[tuple[int, ...], str, list[Any]]]:
        """Parameters that were not trained: name -> shape, dtype, the shards of the ranks."""
        shapes = _shapes_of(self._model.get("frozen_param_shapes") or {})
        if not shapes:
            return {}
        if self._stage_3:
            if missing := [rank for rank in range(self.world) if rank not in models]:
                raise UserError(
                    f"{self.path}: the file of model states of {shown_ranks(missing)} is missing, and holds shards of "
                    "the frozen parameters. Copy all files of the checkpoint."
                )
            files = [load_states(models[rank]) for rank in range(self.world)]
        else:
            files = [self._model]
        fragments = [states.get("frozen_param_fragments") or {} for states in files]
        found = {}
        for name, shape in shapes.items():
            parts = [rank[name] for rank in fragments if name in rank]
            if len(parts) < len(fragments) or sum(part.numel() for part in parts) < math.prod(shape):
                raise UserError(
                    f"{self.path}: shards of the frozen parameter {name} are missing. Copy all files again."
                )
            found[name] = (shape, dtype_of(parts[0]), parts)
        return found

    def _buffers(self) -> dict[str, tuple[tuple[int, ...], str, list[Any]]]:
        module, names = self._model.get("module"), self._model.get("buffer_names")
        if not isinstance(module, Mapping) or not isinstance(names, list | tuple):
            return {}
        held = {name: module[name] for name in names if is_tensor(module.get(name))}
        return {name: (tuple(tensor.shape), dtype_of(tensor), [tensor]) for name, tensor in held.items()}

    def _shared(self) -> dict[str, str]:
        """A name that is stored under another -> that other."""
        shared = self._model.get("shared_params")
        pairs = shared.items() if isinstance(shared, Mapping) else shared if isinstance(shared, list) else ()
        known = {*self._shapes, *self._whole}
        return {name: other for name, other in pairs if other in known and name not in known}


def load_states(file: Path) -> Mapping[str, Any]:
    """The content of a file of DeepSpeed's. Raises UserError if it is broken."""
    states = load_without_code(file)
    if not isinstance(states, Mapping):
        raise UserError(f"{file}: holds a {type(states).__name__}, where DeepSpeed writes a dict. Copy it again.")
    return states


def _optimizer_states(file: Path) -> dict[str, Any]:
    """The optimizer's states, and `param_shapes` if they are in the same file, as until DeepSpeed 0.6.

    Raises:
        UserError: they are not ZeRO's.
    """
    states = load_states(file)
    optimizer = states.get("optimizer_state_dict")
    if not isinstance(optimizer, Mapping) or not (_FLAT_2 in optimizer or _FLAT_3 in optimizer):
        raise UserError(
            f"{file}: holds no float32 weights of ZeRO ({_FLAT_2} or {_FLAT_3}). Save the checkpoint again, or convert "
            "the model file alone: name *_model_states.pt."
        )
    shapes = {"param_shapes": states["param_shapes"]} if "param_shapes" in states else {}
    return {**shapes, **optimizer}


def _check_world(folder: Path, ranks: Sequence[int], states: Sequence[Mapping[str, Any]]) -> int:
    """The number of ranks that wrote the checkpoint; all their files must be there."""
    if not ranks:
        raise UserError(f"{folder}: the *_optim_states.pt, which hold the weights, are missing. Copy them, too.")
    counts = states[0].get("partition_count", len(ranks))
    world = max(counts) if isinstance(counts, list | tuple) else counts
    world = whole_number(world) or len(ranks)
    if missing := [rank for rank in range(world) if rank not in ranks]:
        raise UserError(
            f"{folder}: the checkpoint is of {world} ranks, and the *_optim_states.pt of {shown_ranks(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Copy all of them."
        )
    if len(ranks) > world:
        raise UserError(
            f"{folder}: the checkpoint is of {world} ranks, and there are {len(ranks)} *_optim_states.pt: those of "
            f"{shown_ranks([rank for rank in ranks if rank >= world])} are of another checkpoint. Move them away."
        )
    return world


def shown_ranks(numbers: Sequence[int]) -> str:
    """Ranks as a message names them: "rank 3", "ranks 0, 3"."""
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _param_shapes(file: Path, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> list[Shapes]:
    """The shapes of the parameters of each group, in the order in which they are stored."""
    stored = model.get("param_shapes", optimizer.get("param_shapes"))
    groups = [stored] if isinstance(stored, Mapping) else stored  # one dict for all groups until DeepSpeed 0.5.3
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Mapping) for group in groups) or not groups:
        raise UserError(f"{file}: holds no param_shapes, without which the weights cannot be separated. Copy it again.")
    return [_shapes_of(group) for group in groups]


def _shapes_of(group: Mapping[str, Any]) -> Shapes:
    return {name: tuple(map(int, shape)) for name, shape in group.items()}


def _regrouped(groups: Sequence[Shapes], held: Sequence[int]) -> list[Shapes]:
    """The parameters of one dict, in as many groups as there are vectors: each takes what it has room for."""
    names = [(name, shape) for group in groups for name, shape in group.items()]
    result: list[dict[str, tuple[int, ...]]] = [{} for _ in held]
    for number, length in enumerate(held):
        room = length
        while names and math.prod(names[0][1]) <= room:
            name, shape = names.pop(0)
            result[number][name] = shape
            room -= math.prod(shape)
    for name, shape in names:  # reported by the comparison of the totals
        result[-1][name] = shape
    return list(result)


def _flat(states: Mapping[str, Any], key: str, folder: Path) -> list[list[Any]]:
    """The vectors of a rank: for each group a list of tensors, one for ZeRO 1 and 2."""
    groups = states.get(key)
    groups = [groups] if is_tensor(groups) else groups
    if not isinstance(groups, list | tuple):
        raise UserError(f"{folder}: not all *_optim_states.pt hold {key}: they are of different checkpoints.")
    result = [[group] if is_tensor(group) else list(group) for group in groups]
    return [[tensor.reshape(-1) for tensor in group] for group in result]


def _span(run: Sequence[Sequence[Any]], low: int, high: int) -> Any:
    """Numbers [low, high) of the groups of a ZeRO 3 rank, one after another."""
    begin, parts = 0, []
    for tensor in (tensor for group in run for tensor in group):
        first, last = max(low, begin), min(high, begin + tensor.numel())
        if first < last:
            parts.append(as_array(tensor[first - begin : last - begin]))
        begin += tensor.numel()
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined(parts: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The shards of a tensor, without the padding after them, in its shape."""
    arrays = [part if isinstance(part, np.ndarray) else as_array(part) for part in parts]
    flat = [array.reshape(-1) for array in arrays]
    whole = flat[0] if len(flat) == 1 else np.concatenate(flat)
    return whole[: math.prod(shape)].reshape(shape)


def is_tensor(value: Any) -> bool:
    """Whether a loaded value is a tensor."""
    return hasattr(value, "numel") and not isinstance(value, Inert)


def whole_number(value: Any) -> int | None:
    """`value` if it is a number of ranks, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
