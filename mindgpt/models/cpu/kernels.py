"""C++ kernels for reading texts, continuing them and telling how likely they are, on a CPU, as MindSpore primitives.

What they have that MindSpore's operators have not (docs/performance.md has the figures):
- A step of one token multiplies one row per text with every weight of the model, so it takes as long as reading the
  weights from memory does. These products read them nearly as fast as the memory can.
- They work on as many rows as they are told, not on all that a graph was compiled for: one graph reads texts of every
  length, each in its own time.
- Many rows are multiplied as fast as a tuned BLAS does, while the weights that follow are brought into the cache. Bias,
  residual and activation are added while a block of the product is there, and so are the logits of a piece of the
  vocabulary turned into losses. Keys and values are read from where they lie.

The library is compiled for this very processor when it is first asked for, which takes some seconds, and kept in the
user's cache. Without a C++ compiler there is none, and MindSpore's own operators do the work.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import uuid
from functools import cache
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, ops

from mindgpt.io.processes import available_cores
from mindgpt.io.user_cache import user_cache

ACTIVATIONS = ("gelu", "gelu_erf", "fast_gelu", "silu", "relu")
"""Those of `gpt2_modules.Activation`, in the order in which the kernels number them."""

SWITCH = "MINDGPT_CPU_KERNELS"
_MOST_THREADS = 16  # memory is the limit, and a few cores reach it; not measured on more than two
_SOURCES = Path(__file__).parent
OPTIONS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread"),
    # For some AMD processors GCC fuses no multiplication and addition in long chains, which single rows have: a row
    # would then depend on how many there are.
    "--param=avoid-fma-max-bits=0",
)


def library() -> Path | None:
    """The compiled library, if there can be one and the device is a CPU."""
    return _find_library()[0] if ms.get_context("device_target") == "CPU" else None


def why_no_library() -> str | None:
    """What a person on a CPU can do something about: why there is no library."""
    return _find_library()[1] if ms.get_context("device_target") == "CPU" else None


@cache
def _find_library() -> tuple[Path | None, str | None]:
    """The library for a CPU, or why there is none."""
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH} is 0"
    if platform.system() != "Linux":
        return None, "MindSpore takes kernels of others on Linux only"
    compiler = os.environ.get("CXX", "").split() or ["g++"]  # `ccache g++` is one, too
    name = " ".join(compiler)
    if shutil.which(compiler[0]) is None:
        return None, f"there is no C++ compiler ({name})"
    command = [*compiler, *OPTIONS, for_this_processor(), str(_SOURCES / "kernels.cpp")]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True).stdout
        target = user_cache() / f"cpu-kernels-{_fingerprint(command, version)}.so"
    except (OSError, RuntimeError) as error:  # a program of another system; no home
        return None, f"cannot run {name}, or find the user's cache ({error})"
    try:
        if not target.exists():
            compile_kernels(command, target)
        ctypes.CDLL(str(target)).SetThreads(_threads())  # MindSpore, too, will load it, and get the same one
    except OSError as error:
        return None, f"cannot write or load {target} ({error.strerror or error})"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        reason = next((line for line in said if "error" in line), said[0])
        return None, f"{name} cannot compile {command[-1]} ({reason})"
    except subprocess.TimeoutExpired as error:
        return None, f"{name} did not compile {command[-1]} in {error.timeout:.0f} s"
    return target, None


def for_this_processor() -> str:
    """The compiler's option for all the instructions that this machine has."""
    return "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"


def _threads() -> int:
    """As many as there are cores for this process, but at most `OMP_NUM_THREADS`, which MindSpore hides from C++."""
    count = available_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        count = min(count, int(asked))
    return min(count, _MOST_THREADS)


def _fingerprint(command: list[str], version: bytes) -> str:
    """Of what the library is made from, and by and for what: several machines may share a cache."""
    digest = hashlib.sha256("\n".join([*command, _processor()]).encode() + version)
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Which instructions this processor has."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def compile_kernels(command: list[str], target: Path) -> None:
    """Run a compiler's command; the library is there whole or not at all. Raises CalledProcessError, OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, timeout=120)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


# Shape letters: M rows, H hidden, F feed-forward width, V vocabulary; B texts, T tokens. All arrays are float32 but for
# ids, positions, counts and the last input of every kernel but `copy_row`: rows (1,) int32, how many to work on. Other
# rows come out undefined. "Norm" stands for gamma (H,), beta (H,) and divisor (2,) of a layer norm: eps, and 0 if it is
# inside the root of the biased variance, 1 if it is added to the unbiased standard deviation; "projections" for
# x (M, H), its norm, and w (H, H) and b (H,) of queries, keys and values, in this order, or of those that are named,
# where q is norm(x) w^T + b, and so on.


def _primitive(entry: str, shape, dtype=lambda x, *rest: x) -> ops.Custom:
    return ops.Custom(f"{library()}:Launch{entry}", shape, dtype, func_type="aot")


def embedding() -> ops.Custom:
    """Word embeddings (V, H), those of positions (P, H), ids and positions (B, T) int32, rows -> their sum: (B*T, H).
    An id or a position that is in no table makes it fail."""
    return _primitive("Embedding", lambda words, positions, ids, *rest: (ids[0] * ids[1], words[1]))


def copy_row() -> ops.Custom:
    """One row of a `KeyValueCache`, from some slot on, to the front of a row of another or of the same, as many slots
    as are wanted, or as the smaller one has.

    Takes the source's keys of all layers, its values, and as many of the target, which are changed in place; where
    (4,) int32: the source's row, its slot, the target's row, how many slots are wanted; sizes (3,) int32: heads, slots
    of a row of the source and of the target -> how many slots were copied: (1,) int32.
    """
    return _primitive("CopyRow", lambda *arrays: (1,), lambda *arrays: ms.int32)


def attention_of_next_tokens() -> ops.Custom:
    """One more token of each of B texts: it is written to the cache, and attends to all of its text there.

    Takes projections of B rows, scale (1,), keys and values of a `KeyValueCache` of B rows, which are changed in place,
    positions (B, 1) int32, rows -> softmax(scale q K^T) V of each head, over the slots up to the position: (B, H).
    """
    return _primitive("AttentionOfNextTokens", lambda x, *rest: x)


def attention_within_texts() -> ops.Custom:
    """Texts that lie one after another: they are written to the cache from slot 0 on, and a token attends to its
    text up to itself.

    Takes projections of T rows, scale (1,), keys and values of a `KeyValueCache` of one row, which are changed in
    place, positions (1, T) int32, each token's in its own text, rows -> softmax(scale q K^T) V of each head: (T, H).
    """
    return _primitive("AttentionWithinTexts", lambda x, *rest: x)


def keep_keys_and_values() -> ops.Custom:
    """Texts that lie one after another are written to the cache from slot 0 on, and that is all.

    Takes projections of keys and values, keys and values of a `KeyValueCache` of one row, which are changed in place,
    rows -> how many tokens were written: (1,) int32.
    """
    return _primitive("KeepKeysAndValues", lambda *arrays: (1,), lambda *arrays: ms.int32)


def attention_of_tokens() -> ops.Custom:
    """Some tokens of texts that are in the cache, one after another: each attends to its text up to itself.

    Takes the projection of n queries, scale (1,), keys and values of a `KeyValueCache` of one row, slots (n,) int32,
    which of its tokens these are, positions (n,) int32, each one's in its own text, rows -> softmax(scale q K^T) V of
    each head: (n, H).
    """
    return _primitive("AttentionOfTokens", lambda x, *rest: x)


def attention_of_rows() -> ops.Custom:
    """Texts of one length, side by side: a token attends to itself, and to its text before it where that is no padding.

    Takes projections of B*T rows, scale (1,), mask (B, T) int32, 0 at padding, heads (1,) int32, rows, a multiple of T
    -> softmax(scale q K^T) V of each head: (B*T, H).
    """
    return _primitive("AttentionOfRows", lambda x, *rest: x)


def post_attention() -> ops.Custom:
    """What a block does after its attention.

    Takes context (M, H); w (H, H) and b (H,) of the output projection; x (M, H), the block's input; the second norm;
    w (H, F) and b (F,), the activation's number in `ACTIVATIONS` (1,) int32, w (F, H) and b (H,) of the feed-forward
    layer; rows -> the block's output: (M, H)
    """
    return _primitive("PostAttention", lambda context, *rest: context)


def logits() -> ops.Custom:
    """x (M, H), its norm, w (V, H), rows -> norm(x) w^T: (M, V)"""
    return _primitive("Logits", lambda x, *rest: (x[0], rest[-2][0]))


def target_losses() -> ops.Custom:
    """x (M, H), its norm, w (V, H), targets (M,) int32 in [0, V), else it fails, rows -> -log P of each target, where P
    is softmax(norm(x) w^T): (M,)"""
    return _primitive("TargetLosses", lambda x, *rest: (x[0],))


def number(*values: float) -> Tensor:
    """What a kernel takes numbers as."""
    return Tensor(values, ms.float32)
