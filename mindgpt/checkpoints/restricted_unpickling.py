"""Opens PyTorch files that hold Python objects besides tensors, such as DeepSpeed's, without running their code.

A pickle names functions and classes, and calls them with arguments: that is how a stranger's file could run a program.
Here only the few names get through that rebuild tensors. Any other name becomes an inert class, which keeps the
arguments that it is called with and does nothing else.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

from mindgpt.checkpoints.torch_format import import_torch
from mindgpt.config.errors import UserError

_TORCHSCRIPT = (
    "{}: is a program of TorchScript, which could run code, and no file of weights. Save the model's "
    "state_dict() instead."
)


class Inert:
    """Stands for an object of a class that is not loaded.

    Attributes:
        of: the name of that class.
        arguments: what it was made with.
        state: what it was filled with, or None.
    """

    of: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> "Inert":
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any) -> "Inert":
        """A call of something that a class not loaded would have returned."""
        return type(self)(*arguments)

    def append(self, item: Any) -> None:
        """As of a list; the item is dropped."""

    def extend(self, items: Any) -> None:
        """As of a list; the items are dropped."""

    def add(self, item: Any) -> None:
        """As of a set; the item is dropped."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """As of a dict; the item is dropped."""


def load_without_code(path: Path) -> Any:
    """What `torch.save` wrote to a file; objects of other classes than tensors and containers are `Inert`.

    Tensors are memory-mapped where PyTorch can.

    Raises:
        UserError: PyTorch is not installed, or the file is broken.
    """
    torch = import_torch(path)
    options = {"map_location": "cpu", "mmap": zipfile.is_zipfile(path)}
    if _is_torchscript(path):
        raise UserError(_TORCHSCRIPT.format(path))
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # of foreign classes, or because it is broken; the second attempt tells
        if "TorchScript" in str(error):  # PyTorch may read a doctored archive in another way
            raise UserError(_TORCHSCRIPT.format(path)) from None
    try:
        return torch.load(path, weights_only=False, pickle_module=_pickle_module(torch), **options)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... for broken files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: PyTorch cannot read it ({reason}). It is damaged or cut short. Copy it again."
        ) from None


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a program of TorchScript, which `torch.load` would hand to its interpreter."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:  # PyTorch before 1.6, or damaged
        return False


def _pickle_module(torch: ModuleType) -> SimpleNamespace:
    """What `torch.load` takes as `pickle_module`: its `Unpickler` resolves no names but those that rebuild tensors."""

    # New functions, so that a pickle that sets attributes of what it is given changes nothing of PyTorch's.
    def rebuild_tensor_v2(*arguments: Any) -> Any:
        return torch._utils._rebuild_tensor_v2(*arguments)

    def rebuild_tensor(*arguments: Any) -> Any:
        return torch._utils._rebuild_tensor(*arguments)

    def rebuild_parameter(data: Any, *_: Any) -> Any:
        return data

    known = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "Size"): torch.Size,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
        ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    }

    class RestrictedUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in known:
                return known[module, name]
            if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
                return dtype
            return type("Inert", (Inert,), {"of": f"{module}.{name}"})

    def load(file: Any, **options: Any) -> Any:
        return RestrictedUnpickler(file, **options).load()

    return SimpleNamespace(__name__="restricted_unpickling", Unpickler=RestrictedUnpickler, load=load)
