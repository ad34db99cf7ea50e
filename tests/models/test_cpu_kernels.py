"""The C++ kernels for the CPU against NumPy in float64, called as MindSpore calls them."""

import ctypes
import mmap
import os
import platform
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from mindgpt.models.cpu_kernels import kernels

COMPILER = shutil.which(os.environ.get("CXX") or "g++")
pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or COMPILER is None, reason="the kernels need Linux and a C++ compiler"
)
SOURCE = kernels._SOURCES / "kernels.cpp"
OPTIONS = {"native": kernels.for_this_processor(), "avx2": "-march=haswell", "sse2": "-march=x86-64"}
ROW_COUNTS = (1, 2, 3, 7, 8, 9, 17, 40, 600)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """`libraries(option, threads)`: the kernels built for a processor, each with its own threads."""
    folder, built, loaded = tmp_path_factory.mktemp("kernels"), {}, {}

    def load(option="native", threads=2):
        if option not in built:
            built[option] = folder / f"{option}.so"
            kernels.compile_kernels([COMPILER, *kernels.OPTIONS, OPTIONS[option], str(SOURCE)], built[option])
        if (option, threads) not in loaded:
            copy = shutil.copy(built[option], folder / f"{option}-{threads}.so")  # another file is loaded anew
            loaded[option, threads] = ctypes.CDLL(copy)
            loaded[option, threads].SetThreads(threads)
        return loaded[option, threads]

    return load


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


def product(library, name, x, w, *rest, rows, width):
    """The output of a product with room for a row more than `rows`, which must stay as it is."""
    y = np.full((rows + 1, width), 7, np.float32)
    room = np.concatenate([x, np.ones_like(x[:1])])
    launch(library, name, [room, w, *rest, count(rows)], [y])
    assert (y[rows] == 7).all()
    return y[:rows]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("inner", "outer"), [(64, 96), (50, 131), (129, 48), (1000, 7), (1601, 211)])
def test_products(libraries, option, inner, outer):
    """Widths that are multiples of all vectors, and of none; more rows than a panel has, and fewer."""
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    library = libraries(option)
    w, b, s, c = *randoms(1, (inner, outer), (outer,)), *kernels.GATES["gelu"]
    turned, gate = np.ascontiguousarray(w.T), np.array([s, c], np.float32)
    for rows in ROW_COUNTS:
        x, residual = randoms(rows, (rows, inner), (rows + 1, outer))
        x /= np.sqrt(inner)
        expected = x.astype(float) @ w
        close = {"rtol": 0, "atol": 2e-6 + 4e-7 * inner**0.5}  # numbers of size 5, whose last bit is 4.8e-7
        np.testing.assert_allclose(
            product(library, "OutInProduct", x, turned, rows=rows, width=outer), expected, **close
        )
        y = product(library, "InOutProduct", x, w, b, rows=rows, width=outer)
        np.testing.assert_allclose(y, expected + b, **close)
        y = product(library, "InOutProductPlus", x, w, b, residual, rows=rows, width=outer)
        np.testing.assert_allclose(y, expected + b + residual[:rows], **close)
        y = product(library, "GatedInOutProduct", x, w, b, gate, rows=rows, width=outer)
        np.testing.assert_allclose(y, gelu(expected + b), **close)


def test_long_sums(libraries):
    """Of numbers above zero, where roundings pile up: K of GPT-3's feed-forward layer, few rows and many."""
    x, w = map(np.abs, randoms(11, (32, 12288), (12288, 50)))
    expected, no_bias, turned = x.astype(float) @ w, np.zeros(50, np.float32), np.ascontiguousarray(w.T)
    for rows in (1, 32):
        for y in (
            product(libraries(), "InOutProduct", x[:rows], w, no_bias, rows=rows, width=50),
            product(libraries(), "OutInProduct", x[:rows], turned, rows=rows, width=50),
        ):
            np.testing.assert_allclose(y, expected[:rows], rtol=1.5e-6)  # one sum from begin to end is off by 4e-6


def layer_norm(x, gamma, beta):
    x = x.astype(float)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta


EPS = np.array([1e-5], np.float32)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("products", [1, 2, 3])
def test_several_products_at_once(libraries, option, products):
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    for rows in ROW_COUNTS:
        gamma, beta, *weights = randoms(2, (70,), (70,), *[(90, 70), (90,)] * products)
        (x,) = randoms(rows, (rows, 70))
        outputs = [np.empty((rows, 90), np.float32) for _ in range(products)]
        launch(libraries(option), "OutInProducts", [x, gamma, beta, EPS, *weights, count(rows)], outputs)
        for y, w, b in zip(outputs, weights[::2], weights[1::2], strict=True):
            np.testing.assert_allclose(y, layer_norm(x, gamma, beta) @ w.T + b, atol=3e-5)


@pytest.mark.parametrize("name", kernels.GATES)
def test_activations(libraries, name):
    """One at a time, from far below to far above zero: identity times the numbers."""
    formulas = {
        "gelu": gelu,
        "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
        "silu": lambda x: x / (1 + np.exp(-x)),
    }
    x = np.concatenate([np.linspace(-60, 60, 4001), [-3e38, -1e5, 1e5]]).astype(np.float32)[:, None]
    y = product(
        libraries(), "GatedInOutProduct", x, np.ones((1, 1), np.float32), np.zeros(1, np.float32),
        np.array(kernels.GATES[name], np.float32), rows=len(x), width=1,
    )  # fmt: skip
    with np.errstate(over="ignore"):
        expected = formulas[name](x.astype(float))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)


def test_a_number_that_is_none_stays_one(libraries):
    x, w, b = np.full((1, 8), np.nan, np.float32), np.ones((8, 5), np.float32), np.zeros(5, np.float32)
    for gate in kernels.GATES.values():
        numbers = np.array(gate, np.float32)
        assert np.isnan(product(libraries(), "GatedInOutProduct", x, w, b, numbers, rows=1, width=5)).all()


@pytest.mark.parametrize("width", [16, 50, 768])
def test_layer_norm_before_a_product(libraries, width):
    """Each product takes it; times one, and nothing added, it is what comes out."""
    x, gamma, beta = randoms(3, (20, width), (width,), (width,))
    x = x * 5 + 30
    expected = layer_norm(x, gamma, beta)
    norm, one, nothing = [gamma, beta, EPS], np.eye(width, dtype=np.float32), np.zeros(width)
    bias = nothing.astype(np.float32)
    open_gate = np.array([1e4, 0], np.float32)  # lets through what is above zero
    for rows in (1, 5, 19):
        products = {
            "OutInProduct": ([one], 1),
            "OutInProducts": ([one, bias] * 3, 3),
            "InOutProduct": ([one, bias], 1),
            "GatedInOutProduct": ([one, bias, open_gate], 1),
        }
        for name, (weights, outputs) in products.items():
            ys = [np.full_like(x, 7) for _ in range(outputs)]
            launch(libraries(), name, [x, *norm, *weights, count(rows)], ys)
            for y in ys:
                wanted = np.maximum(expected, 0) if name == "GatedInOutProduct" else expected
                np.testing.assert_allclose(y[:rows], wanted[:rows], atol=5e-5)
                assert (y[rows:] == 7).all()


def test_embedding(libraries):
    words, positions = randoms(13, (50, 20), (9, 20))
    ids, places = np.array([[3, 49, 0], [7, 7, 1]], np.int32), np.array([[0, 1, 2], [8, 0, 0]], np.int32)
    for rows in (1, 4, 6):
        x = np.full((6, 20), 7, np.float32)
        launch(libraries(), "Embedding", [words, positions, ids, places, count(rows)], [x])
        np.testing.assert_array_equal(x[:rows], (words[ids] + positions[places]).reshape(6, 20)[:rows])
        assert (x[rows:] == 7).all()


@pytest.mark.parametrize(
    ("slots", "new_slots", "row", "first", "new_row"), [(9, 5, 1, 0, 2), (9, 5, 0, 6, 0), (5, 9, 1, 2, 3)]
)
def test_rows_of_caches_are_copied(libraries, slots, new_slots, row, first, new_row):
    """To a smaller cache, from the end of a text, to a larger cache: two layers, keys and values."""
    heads, size, rows, new_rows = 3, 4, 2, 4
    source = randoms(14, *[(rows * heads * slots, size)] * 4)
    target = randoms(15, *[(new_rows * heads * new_slots, size)] * 4)
    expected = [array.reshape(new_rows, heads, new_slots, size).copy() for array in target]
    copied = min(slots - first, new_slots)
    for new, old in zip(expected, source, strict=True):
        new[new_row, :, :copied] = old.reshape(rows, heads, slots, size)[row, :, first : first + copied]
    where, sizes = np.array([row, first, new_row], np.int32), np.array([heads, slots, new_slots], np.int32)
    told = np.zeros(1, np.int32)
    launch(libraries(), "CopyRow", [*source, *target, where, sizes], [told])
    assert told[0] == copied
    for new, array in zip(expected, target, strict=True):
        np.testing.assert_array_equal(array.reshape(new.shape), new)


def heads_of(x, heads):
    """(T, N*D) -> (N, T, D)"""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 20), (1, 5)])
def test_attention_of_next_tokens(libraries, option, heads, size):
    """Texts of several lengths, the longest as long as the cache."""
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    slots, positions = 70, np.array([[0], [1], [15], [16], [69]], np.int32)
    texts = len(positions)
    q, k, v = randoms(4, *[(texts, heads * size)] * 3)
    keys, values = randoms(5, *[(texts * heads * slots, size)] * 2)
    keys_then, values_then = (cache.reshape(texts, heads, slots, size).copy() for cache in (keys, values))
    context = np.empty_like(q)
    scale = np.array([0.3], np.float32)
    launch(
        libraries(option), "AttentionOfNextTokens", [q, k, v, keys, values, positions, scale, count(texts)], [context]
    )
    for text, (position,) in enumerate(positions):
        keys_then[text, :, position], values_then[text, :, position] = (
            new[text].reshape(heads, size) for new in (k, v)
        )
        for head in range(heads):
            seen_keys, seen_values = (
                cache[text, head, : position + 1].astype(float) for cache in (keys_then, values_then)
            )
            weights = softmax(0.3 * seen_keys @ q[text].reshape(heads, size)[head])
            np.testing.assert_allclose(context[text].reshape(heads, size)[head], weights @ seen_values, atol=2e-6)
    np.testing.assert_array_equal(keys.reshape(keys_then.shape), keys_then)
    np.testing.assert_array_equal(values.reshape(values_then.shape), values_then)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 20)])
@pytest.mark.parametrize("lengths", [(1,), (130,), (3, 1, 50, 9, 8), (17, 100)])
def test_attention_within_texts(libraries, option, heads, size, lengths):
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    rows, slots = sum(lengths), 150
    q, k, v = randoms(6, *[(rows + 2, heads * size)] * 3)
    keys, values = randoms(7, *[(heads * slots, size)] * 2)
    before = np.copy(keys), np.copy(values)
    behind = [cache.reshape(heads, slots, size)[:, rows:].copy() for cache in (keys, values)]
    positions = np.concatenate([*(np.arange(length) for length in lengths), [0, 0]]).astype(np.int32)[None]
    context = np.full_like(q, 7)
    scale = np.array([0.3], np.float32)
    launch(libraries(option), "AttentionWithinTexts", [q, k, v, keys, values, positions, scale, count(rows)], [context])
    kept, told = [np.copy(cache) for cache in before], np.zeros(1, np.int32)
    launch(libraries(option), "KeepKeysAndValues", [k, v, *kept, count(rows)], [told])
    assert told[0] == rows
    np.testing.assert_array_equal(kept, [keys, values])
    some = np.array([rows - 1, 0, rows // 2, rows - 1], np.int32)
    later = np.full((4, heads * size), 7, np.float32)
    asked = [q[some], keys, values, some, positions[0, some], scale, count(3)]
    launch(libraries(option), "AttentionOfTokens", asked, [later])
    np.testing.assert_allclose(later[:3], context[some[:3]], atol=3e-6)
    assert (later[3] == 7).all()
    first = 0
    for length in lengths:
        part = slice(first, first + length)
        q_heads, k_heads, v_heads = (heads_of(x[part].astype(float), heads) for x in (q, k, v))
        scores = 0.3 * q_heads @ k_heads.transpose(0, 2, 1)
        scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        np.testing.assert_allclose(heads_of(context[part], heads), softmax(scores) @ v_heads, atol=3e-6)
        first += length
    assert (context[rows:] == 7).all()
    for cache, written, kept in zip((keys, values), (k, v), behind, strict=True):
        cache = cache.reshape(heads, slots, size)
        np.testing.assert_array_equal(cache[:, :rows], heads_of(written[:rows], heads))
        np.testing.assert_array_equal(cache[:, rows:], kept)


MASKS = {
    "none": np.ones((3, 61)),
    "on the right": np.arange(61) < np.array([[61], [40], [1]]),
    "on the left": np.arange(61) >= np.array([[0], [1], [60]]),
    "everywhere": np.random.default_rng(0).random((3, 61)) < 0.4,
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("padding", MASKS)
def test_attention_of_rows(libraries, option, padding):
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    mask = MASKS[padding].astype(np.int32)
    (texts, length), heads, size = mask.shape, 3, 20
    q, k, v = randoms(6, *[(texts * length, heads * size)] * 3)
    context, scale = np.empty_like(q), np.array([0.3], np.float32)
    launch(
        libraries(option), "AttentionOfRows",
        [q, k, v, mask, np.array([heads], np.int32), scale, count(texts * length)], [context],
    )  # fmt: skip
    for text in range(texts):
        part = slice(text * length, (text + 1) * length)
        q_heads, k_heads, v_heads = (heads_of(x[part].astype(float), heads) for x in (q, k, v))
        scores = 0.3 * q_heads @ k_heads.transpose(0, 2, 1)
        unseen = np.triu(np.ones((length, length), bool), 1) | (mask[text] == 0)
        scores[:, unseen & ~np.eye(length, dtype=bool)] = -np.inf  # a token sees itself in any case
        np.testing.assert_allclose(heads_of(context[part], heads), softmax(scores) @ v_heads, atol=3e-6)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("words", [1, 49, 384, 1000])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_losses_of_targets(libraries, option, words, spread):
    """Vocabularies of less than a tile, of one, and of some; logits so far apart that most of their e^x are 0."""
    if option != "native" and platform.machine() != "x86_64":
        pytest.skip("for x86")
    w, gamma, beta = randoms(16, (words, 50), (50,), (50,))
    w *= spread / 50**0.5
    for rows in ROW_COUNTS:
        (x,) = randoms(rows, (rows + 1, 50))
        targets = np.random.default_rng(rows).integers(0, words, rows + 1).astype(np.int32)
        targets[:2] = 0, words - 1
        for norm, values in (([], x.astype(float)), ([gamma, beta, EPS], layer_norm(x, gamma, beta))):
            logits = values @ w.T
            highest = logits.max(-1, keepdims=True)
            expected = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0] - logits[np.arange(rows + 1), targets]
            losses = np.full(rows + 1, 7, np.float32)
            launch(libraries(option), "TargetLosses", [x, *norm, w, targets, count(rows)], [losses])
            np.testing.assert_allclose(losses[:rows], expected[:rows], rtol=2e-6, atol=2e-6 * spread)
            assert losses[rows] == 7


@pytest.mark.parametrize("number", [-1, 5, 2**31 - 1, -(2**31)])
def test_what_is_in_no_table_is_not_read(libraries, number):
    """MindSpore makes an error of it; far out, a process would end."""
    x, w = randoms(17, (2, 8), (5, 8))
    wrong, right = np.array([4, number], np.int32), np.array([4, 0], np.int32)
    inputs = {
        "TargetLosses": [[x, w, wrong, count(2)]],
        "Embedding": [[w, w, ids[None], places[None], count(2)] for ids, places in ((wrong, right), (right, wrong))],
    }
    for name, cases in inputs.items():
        for arrays in cases:
            with pytest.raises(AssertionError):
                launch(libraries(), name, arrays, [np.zeros((2, 8), np.float32)])


def test_a_text_does_not_depend_on_those_before_it(libraries):
    """To the last bit, and were they not numbers."""
    scale, contexts = np.array([0.3], np.float32), []
    for before in (0, 3, 40):
        q, k, v = (np.concatenate([np.full((before, 20), np.nan, np.float32), x]) for x in randoms(13, *[(90, 20)] * 3))
        positions = np.concatenate([np.arange(before), np.arange(90)]).astype(np.int32)[None]
        keys, values, context = np.zeros((130, 20), np.float32), np.zeros((130, 20), np.float32), np.empty_like(q)
        arguments = [q, k, v, keys, values, positions, scale, count(before + 90)]
        launch(libraries(), "AttentionWithinTexts", arguments, [context])
        contexts.append(context[before:])
    np.testing.assert_array_equal(contexts[0], contexts[1])
    np.testing.assert_array_equal(contexts[0], contexts[2])


def test_a_row_depends_neither_on_the_others_nor_on_the_threads(libraries):
    """To the last bit: among few rows, and among many."""
    w, b = randoms(8, (300, 500), (500,))
    turned = np.ascontiguousarray(w.T)
    for few, some in ((1, 8), (9, 33), (140, 410)):
        (x,) = randoms(9, (some, 300))
        for name, arguments in (("InOutProduct", (w, b)), ("OutInProduct", (turned,))):
            several = [product(libraries(threads=n), name, x, *arguments, rows=some, width=500) for n in (1, 2, 3)]
            np.testing.assert_array_equal(several[0], several[1])
            np.testing.assert_array_equal(several[0], several[2])
            alone = product(libraries(threads=2), name, x[:few], *arguments, rows=few, width=500)
            np.testing.assert_array_equal(alone, several[0][:few])


def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))


def test_each_library_has_its_own_threads(libraries):
    """So these tests test what they say: of names that libraries share, the first one's holds for all."""
    library, before = libraries(threads=5), threads_of_this_process()
    (x, w, b) = randoms(12, (2, 200), (200, 300), (300,))
    product(library, "InOutProduct", x, w, b, rows=2, width=300)
    assert threads_of_this_process() == before + 4


def test_every_tile_is_done_once(tmp_path):
    """Kernels that are over at once, so that a worker often comes too late, when the next one is being set up."""
    source = tmp_path / "tiles.cpp"
    source.write_text(TILES)
    options = ["-std=c++17", "-O2", "-pthread", f"-I{kernels._SOURCES}"]
    subprocess.run([COMPILER, *options, str(source), "-o", str(tmp_path / "tiles")], check=True)
    result = subprocess.run([tmp_path / "tiles"], capture_output=True, text=True, timeout=300)
    assert result.stdout == "" and result.returncode == 0


TILES = r"""
#include <cstdio>

#include "workers.h"

int main() {
  Workers::wanted() = 3;
  static std::atomic<int> done[64];
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  for (int kernel = 0; std::chrono::steady_clock::now() < end; ++kernel) {
    const int64_t tiles = kernel % 3 ? 1 + kernel % 4 : 64;
    for (auto &count : done) count = 0;
    Workers::get().run(tiles, [kernel](int64_t tile) { done[tile & 63] += kernel % 7 + 1; });
    for (int tile = 0; tile < 64; ++tile) {
      if (done[tile] == (tile < tiles ? kernel % 7 + 1 : 0)) continue;
      return std::printf("kernel %d: tile %d of %d\n", kernel, tile, int(tiles));
    }
  }
}
"""


def test_kernels_that_run_at_the_same_time(libraries):
    """Two threads call them without end; more workers than cores take part."""
    library, failures = libraries(threads=3), []
    w, b = randoms(10, (200, 300), (300,))

    def work(seed):
        (x,) = randoms(seed, (3, 200))
        expected = x.astype(float) @ w + b
        for _ in range(1500):
            y = product(library, "InOutProduct", x, w, b, rows=3, width=300)
            if not np.allclose(y, expected, atol=1e-4):
                failures.append(seed)
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def pages_of(array):
    """How many kB of the piece of memory that an array lies in are on huge pages, as Linux tells."""
    address, lines, inside = array.ctypes.data, [], False
    with open("/proc/self/smaps") as file:
        for line in file:
            if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
                begin, end = (int(number, 16) for number in line.split()[0].split("-"))
                inside = begin <= address < end
            elif inside:
                lines.append(line)
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def test_weights_move_to_huge_pages(libraries):
    """Where Linux has them: and every value stays what it was."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if not switch.exists() or "[never]" in switch.read_text() or release < (6, 1):
        pytest.skip("this Linux has no huge pages that a program can ask for")
    memory = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # on small pages: nothing asked for others
    w = np.frombuffer(memory, np.float32).reshape(1 << 13, 1 << 10)
    w[:] = np.arange(w.size, dtype=np.float32).reshape(w.shape) % 7
    before, (x,) = pages_of(w), randoms(12, (1, 1 << 10))
    y = product(libraries(), "OutInProduct", x, w, rows=1, width=len(w))
    assert pages_of(w) >= before + 1024 * 24  # all but what lies at the edges
    np.testing.assert_allclose(y[0], w.astype(float) @ x[0], atol=2e-3)
    assert (w.reshape(-1) == np.arange(w.size) % 7).all()
