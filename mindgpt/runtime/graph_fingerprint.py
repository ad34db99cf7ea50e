"""A digest of everything that determines a compiled graph: equal digests, equal graphs.

MindSpore compiles a cell's Python attributes to constants, and its source to operators. So the digest covers this
package's source files, the versions, MindSpore's settings, the arguments' shapes and dtypes, and everything that the
cell and its sub-cells hold: numbers, values of constants, operators with their attributes, names, shapes and dtypes of
parameters (not their values, which no graph holds), and which of these are the same object.
"""

import functools
import hashlib
import os
import platform
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pydantic
from mindspore import Parameter, Tensor, nn
from mindspore.common import dtype as mstype

_VOLATILE = {  # attributes of a cell that tell when and how often it was made and compiled, not what it computes
    *("_create_time", "_id", "_phase", "_compile_phase", "_phase_cache", "_compile_cache", "arguments_key"),
    *("_compiled", "_is_check_and_refresh", "_init_flag", "_lazy_construct_sig", "_exist_objs", "_exist_names"),
    *("_has_mutable_args_list", "_params_list", "_jit_graph_name", "sequence_modified", "compiled_arguments"),
}
_VOLATILE_IN_CLOSURES = {"hash_obj"}  # `value_and_grad` keeps the time of its call
_SETTINGS = ("mode", "device_target", "enable_graph_kernel", "graph_kernel_flags", "deterministic", "max_call_depth")
_PATHS = {"MS_COMPILER_CACHE_PATH", "MS_OM_PATH", "MS_DEV_SAVE_GRAPHS_PATH"}  # where to write, not what
# The digest covers the sources or versions of these packages. MindSpore makes its operators' classes with `abc`.
_KNOWN = {"mindgpt", "mindspore", "numpy", "builtins", "collections", "functools", "types", "abc"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


class UnknownValue(Exception):
    """A value whose influence on the graph cannot be described."""


def fingerprint(cell: nn.Cell, arguments: Iterable[Tensor]) -> str | None:
    """The digest of the graph that `cell` compiles to for `arguments`; None if a value cannot be described.

    Args:
        cell: the cell, which is not compiled here.
        arguments: tensors; only their shapes and dtypes matter.
    """
    digest = hashlib.sha256(_environment().encode())
    try:
        for argument in arguments:
            digest.update(f"{argument.shape} {argument.dtype}\n".encode())
        _Description(digest.update).add(cell)
    except UnknownValue:
        return None
    return digest.hexdigest()


def _environment() -> str:
    """What influences all graphs of this process: sources, versions, settings."""
    settings = {name: ms.get_context(name) for name in _SETTINGS}
    environment = {key: value for key, value in os.environ.items() if key.startswith("MS_") and key not in _PATHS}
    versions = (ms.__version__, np.__version__, platform.python_version(), platform.machine())
    return repr((_sources(), versions, settings, sorted(environment.items())))


@functools.cache
def _sources() -> str:
    """The digest of this package's sources."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.relative_to(package)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_known(module: str) -> None:
    """Raise `UnknownValue` for what a user's own program defines: it may change between runs."""
    if module.partition(".")[0] not in _KNOWN:
        raise UnknownValue(module)


class _Description:
    """Feeds a value and everything it contains to `write`; a repeated object is written as its number."""

    def __init__(self, write: Callable[[bytes], None]):
        self._write = write
        self._seen: dict[int, tuple[int, Any]] = {}  # id -> number and object, which keeps the id from being reused

    def add(self, value: Any) -> None:
        """Add a value. Raises `UnknownValue` if that is not possible."""
        if isinstance(value, _PLAIN):
            return self._add_words(type(value).__name__, repr(value))
        if id(value) in self._seen:
            return self._add_words("seen", self._seen[id(value)][0])
        self._seen[id(value)] = (len(self._seen), value)
        kind = value if isinstance(value, type) else type(value)
        _check_known(kind.__module__)
        self._add_words(kind.__module__, kind.__qualname__)
        if isinstance(value, Parameter):
            return self._add_words(value.name, value.shape, value.dtype, value.requires_grad)
        if isinstance(value, Tensor | np.ndarray):
            array = value.asnumpy() if isinstance(value, Tensor) else value
            self._add_words(array.shape, value.dtype)
            return self._write(np.ascontiguousarray(array).tobytes())
        if isinstance(value, Mapping):
            return self._add_named(value)
        if isinstance(value, list | tuple):
            self._add_words(len(value))
            for item in value:
                self.add(item)
            return None
        if isinstance(value, set | frozenset):
            return self.add(sorted(value, key=repr))
        if isinstance(value, pydantic.BaseModel | mstype.Type | np.generic):
            return self._add_words(repr(value))
        return self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, type):
            return None
        if isinstance(value, types.BuiltinFunctionType):
            return self._add_words(value.__module__, value.__qualname__)
        if isinstance(value, types.MethodType):
            self.add(value.__func__)
            return self.add(value.__self__)
        if isinstance(value, types.FunctionType):
            return self._add_function(value)
        if isinstance(value, nn.Cell):
            self._add_named({name: part for name, part in vars(value).items() if name not in _VOLATILE})
            return self._add_named(value.get_flags())
        if isinstance(value, functools.partial):
            return self.add((value.func, value.args, value.keywords))
        if not hasattr(value, "__dict__"):
            raise UnknownValue(f"{type(value)}")
        return self._add_named(vars(value))

    def _add_function(self, function: types.FunctionType) -> None:
        """The sources cover a function's code, but not its closure and defaults."""
        _check_known(function.__module__)
        self._add_words(function.__module__, function.__qualname__)
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            if name not in _VOLATILE_IN_CLOSURES:
                self._add_words(name)
                self.add(cell.cell_contents)
        self.add((function.__defaults__, function.__kwdefaults__))

    def _add_named(self, values: Mapping[Any, Any]) -> None:
        self._add_words(len(values))
        for name, value in values.items():
            self.add(name)
            self.add(value)

    def _add_words(self, *words: Any) -> None:
        self._write(("\0".join(map(str, words)) + "\n").encode())
