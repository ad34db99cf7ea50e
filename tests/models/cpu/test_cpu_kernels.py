"""The C++ kernels for the CPU against NumPy in float64: products, activations, norms, embeddings and losses."""

import math
import mmap
import os
import platform
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from mindgpt.models.cpu import kernels
from tests.models.cpu.kernel_calls import (
    COMPILER,
    EPS,
    ROW_COUNTS,
    UER_EPS,
    count,
    for_all_processors,
    launch,
    layer_norm,
    needs_compiler,
    randoms,
    uer_layer_norm,
)

pytestmark = needs_compiler


def norm_to(values):
    """Gamma, beta and eps that make of any row these numbers."""
    return [np.zeros_like(values), values, EPS]


def post_attention(library, arguments, *, rows):
    """The output, which has room for a row more than `rows`, which must stay as it is."""
    y = np.full((rows + 1, arguments[1].shape[1]), 7, np.float32)
    launch(library, "PostAttention", [*arguments, count(rows)], [y])
    assert (y[rows] == 7).all()
    return y[:rows]


def one_more_row(x):
    return np.concatenate([x, np.ones_like(x[:1])])


def sums(library, x, w, b, residual=None):
    """x w + b + residual, by the product after attention: the feed-forward layer is made of zeros."""
    rows, width = len(x), w.shape[1]
    residual = np.zeros((rows, width), np.float32) if residual is None else residual
    none = np.zeros((width, 1), np.float32)
    layer = [*norm_to(b), none, none[0], count(0), none.T, none[:, 0]]
    return post_attention(library, [one_more_row(x), w, b, one_more_row(residual), *layer], rows=rows)


def activated(library, kind, x):
    """activation(x) for x (F,), by the feed-forward layer: all but a bias is zeros, or one."""
    none, one = np.zeros((len(x), len(x)), np.float32), np.eye(len(x), dtype=np.float32)
    number = count(kernels.ACTIVATIONS.index(kind))
    rest = [*norm_to(none[0]), none, x, number, one, none[0]]
    return post_attention(library, [none[:2], none, none[0], none[:2], *rest], rows=1)[0]


def logits(library, x, gamma, beta, w, divisor=EPS):
    rows = len(x)
    y = np.full((rows + 1, len(w)), 7, np.float32)
    launch(library, "Logits", [one_more_row(x), gamma, beta, divisor, w, count(rows)], [y])
    assert (y[rows] == 7).all()
    return y[:rows]


@for_all_processors
@pytest.mark.parametrize(("inner", "outer"), [(64, 96), (50, 131), (129, 48), (1000, 7), (1601, 211)])
def test_products(libraries, option, inner, outer):
    """Widths that are multiples of all vectors, and of none; more rows than a panel has, and fewer."""
    library = libraries(option)
    w, b, gamma, beta = randoms(1, (inner, outer), (outer,), (inner,), (inner,))
    w /= np.sqrt(inner)
    transposed = np.ascontiguousarray(w.T)
    for rows in ROW_COUNTS:
        x, residual = randoms(rows, (rows, inner), (rows, outer))
        close = {"rtol": 0, "atol": 2e-6 + 4e-7 * inner**0.5}  # numbers of size 5, whose last bit is 4.8e-7
        np.testing.assert_allclose(sums(library, x, w, b), x.astype(float) @ w + b, **close)
        np.testing.assert_allclose(sums(library, x, w, b, residual), x.astype(float) @ w + b + residual, **close)
        expected = layer_norm(x, gamma, beta) @ transposed.T
        np.testing.assert_allclose(
            logits(library, x, gamma, beta, transposed), expected, rtol=0, atol=2 * close["atol"]
        )


@for_all_processors
@pytest.mark.parametrize(("hidden", "width"), [(64, 256), (50, 131), (768, 100)])
@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_post_attention_block(libraries, option, hidden, width, kind):
    """The whole of it: projection, residual, layer norm, feed-forward layer, residual."""
    w, b, gamma, beta = randoms(2, (hidden, hidden), (hidden,), (hidden,), (hidden,))
    up, up_bias, down, down_bias = randoms(3, (hidden, width), (width,), (width, hidden), (hidden,))
    number = count(kernels.ACTIVATIONS.index(kind))
    for matrix in (w, up, down):
        matrix /= np.sqrt(len(matrix))
    for rows in ROW_COUNTS:
        context, x = randoms(rows, (rows, hidden), (rows, hidden))
        middle = x + context.astype(float) @ w + b
        expected = middle + FORMULAS[kind](layer_norm(middle, gamma, beta) @ up + up_bias) @ down + down_bias
        arguments = [
            one_more_row(context),
            w,
            b,
            one_more_row(x),
            gamma,
            beta,
            EPS,
            up,
            up_bias,
            number,
            down,
            down_bias,
        ]
        np.testing.assert_allclose(post_attention(libraries(option), arguments, rows=rows), expected, atol=1e-5)


def test_long_sums(libraries):
    """Of numbers above zero, where roundings pile up: K of GPT-3's feed-forward layer, few rows and many."""
    x, w = map(np.abs, randoms(11, (1, 12288), (12288, 50)))
    x = np.repeat(x, 32, axis=0)
    expected, no_bias, transposed = x.astype(float) @ w, np.zeros(50, np.float32), np.ascontiguousarray(w.T)
    for rows in (1, 32):
        for y in (
            sums(libraries(), x[:rows], w, no_bias),
            logits(libraries(), x[:rows], np.zeros_like(x[0]), x[0], transposed),
        ):
            np.testing.assert_allclose(y, expected[:rows], rtol=1.5e-6)  # one sum from begin to end is off by 4e-6


FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_activations(libraries, kind):
    """From far below to far above zero."""
    x = np.concatenate([np.linspace(-60, 60, 1201), np.linspace(-6, 6, 600), [-3e38, -1e5, 1e5]]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = FORMULAS[kind](x.astype(float))
    np.testing.assert_allclose(activated(libraries(), kind, x), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("kind", kernels.ACTIVATIONS)
def test_a_number_that_is_none_stays_one(libraries, kind):
    assert np.isnan(activated(libraries(), kind, np.full(5, np.nan, np.float32))).all()


@pytest.mark.parametrize(("norm", "divisor"), [(layer_norm, EPS), (uer_layer_norm, UER_EPS)], ids=["standard", "uer"])
@pytest.mark.parametrize("width", [16, 50, 768])
def test_layer_norm(libraries, width, norm, divisor):
    """Times one, it is what comes out."""
    x, gamma, beta = randoms(3, (20, width), (width,), (width,))
    x = x * 5 + 30
    for rows in (1, 5, 19):
        y = logits(libraries(), x[:rows], gamma, beta, np.eye(width, dtype=np.float32), divisor)
        np.testing.assert_allclose(y, norm(x[:rows], gamma, beta), atol=5e-5)


def test_a_row_of_equal_values_is_beta(libraries):
    x, gamma, beta = np.full((1, 16), 3, np.float32), *randoms(4, (16,), (16,))
    y = logits(libraries(), x, gamma, beta, np.eye(16, dtype=np.float32), UER_EPS)
    np.testing.assert_allclose(y[0], beta, rtol=1e-6)


def test_embedding(libraries):
    words, positions = randoms(13, (50, 20), (9, 20))
    ids, places = np.array([[3, 49, 0], [7, 7, 1]], np.int32), np.array([[0, 1, 2], [8, 0, 0]], np.int32)
    for rows in (1, 4, 6):
        x = np.full((6, 20), 7, np.float32)
        launch(libraries(), "Embedding", [words, positions, ids, places, count(rows)], [x])
        np.testing.assert_array_equal(x[:rows], (words[ids] + positions[places]).reshape(6, 20)[:rows])
        assert (x[rows:] == 7).all()


@pytest.mark.parametrize(
    ("slots", "new_slots", "row", "first", "new_row", "wanted"),
    [(9, 5, 1, 0, 2, 9), (9, 5, 0, 6, 0, 9), (5, 9, 1, 2, 3, 9), (9, 9, 1, 1, 3, 4)],
)
def test_rows_of_caches_are_copied(libraries, slots, new_slots, row, first, new_row, wanted):
    """To a smaller cache, from the end of a text, to a larger cache, a part: two layers, keys and values."""
    heads, size, rows, new_rows = 3, 4, 2, 4
    source = randoms(14, *[(rows * heads * slots, size)] * 4)
    target = randoms(15, *[(new_rows * heads * new_slots, size)] * 4)
    expected = [array.reshape(new_rows, heads, new_slots, size).copy() for array in target]
    copied = min(slots - first, new_slots, wanted)
    for new, old in zip(expected, source, strict=True):
        new[new_row, :, :copied] = old.reshape(rows, heads, slots, size)[row, :, first : first + copied]
    where, sizes = np.array([row, first, new_row, wanted], np.int32), np.array([heads, slots, new_slots], np.int32)
    told = np.zeros(1, np.int32)
    launch(libraries(), "CopyRow", [*source, *target, where, sizes], [told])
    assert told[0] == copied
    for new, array in zip(expected, target, strict=True):
        np.testing.assert_array_equal(array.reshape(new.shape), new)


@for_all_processors
@pytest.mark.parametrize("words", [1, 49, 384, 1000])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_losses_of_targets(libraries, option, words, spread):
    """Vocabularies of less than a tile, of one, and of some; logits so far apart that most of their e^x are 0."""
    w, gamma, beta = randoms(16, (words, 50), (50,), (50,))
    w *= spread / 50**0.5
    for rows in ROW_COUNTS:
        (x,) = randoms(rows, (rows + 1, 50))
        targets = np.random.default_rng(rows).integers(0, words, rows + 1).astype(np.int32)
        targets[:2] = 0, words - 1
        scores = layer_norm(x, gamma, beta) @ w.T
        highest = scores.max(-1, keepdims=True)
        expected = np.log(np.exp(scores - highest).sum(-1)) + highest[:, 0] - scores[np.arange(rows + 1), targets]
        losses = np.full(rows + 1, 7, np.float32)
        launch(libraries(option), "TargetLosses", [x, gamma, beta, EPS, w, targets, count(rows)], [losses])
        np.testing.assert_allclose(losses[:rows], expected[:rows], rtol=2e-6, atol=2e-6 * spread)
        assert losses[rows] == 7


@pytest.mark.parametrize("number", [-1, 5, 2**31 - 1, -(2**31)])
def test_what_is_in_no_table_is_not_read(libraries, number):
    """MindSpore makes an error of it; far out, a process would end."""
    x, w = randoms(17, (2, 8), (5, 8))
    wrong, right = np.array([4, number], np.int32), np.array([4, 0], np.int32)
    inputs = {
        "TargetLosses": [[x, x[0], x[1], EPS, w, wrong, count(2)]],
        "Embedding": [[w, w, ids[None], places[None], count(2)] for ids, places in ((wrong, right), (right, wrong))],
    }
    for name, cases in inputs.items():
        for arrays in cases:
            with pytest.raises(AssertionError):
                launch(libraries(), name, arrays, [np.zeros((2, 8), np.float32)])


def test_a_row_depends_neither_on_the_others_nor_on_the_threads(libraries):
    """To the last bit: among few rows, among many, and among as many as each thread has its own of."""
    w, b = randoms(8, (300, 500), (500,))
    gamma, beta = randoms(9, (300,), (300,))
    transposed = np.ascontiguousarray(w.T)
    products = (lambda *where: sums(*where, w, b)), (lambda *where: logits(*where, gamma, beta, transposed))
    for few, some in ((1, 4), (9, 33), (140, 410)):  # up to 4 are few on every processor
        (x,) = randoms(10, (some, 300))
        for product in products:
            several = [product(libraries(threads=n), x) for n in (1, 2, 3)]
            np.testing.assert_array_equal(several[0], several[1])
            np.testing.assert_array_equal(several[0], several[2])
            np.testing.assert_array_equal(product(libraries(threads=2), x[:few]), several[0][:few])


def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))


def test_each_library_has_its_own_threads(libraries):
    """So these tests test what they say: of names that libraries share, the first one's holds for all."""
    library, before = libraries(threads=5), threads_of_this_process()
    (x, w, b) = randoms(12, (2, 200), (200, 300), (300,))
    sums(library, x, w, b)
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
            y = sums(library, x, w, b)
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
    y = logits(libraries(), x, np.zeros_like(x[0]), x[0], w)
    assert pages_of(w) >= before + 1024 * 24  # all but what lies at the edges
    np.testing.assert_allclose(y[0], w.astype(float) @ x[0], atol=2e-3)
    assert (w.reshape(-1) == np.arange(w.size) % 7).all()
