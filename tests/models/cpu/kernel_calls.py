"""The C++ kernels, called as MindSpore calls them, and what their results are held against: NumPy in float64."""

import ctypes
import os
import platform
import shutil

import numpy as np
import pytest

from mindgpt.models.cpu import kernels

COMPILER = shutil.which(os.environ.get("CXX") or "g++")
needs_compiler = pytest.mark.skipif(
    platform.system() != "Linux" or COMPILER is None, reason="the kernels need Linux and a C++ compiler"
)
OPTIONS = {"native": kernels.for_this_processor(), "avx2": "-march=haswell", "sse2": "-march=x86-64"}
for_all_processors = pytest.mark.parametrize("option", OPTIONS if platform.machine() == "x86_64" else ["native"])
ROW_COUNTS = (1, 2, 3, 7, 8, 9, 17, 40, 600)
EPS = np.array([1e-5, 0], np.float32)
UER_EPS = np.array([1e-6, 1], np.float32)


class Libraries:
    """`libraries(option, threads)`: the kernels built for a processor, each with its own threads."""

    def __init__(self, folder):
        self.folder, self.built, self.loaded = folder, {}, {}

    def __call__(self, option="native", threads=2):
        if option not in self.built:
            self.built[option] = self.folder / f"{option}.so"
            source = str(kernels._SOURCES / "kernels.cpp")
            kernels.compile_kernels([COMPILER, *kernels.OPTIONS, OPTIONS[option], source], self.built[option])
        if (option, threads) not in self.loaded:
            copy = shutil.copy(
                self.built[option], self.folder / f"{option}-{threads}.so"
            )  # another file is loaded anew
            self.loaded[option, threads] = ctypes.CDLL(copy)
            self.loaded[option, threads].SetThreads(threads)
        return self.loaded[option, threads]


def launch(library, name, inputs, outputs):
    """Call an entry with arrays, as MindSpore does."""
    arrays = [*inputs, *outputs]
    data = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    pointers = (ctypes.c_void_p * len(arrays))(*map(ctypes.addressof, shapes))
    assert getattr(library, f"Launch{name}")(len(arrays), data, None, pointers, None, None, None) == 0


def randoms(seed, *shapes):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


def count(rows):
    return np.array([rows], np.int32)


def layer_norm(x, gamma, beta):
    x = x.astype(float)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta


def uer_layer_norm(x, gamma, beta):
    x = x.astype(float)
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6) * gamma + beta


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
