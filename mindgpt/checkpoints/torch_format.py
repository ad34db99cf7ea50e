"""State dicts that PyTorch saved. PyTorch is imported only when one is read or written."""

import ctypes
import functools
import mmap
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mindgpt.checkpoints.tensor_source import Box, TensorInfo
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_TORCH_NAME = re.compile(r".+\.(bin|pt|pth)(-\d+)?")  # UER-py appends the step: model.bin-100000
_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # a zip archive; before PyTorch 1.6 a pickle
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")  # of Lightning, nanoGPT, DeepSpeed and others
_OPTIMIZER_KEY = re.compile(r"(^|_)opt(im|imizer|imizers)?(_|$)")


def is_torch_file(path: Path) -> bool:
    """Whether PyTorch wrote a file: by its suffix or, for `.ckpt`, which MindSpore and Lightning both use, by its first
    bytes."""
    if _TORCH_NAME.fullmatch(path.name):
        return True
    if path.suffix != ".ckpt" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) in _MAGIC


class TorchFile:
    """A state dict that `torch.save` wrote, as a `TensorSource`. Only tensors are unpickled (`weights_only=True`); they
    are memory-mapped.

    Of a training checkpoint that holds one state dict among other things, that state dict is read, and `notes` says so.

    Raises:
        UserError: PyTorch is not installed, the file is broken, or it holds no state dict or several.
    """

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self.checkpoint_version = None  # Megatron's, which says the order of rows in query_key_value
        self._torch = import_torch(path)
        self._mapped = zipfile.is_zipfile(path)  # files from before PyTorch 1.6, GPT-2's own among them, cannot be
        self._tensors = self._load()
        self.entries = {
            name: TensorInfo(tuple(tensor.shape), dtype_of(tensor)) for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self.read_box(name)

    def read_box(self, name: str, box: Box | None = None) -> np.ndarray:
        """See `tensor_source.read_box`."""
        tensor = self._tensors[name]
        array = as_array(tensor[box] if box else tensor)
        if self._mapped:
            release_pages(tensor)
        return array

    def _load(self) -> Mapping[str, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a pickle's version, before the error that counts
                loaded = self._torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... for broken files
            # Its first sentence: the next ones advise to run what is in the file.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
            raise UserError(
                f"{self.path}: PyTorch cannot read it as a file of tensors ({reason}). It is damaged, cut short, or "
                "holds Python objects, which are not loaded because they could run code. Copy it again or save it as "
                "safetensors."
            ) from None
        if not isinstance(loaded, Mapping) or not loaded:
            raise UserError(
                f"{self.path}: holds a {type(loaded).__name__}, where a state dict (name -> tensor) is needed."
            )
        inside = [key for key in _STATE_DICT_KEYS if self._is_state_dict(loaded.get(key))]
        if len(inside) == 1:
            rest = [str(key) for key in loaded if key != inside[0]]
            if others := [key for key in rest if not _OPTIMIZER_KEY.search(key) and self._holds_matrix(loaded[key])]:
                raise UserError(
                    f"{self.path}: holds weights under {inside[0]!r} and under {', '.join(map(repr, others))}, and "
                    "nothing says which are meant. Save the ones you want by themselves, as a state dict."
                )
            self.checkpoint_version = loaded.get("checkpoint_version")
            left_out = f", and {', '.join(rest)} left out" if rest else ""
            self.notes.append(f"{self.path}: a training checkpoint; its {inside[0]!r} is read{left_out}")
            return loaded[inside[0]]
        others = [str(name) for name, value in loaded.items() if not isinstance(value, self._torch.Tensor)]
        if others:
            raise UserError(
                f"{self.path}: not a plain state dict (name -> tensor). These entries are not tensors: "
                f"{', '.join(others)}. Save the model's state_dict() alone."
            )
        return loaded

    def _holds_matrix(self, value: Any) -> bool:
        """Whether a value holds weights at any depth; a vector may be the state of a random generator."""
        if isinstance(value, Mapping):
            return any(map(self._holds_matrix, value.values()))
        if isinstance(value, list | tuple):
            return any(map(self._holds_matrix, value))
        return isinstance(value, self._torch.Tensor) and value.ndim > 1

    def _is_state_dict(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(isinstance(tensor, self._torch.Tensor) for tensor in value.values())
        )


def release_pages(tensor: Any) -> None:
    """Give back the memory of a mapped tensor that has been read. It is in the file, and read again where needed."""
    storage = tensor.untyped_storage()
    begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def as_array(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as a new array; bfloat16 as float32."""
    tensor = tensor.detach()
    if dtype_of(tensor) == "bfloat16":
        tensor = tensor.float()
    return np.array(tensor.numpy(), order="C")


def dtype_of(tensor: Any) -> str:
    """NumPy's name of a PyTorch tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def write_torch(
    path: str | Path, items: Iterable[tuple[str, np.ndarray]], tied: Mapping[str, str] | None = None
) -> None:
    """Write `items` as a state dict with `torch.save`; the file appears when it is whole. Holds all tensors at once.

    `tied`: further names -> the names of the tensors that they share.
    """
    torch = import_torch(path)
    state = {name: torch.from_numpy(np.asarray(array, order="C")) for name, array in items}
    state |= {name: state[other] for name, other in (tied or {}).items()}
    with atomic_write(path, "wb") as file:
        torch.save(state, file)


def import_torch(path: str | Path) -> ModuleType:
    """The module `torch`, or a UserError that says how to get it or do without."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: PyTorch is needed for this kind of file and is not installed. "
            "Install it with `pip install 'mindgpt[convert]'`, or use a .safetensors file, which does without."
        ) from None
    return torch
