"""ModelScope's folders of GPT-3: one file of weights for each tensor-parallel rank.

    <folder>/model/mp_rank_00_model_states.pt          downloaded, and in `output/` and `output_best/` of a training
    <work_dir>/epoch_3_mp_rank_00_model_states.pt      what a training saves; `iter_3000_...` likewise
    <work_dir>/best_epoch3_ppl12.5_mp_rank_00_model_states.pt      the best of it

A file is a state dict, or has one under the key `module`. The names in it are Megatron's; DeepSpeed has files of the
same name, with other names inside. base and large are a plain pytorch_model.bin, which `torch_format` reads.
Source: `models/nlp/gpt3/distributed_gpt3.py` and `utils/megatron_utils.py` of ModelScope.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindgpt.checkpoints.locations import holds_weights
from mindgpt.checkpoints.megatron_names import THREE_BLOCKS, are_megatron
from mindgpt.checkpoints.megatron_views import order_of
from mindgpt.checkpoints.restricted_unpickling import load_without_code
from mindgpt.checkpoints.tensor_parallel_files import TensorParallelRanks
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, existing_file
from mindgpt.checkpoints.torch_format import as_array, dtype_of, is_torch_file
from mindgpt.checkpoints.zero_shards import is_tensor, shown_ranks
from mindgpt.config.errors import UserError

MODEL_FOLDER = "model"
LAST, BEST = "output", "output_best"
_SHARD = re.compile(
    r"(?P<save>(?:(?:epoch|iter)_\d+|best_(?:epoch|iter)\d+_.+)_)?mp_rank_(?P<rank>\d+)_model_states\.pt"
)
_OPTIMIZER_OF_ZERO = "*zero_pp_rank_*_optim_states.pt"
_OUTER_KEYS = ("module", "state_dict", "model")
_MOST_MAPPED = 128 << 20  # bytes of all files that may stay in memory after they were read


class Shards(NamedTuple):
    """The files of one checkpoint.

    Attributes:
        folder: that they lie in.
        files: tensor-parallel rank -> file.
        note: for the user, or "".
    """

    folder: Path
    files: dict[int, Path]
    note: str = ""


def is_modelscope(path: Path) -> bool:
    """Whether a path is ModelScope's folder of a GPT-3 with files of ranks, one of its folders of these, or one of
    them."""
    if path.is_file():
        match = _SHARD.fullmatch(path.name)
        return match is not None and (match["save"] is not None or _holds_gpt3(path))
    found = [groups for folder in _folders(path) if (groups := _groups(folder))]
    if not found or any(next(folder.glob(_OPTIMIZER_OF_ZERO), None) for folder in _folders(path)):
        return False
    if any(save for groups in found for save in groups):
        return True
    first = next(iter(found[0].values()))
    return _holds_gpt3(first[min(first)])


def open_modelscope(path: Path) -> TensorSource:
    """Open ModelScope's folder of a GPT-3, its folder `model`, the folder of a training, or one of the files, which
    stands for all of its checkpoint.

    Raises:
        UserError: files are missing or broken, they do not belong together, or nothing says which checkpoint is meant.
    """
    shards = _located(path)
    extra = _check_others(shards) if shards.folder.name == MODEL_FOLDER else ""
    missing = [rank for rank in range(max(shards.files)) if rank not in shards.files]
    if missing:
        raise UserError(_missing(shards, missing, max(shards.files) + 1))
    ranks = [RankFile(file, _MOST_MAPPED // len(shards.files)) for _, file in sorted(shards.files.items())]
    _check_sizes(shards, ranks)
    in_model_folder = shards.folder.name == MODEL_FOLDER and path.is_dir() and path != shards.folder
    where = shards.folder.parent if in_model_folder else shards.folder  # the config lies there
    orders = {order_of(rank.checkpoint_version, where) for rank in ranks}
    if len(orders) > 1:
        raise UserError(f"{where}: the files of the ranks have different checkpoint_version. Copy all of them again.")
    in_blocks = THREE_BLOCKS in orders
    source: RankFile | TensorParallelRanks = ranks[0]
    if len(ranks) > 1:
        source = TensorParallelRanks(where, ranks, in_blocks, compares=True)
        source.checkpoint_version = ranks[0].checkpoint_version
    source.path = where
    source.notes += [note for note in (shards.note, extra) if note]
    return source


class RankFile:
    """The state dict of one rank, as a `TensorSource`.

    Tensors are memory-mapped. What has been read of the file is dropped from memory again, so that a conversion needs
    memory for one tensor and not for the file. (Files from before PyTorch 1.6 cannot be mapped, and are held whole.)

    Args:
        file: to be read.
        most_mapped: bytes that may stay in memory after they were read.

    Attributes:
        path, entries: as in `TensorSource`.
        notes: sentences for the user.
        checkpoint_version: Megatron's, or None.
        tensor_parallel_size: 1; of several ranks see `TensorParallelRanks`.

    Raises:
        UserError: the file is broken, or holds no state dict.
    """

    def __init__(self, file: Path, most_mapped: int = _MOST_MAPPED):
        self.path = self._file = existing_file(file)
        self.notes: list[str] = []
        self.tensor_parallel_size = 1
        self._tensors, self.checkpoint_version = _state_dict(file)
        self._mapped, self._most_mapped = 0, most_mapped
        self.entries = {
            name: TensorInfo(tuple(tensor.shape), dtype_of(tensor)) for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        array = as_array(self._tensors[name])
        self._mapped += self.entries[name].nbytes
        if self._mapped > self._most_mapped:  # a new mapping: the old one goes, and its pages with it
            self._tensors, self._mapped = {}, 0
            self._tensors, _ = _state_dict(self._file)
        return array


def _holds_gpt3(file: Path) -> bool:
    """Whether a file of a rank has Megatron's names, or is a plain state dict, which DeepSpeed's never are."""
    content = load_without_code(file)
    if not isinstance(content, Mapping):
        return False
    inside = _inside(content)
    names = [name for name, value in inside.items() if is_tensor(value)]
    return are_megatron(names) or (inside is content and len(names) == len(content) > 0)


def _inside(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((content[key] for key in _OUTER_KEYS if isinstance(content.get(key), Mapping)), content)


def _state_dict(file: Path) -> tuple[Mapping[str, Any], Any]:
    """The tensors of a file by name, and its `checkpoint_version` or None. Raises UserError if there are none."""
    content = load_without_code(file)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file}: holds a {type(content).__name__}, where a state dict is needed. Copy it again.")
    inside = _inside(content)
    others = [str(name) for name, value in inside.items() if not is_tensor(value) and name != "checkpoint_version"]
    if others:
        raise UserError(
            f"{file}: holds no state dict, which is tensors alone, by itself or under 'module'. These entries are not "
            f"tensors: {', '.join(others[:5])}. Save the model's state_dict() alone."
        )
    tensors = {name: value for name, value in inside.items() if is_tensor(value)}
    return tensors, content.get("checkpoint_version", inside.get("checkpoint_version"))


def _folders(path: Path) -> list[Path]:
    """The folders at or below a path that may hold files of ranks, those of downloaded models first."""
    below = [path / MODEL_FOLDER, path, path / LAST / MODEL_FOLDER, path / BEST / MODEL_FOLDER]
    return [folder for folder in below if folder.is_dir()]


def _groups(folder: Path) -> dict[str, dict[int, Path]]:
    """The checkpoints in a folder: what stands before `mp_rank` in their names, or "" -> rank -> file.

    Raises:
        UserError: a rank has two files.
    """
    found: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _SHARD.fullmatch(file.name):
            group, rank = found.setdefault(match["save"] or "", {}), int(match["rank"])
            if rank in group:
                raise UserError(f"{folder}: {group[rank].name} and {file.name} are of the same rank. Remove one.")
            group[rank] = file
    return found


def _located(path: Path) -> Shards:
    """The files that a path means.

    Raises:
        UserError: it may mean several checkpoints.
    """
    if path.is_file():
        match = _SHARD.fullmatch(path.name)
        assert match is not None, path  # `is_modelscope` has seen it
        save = match["save"] or ""
        return Shards(path.parent, _groups(path.parent)[save])
    if groups := _groups(path / MODEL_FOLDER):
        if holds_weights(path):
            raise UserError(
                f"{path}: holds weights beside the folder {MODEL_FOLDER}/, and nothing says which are meant. Name "
                f"{path / MODEL_FOLDER}, or the file of the others."
            )
        return _only(path / MODEL_FOLDER, groups)
    trained = [name for name in (LAST, BEST) if _groups(path / name / MODEL_FOLDER)]
    groups = _groups(path)
    if len(trained) > 1:
        raise UserError(f"{path}: holds {LAST}/, the last weights, and {BEST}/, the best. Name one of these folders.")
    if trained:
        inside = path / trained[0] / MODEL_FOLDER
        saves = ", ".join(save.rstrip("_") for save in groups if save)
        others = f"; name a file to take one of {saves}" if saves else ""
        return _only(inside, _groups(inside), f"{path}: the weights in {trained[0]}/ are taken{others}")
    return _only(path, groups)


def _only(folder: Path, groups: Mapping[str, dict[int, Path]], note: str = "") -> Shards:
    if len(groups) > 1:
        examples = ", ".join(group[min(group)].name for group in groups.values())
        raise UserError(
            f"{folder}: holds several checkpoints. Name a file of the one you mean, which stands for all of its ranks: "
            f"{examples}."
        )
    return Shards(folder, next(iter(groups.values())), note)


def _check_others(shards: Shards) -> str:
    """A note about files beside the ranks' in a folder `model`, or "".

    Raises:
        UserError: they look like weights, of which nothing says whether they belong to the model.
    """
    names = {file.name for file in shards.files.values()}
    others = sorted(entry.name for entry in shards.folder.iterdir() if entry.name not in names)
    if weights := [name for name in others if is_torch_file(Path(name)) or "mp_rank" in name]:
        raise UserError(
            f"{shards.folder}: must hold the files of the ranks and nothing else, {', '.join(sorted(names))}. Move "
            f"{', '.join(weights)} away; ModelScope would take {'it' if len(weights) == 1 else 'them'} for shards."
        )
    if not others:
        return ""
    return f"{shards.folder}: {', '.join(others)} left out; ModelScope counts every file there as a shard, and fails"


def _check_sizes(shards: Shards, ranks: Sequence[RankFile]) -> None:
    """Raise a UserError if the ranks are not all of the model, or of different sizes.

    query_key_value has 3H / ranks rows in each rank, and H columns: so every file tells the number of ranks.
    """
    sizes: dict[int, list[int]] = {}
    for number, rank in enumerate(ranks):
        shape = next((info.shape for name, info in rank.entries.items() if name.endswith("query_key_value.weight")), ())
        if len(shape) != 2 or not shape[0] or 3 * shape[1] % shape[0]:
            return  # what is wrong is reported by name
        sizes.setdefault(3 * shape[1] // shape[0], []).append(number)
    if len(sizes) > 1:
        listed = "; ".join(f"{shown_ranks(numbers)} of {size}" for size, numbers in sizes.items())
        raise UserError(
            f"{shards.folder}: the files are of models that are sharded over different numbers of tensor-parallel "
            f"ranks: {listed}. Keep those of one model."
        )
    (size,) = sizes
    if size > len(ranks):
        raise UserError(_missing(shards, list(range(len(ranks), size)), size))
    if size < len(ranks):
        raise UserError(
            f"{shards.folder}: the model is sharded over {size} tensor-parallel ranks, and there are {len(ranks)} "
            f"files: those of {shown_ranks(range(size, len(ranks)))} are of another model. Move them away."
        )


def _missing(shards: Shards, ranks: Sequence[int], size: int) -> str:
    example = next(iter(shards.files.values())).name
    names = [re.sub(r"mp_rank_\d+", f"mp_rank_{rank:02d}", example) for rank in ranks]
    return (
        f"{shards.folder}: the model is sharded over {size} tensor-parallel ranks, and {', '.join(names)} "
        f"{'is' if len(names) == 1 else 'are'} missing. Copy all of them."
    )
