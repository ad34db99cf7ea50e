"""DeepSpeed's checkpoints, read as they are: ZeRO 1, 2 and 3, and the files of tensor-parallel ranks.

    <folder>/latest                                                     text: the tag, a folder beside it
    <folder>/<tag>/mp_rank_00_model_states.pt                           without ZeRO, and with ZeRO 1 and 2
    <folder>/<tag>/zero_pp_rank_<r>_mp_rank_00_model_states.pt          ZeRO 3, of each data-parallel rank
    <folder>/<tag>/[bf16_]zero_pp_rank_<r>_mp_rank_00_optim_states.pt   the float32 weights are in these

`mp_rank` is the tensor-parallel rank.

`zero_to_fp32.py`, which DeepSpeed puts beside, need not be run. Source: that program and `runtime/engine.py` of
DeepSpeed 0.3 to 0.17.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.tensor_parallel_files import TensorParallelRanks
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.checkpoints.torch_format import as_array, dtype_of
from mindgpt.checkpoints.zero_shards import ZeROShards, is_tensor, load_states, shown_ranks, whole_number
from mindgpt.config.errors import UserError

LATEST = "latest"
_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(?P<dp>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
_OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(?P<dp>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt")


def is_deepspeed(path: Path) -> bool:
    """Whether a path is a folder of DeepSpeed's checkpoints, one of them, or a file of model states."""
    if not path.is_dir():
        return _MODEL_FILE.fullmatch(path.name) is not None
    return bool(_files(path, _MODEL_FILE) or _files(path, _OPTIMIZER_FILE) or _tag_folders(path))


def open_deepspeed(path: Path) -> TensorSource:
    """Open a folder of DeepSpeed's checkpoints (the one that `latest` names), one of them, or a file of model states.

    Raises:
        UserError: files are missing or broken, they do not belong together, or nothing says which checkpoint is meant.
    """
    if not path.is_dir():
        return _single_file(path)
    folder = path if _files(path, _MODEL_FILE) or _files(path, _OPTIMIZER_FILE) else _chosen_tag(path)
    models, optimizers = _files(folder, _MODEL_FILE), _files(folder, _OPTIMIZER_FILE)
    if not models:
        raise UserError(f"{folder}: its *_model_states.pt are missing. Copy all files of the checkpoint.")
    ranks = sorted({mp for _, mp in models})
    sources = []
    for mp in ranks:
        of_rank = {dp: file for (dp, m), file in models.items() if m == mp}
        shards = {dp: file for (dp, m), file in optimizers.items() if m == mp and dp is not None}
        whole = optimizers or any(dp is not None for dp, _ in models)
        sources.append(ZeROShards(folder, of_rank, shards) if whole else ModuleStates(of_rank[None]))
    _check_ranks(folder, ranks, sources[0].tensor_parallel_size)
    return sources[0] if len(sources) == 1 else TensorParallelRanks(folder, sources)


class ModuleStates:
    """The state dict `module` of a file of model states, as a `TensorSource`.

    Attributes:
        path, entries: as in `TensorSource`; `path` is the folder of the file.
        notes: sentences for the user.
        tensor_parallel_size: the number of ranks that the model is sharded over, or None.
    """

    def __init__(self, file: Path):
        states = load_states(file)
        module = states.get("module")
        if not isinstance(module, Mapping) or not all(map(is_tensor, module.values())):
            raise UserError(f"{file}: holds no state dict under 'module'. It is not a file of DeepSpeed, or damaged.")
        self.path = file.parent
        self.notes: list[str] = []
        self.tensor_parallel_size = whole_number(states.get("mp_world_size"))
        self.is_sharded = any(tensor.numel() == 0 for tensor in module.values())  # ZeRO 3 keeps placeholders
        self.entries = {name: TensorInfo(tuple(tensor.shape), dtype_of(tensor)) for name, tensor in module.items()}
        self._tensors = module
        if _zero_stage(states) and not _files(file.parent, _OPTIMIZER_FILE):
            dtypes = ", ".join(sorted({info.dtype for info in self.entries.values()}))
            self.notes.append(
                f"{file}: the weights are read as it holds them, in {dtypes}; those in float32 are in the "
                "*_optim_states.pt of ZeRO, which are not here"
            )

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return as_array(self._tensors[name])


def _zero_stage(states: Mapping[str, Any]) -> int:
    """The stage of ZeRO that a checkpoint was made with; 0: none, or unknown."""
    config = states.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) else 0


def _single_file(file: Path) -> TensorSource:
    source = ModuleStates(file)
    if source.is_sharded:
        raise UserError(f"{file}: ZeRO 3 keeps no weights in this file. Name its folder, {file.parent}, instead.")
    if (source.tensor_parallel_size or 1) > 1:
        raise UserError(
            f"{file}: is one of {source.tensor_parallel_size} tensor-parallel ranks. Name its folder, {file.parent}."
        )
    if _files(file.parent, _OPTIMIZER_FILE):
        source.notes.append(f"{file}: the weights in float32 are in the files beside it; name the folder to read those")
    return source


def _files(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int | None, int], Path]:
    """(data-parallel rank or None, tensor-parallel rank) -> file, sorted by number.

    Raises:
        UserError: a rank has two files.
    """
    found: dict[tuple[int | None, int], Path] = {}
    for file in sorted(folder.iterdir()):
        if match := pattern.fullmatch(file.name):
            key = (None if match["dp"] is None else int(match["dp"]), int(match["mp"]))
            if key in found:
                raise UserError(
                    f"{folder}: {found[key].name} and {file.name} are of the same rank. Remove one of them."
                )
            found[key] = file
    return dict(sorted(found.items(), key=lambda item: (item[0][1], -1 if item[0][0] is None else item[0][0])))


def _tag_folders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _files(entry, _MODEL_FILE)]


def _chosen_tag(folder: Path) -> Path:
    """The checkpoint that `latest` names, or the only one.

    Raises:
        UserError: it is not there, or there is no `latest` and several checkpoints.
    """
    tags = _tag_folders(folder)
    listed = ", ".join(entry.name for entry in tags)
    latest = folder / LATEST
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if folder / tag not in tags:
            raise UserError(f"{latest}: names {tag!r}, which is not there. Found {listed}: name one of these folders.")
        return folder / tag
    if len(tags) > 1:
        raise UserError(f"{folder}: holds several checkpoints and no file {LATEST}. Name one of them: {listed}.")
    return tags[0]


def _check_ranks(folder: Path, ranks: Sequence[int], size: int | None) -> None:
    """Raise a UserError if files of tensor-parallel ranks are missing."""
    expected = max(size or 1, ranks[-1] + 1)
    if missing := [rank for rank in range(expected) if rank not in ranks]:
        raise UserError(
            f"{folder}: the model is sharded over {expected} tensor-parallel ranks, and the mp_rank_*_model_states.pt "
            f"of {shown_ranks(missing)} {'is' if len(missing) == 1 else 'are'} missing. Copy all of them."
        )
