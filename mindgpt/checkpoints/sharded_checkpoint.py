"""The checkpoint of a parallel run, in which each rank has written its shard, read as one file.

    checkpoint = ShardedCheckpoint(Path("output/checkpoint"))    # the strategy lies in output/strategy
    checkpoint.entries["backbone.layernorm.gamma"]               # full shape and dtype
    checkpoint.read("backbone.layernorm.gamma")                  # gathered from the shards
    checkpoint.read_box(name, layout.box(local_rank, shape))     # a shard of another layout

One tensor and one shard of it are in memory at a time. The strategy files (`strategy_format.py`) say which ranks hold
what. MindSpore leaves parameters of other pipeline stages in a rank's file, though the rank does not train them; these
are ignored. A parameter that several stages hold, as the token embedding may be, is read from the first. What no
strategy mentions (counters, loss scale) is equal on all ranks and read from the first that has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.run_folder import Step, choose_files, listed, rank_folders, rank_of_file, step_of
from mindgpt.checkpoints.safetensors_format import SafetensorsFile
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.strategy_format import ShardingStrategy, TensorLayout, read_strategy
from mindgpt.checkpoints.tensor_source import Box, TensorInfo, as_numbers
from mindgpt.config.errors import UserError

_SQUARE = ("attention.projection.weight", "attention.dense1.weight")  # hidden_size x hidden_size
_COMPARED = 16  # the smallest weights of a stage are compared, to detect shards of different runs
_TOLERANCE = 0.1  # relative: replicas drift apart by rounding on some hardware; other runs differ by far more

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of each dimension


@dataclass(frozen=True)
class _ShardedTensor:
    """A parameter that is sharded over the ranks of a stage.

    Attributes:
        info: full shape and dtype.
        layout: how it is sharded.
        first_rank: of the stage.
    """

    info: TensorInfo
    layout: TensorLayout
    first_rank: int

    def shards(self) -> dict[Bounds, list[int]]:
        """Each shard -> the ranks that hold it, in order."""
        found: dict[Bounds, list[int]] = {}
        for local_rank in range(self.layout.ranks):
            box = self.layout.box(local_rank, self.info.shape)
            found.setdefault(tuple((side.start, side.stop) for side in box), []).append(self.first_rank + local_rank)
        return found


class ShardedCheckpoint:
    """The full tensors of a sharded checkpoint, as a `TensorSource`.

    Attributes:
        folder: holds the folders `rank_<r>`.
        path: the file of rank 0, beside which the config lies.
        step: of the checkpoint; None if the names have none.
        strategy: how the parameters are sharded.
        entries: name -> full shape and dtype.
        texts: the strings in rank 0's file.

    Args:
        folder: a run's `checkpoint`, or what `tools/transform_ckpt.py` has written.
        strategy: file or folder; None: the folder `strategy` beside `folder`.
        step: which checkpoint; None for the newest.

    Raises:
        UserError: a rank or its step is missing, or shards and strategy are not of the same run.
    """

    def __init__(self, folder: Path, strategy: Path | None = None, step: Step | None = None):
        self.folder = folder
        folders = rank_folders(folder)
        if not folders:
            raise UserError(f"{folder}: holds no folders rank_0, rank_1, ... of a parallel run's checkpoints.")
        self.strategy = read_strategy(strategy or _strategy_beside(folder, len(folders)))
        _check_ranks(folder, list(folders), self.strategy)
        files = choose_files(list(folders.values()), step)
        self.path, self.step = files[0], step_of(files[0])
        self._files = [CheckpointFile(file) if file.suffix == ".ckpt" else SafetensorsFile(file) for file in files]
        self.texts = getattr(self._files[0], "texts", {})
        self._sharded: dict[str, list[_ShardedTensor]] = {}  # name -> the tensor in each stage that holds it
        self._whole: dict[str, int] = {}  # name -> the rank that it is read from
        self._find_sharded()
        self._find_whole()
        infos = {name: stages[0].info for name, stages in self._sharded.items()}
        infos |= {name: self._files[rank].entries[name] for name, rank in self._whole.items()}
        in_order = dict.fromkeys(name for file in self._files for name in file.entries if name in infos)
        self.entries = {name: infos[name] for name in in_order}
        self._check_same_run()

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return as_numbers(self.read_box(name))

    def read_box(self, name: str, box: Box | None = None) -> np.ndarray:
        """A box of tensor `name`, or all of it, as it is stored: bfloat16 as `BFLOAT16_BITS`."""
        if name in self._whole:
            return self._files[self._whole[name]].read_box(name, box)
        return self._gather(name, self._sharded[name][0], box)

    def layout(self, name: str) -> TensorLayout | None:
        """How the tensor is sharded, or None if no strategy mentions it."""
        return self._sharded[name][0].layout if name in self._sharded else None

    def differences_between_stages(self) -> dict[str, float]:
        """Weights whose copies in several pipeline stages differ -> the largest difference from the first copy."""
        found = {}
        for name, stages in self._sharded.items():
            if len(stages) > 1 and skip_rule(name) is None:
                first, *others = (as_numbers(self._gather(name, one, None)) for one in stages)
                if difference := max(np.abs(first - other).max() for other in others):
                    found[name] = float(difference)
        return found

    def _gather(self, name: str, tensor: _ShardedTensor, box: Box | None) -> np.ndarray:
        wanted = box or tuple(slice(0, size) for size in tensor.info.shape)
        shape = tuple(side.stop - side.start for side in wanted)
        result: np.ndarray | None = None
        for bounds, ranks in tensor.shards().items():
            overlap = _overlap(wanted, bounds)
            if overlap is None:
                continue
            shard = self._files[ranks[0]].read_box(name, _relative_to(overlap, [start for start, _ in bounds]))
            if shard.shape == shape:  # the only one
                return shard
            result = np.empty(shape, shard.dtype) if result is None else result
            result[_relative_to(overlap, [side.start for side in wanted])] = shard
        assert result is not None  # the shards cover the tensor
        return result

    def _find_sharded(self) -> None:
        """Register the tensors that the strategy mentions.

        Raises:
            UserError: strategy and files do not fit.
        """
        problems: list[str] = []
        for stage, layouts in enumerate(self.strategy.stages):
            first = stage * self.strategy.ranks_per_stage
            files = self._files[first : first + self.strategy.ranks_per_stage]
            for name, layout in layouts.items():
                infos = {file.entries.get(name) for file in files}
                if infos == {None} and (skip_rule(name) or self._is_partial):
                    continue
                if problem := _misfit(infos, layout):
                    problems.append(f"{name} of pipeline stage {stage} {problem}")
                    continue
                info = infos.pop()
                assert info is not None  # `_misfit` reports it
                full = TensorInfo(layout.full_shape(info.shape), info.dtype)
                self._sharded.setdefault(name, []).append(_ShardedTensor(full, layout, first))
        for name, stages in self._sharded.items():
            shape = stages[0].info.shape
            if any(one.info != stages[0].info for one in stages):
                problems.append(f"{name} has different shapes in the pipeline stages that hold it")
            elif name.endswith(_SQUARE) and len(set(shape)) > 1:
                problems.append(f"{name} would become {list(shape)}, and is square in every GPT-2")
        self._refuse(problems)

    def _find_whole(self) -> None:
        """Register the tensors that the strategy does not mention: counters and the like, and replicated weights.

        Raises:
            UserError: the ranks differ.
        """
        problems = []
        for rank, file in enumerate(self._files):
            for name, info in file.entries.items():
                rule = skip_rule(name)
                if name in self.strategy.names or rule == "layout":
                    continue
                first = self._whole.setdefault(name, rank)
                if rank == first or rule not in (None, "training counter"):
                    continue
                same = self._files[first].entries[name] == info
                if not (same and _alike(self._files[first].read(name), file.read(name), 0 if rule else _TOLERANCE)):
                    problems.append(
                        f"{name} is in no strategy file and differs between rank {first} and {rank}"
                        if rule is None
                        else f"{name} is not the same on rank {first} and {rank}: they were not written together"
                    )
        self._refuse(list(dict.fromkeys(problems)))

    def _check_same_run(self) -> None:
        """Compare small weights between ranks that should hold the same values.

        Raises:
            UserError: they differ, so the shards or the strategy are of different runs.
        """
        problems = []
        for stage in range(len(self.strategy.stages)):
            first = stage * self.strategy.ranks_per_stage
            tensors = {name: one for name, stages in self._sharded.items() for one in stages if one.first_rank == first}
            weights = sorted((one.info.nbytes, name) for name, one in tensors.items() if skip_rule(name) is None)
            for _, name in weights[:_COMPARED]:
                for ranks in tensors[name].shards().values():
                    if len(ranks) == 1:
                        continue
                    first_copy = self._files[ranks[0]].read(name)
                    for rank in ranks[1:]:
                        if not _alike(first_copy, self._files[rank].read(name), _TOLERANCE):
                            problems.append(f"{name} should be the same on ranks {ranks[0]} and {rank}, and is not")
        self._refuse(problems)

    @property
    def _is_partial(self) -> bool:
        return self.path.stem.endswith("-trainable")

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            separator = "\n  "
            raise UserError(
                f"{self.folder} and {self.strategy.path} are not of the same run, or files of several runs are mixed:"
                f"{separator}{listed(problems, separator=separator)}\n"
                "Name the strategy folder of the run that wrote the checkpoint. (A run of MindFormers must have had "
                "parallel.strategy_ckpt_config.only_trainable_params: False to say how frozen weights are sharded.)"
            )


def _overlap(wanted: Box, bounds: Bounds) -> Box | None:
    """The intersection of two boxes of a tensor, or None if it is empty."""
    pairs = zip(wanted, bounds, strict=True)
    common = tuple(slice(max(side.start, start), min(side.stop, stop)) for side, (start, stop) in pairs)
    return common if all(side.start < side.stop for side in common) else None


def _relative_to(box: Box, origin: Sequence[int]) -> Box:
    """A box in coordinates that start at `origin`."""
    return tuple(slice(side.start - zero, side.stop - zero) for side, zero in zip(box, origin, strict=True))


def _strategy_beside(folder: Path, ranks: int) -> Path:
    beside = folder.absolute().parent / "strategy"
    if beside.is_dir():
        return beside
    raise UserError(
        f"{folder}: holds the files of {ranks} ranks, and there is no {beside} that says how they are sharded. "
        "Name the run's strategy folder (--src_ckpt_strategy, src_strategy_path_or_dir). If every rank has the whole "
        "model, as in data parallel training, name the file of one rank."
    )


def _check_ranks(folder: Path, ranks: list[int], strategy: ShardingStrategy) -> None:
    missing = sorted(set(range(strategy.ranks)) - set(ranks))
    if missing:
        raise UserError(
            f"{folder}: {listed([f'rank_{rank}' for rank in missing])} of {strategy.ranks} missing. All ranks' "
            "folders are needed; copy them from the machines that wrote them."
        )
    if len(ranks) > strategy.ranks:
        raise UserError(
            f"{folder}: holds the shards of {len(ranks)} ranks, and {strategy.path} describes a run of "
            f"{strategy.ranks}. They are not of the same run, or strategy files of some pipeline stages are missing."
        )


def _misfit(infos: set[TensorInfo | None], layout: TensorLayout) -> str:
    """Why shards with these shapes do not fit a layout, or ""."""
    known = {info for info in infos if info is not None}
    if len(known) < len(infos):
        return "is in the strategy but not in the checkpoint" + (" of every rank" if len(infos) > 1 else "")
    if len(infos) > 1:
        return f"has different shapes on the ranks: {', '.join(sorted(str(list(info.shape)) for info in known))}"
    shape = next(iter(known)).shape
    if layout.tensor_map and len(layout.tensor_map) != len(shape):
        return f"has {len(shape)} dimensions, and {len(layout.tensor_map)} in the strategy"
    return ""


def _alike(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two shards are equal but for rounding. Values that are not finite in both count as equal."""
    if one.shape != other.shape:
        return False
    one, other = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return False
    if not finite.any():
        return True
    return np.abs(one - other)[finite].max() <= tolerance * np.abs(one[finite]).max()


def refuse_shard(file: Path) -> None:
    """Raise a UserError if a file is one rank's shard, which is not a model by itself."""
    rank, folder = rank_of_file(file), file.absolute().parent.parent
    if rank is not None and holds_shards(folder):
        raise UserError(
            f"{file}: is the shard of rank {rank}, one of {len(rank_folders(folder))}, and no model by itself. Name "
            f"the folder {folder}, or merge it first: tools/transform_ckpt.py --src_ckpt_dir {folder} "
            f"--src_ckpt_strategy {folder.parent / 'strategy'} --dst_ckpt_dir merged"
        )


def holds_shards(folder: Path) -> bool:
    """Whether a folder holds the shards of several ranks, by the strategy beside it.

    Raises:
        UserError: the strategy cannot be read.
    """
    beside = folder.absolute().parent / "strategy"
    return len(rank_folders(folder)) > 1 and beside.is_dir() and not read_strategy(beside).is_whole
