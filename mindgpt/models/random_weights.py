"""Random initial weights, drawn in float32 by all cores.

MindSpore's `Normal` computes in float64 on one core: over four times as long as this on two.
"""

from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
from mindspore.common.initializer import Initializer

from mindgpt.io.processes import available_cores

PIECE = 2**17
"""Values drawn from one stream. It is part of what a seed means: another size gives other weights."""

MOST_THREADS = 8


def _draw() -> int:
    """A number from NumPy's global generator: that is what `set_seed` and, for a slice, `Tensor.init_data` seed."""
    return int(np.random.randint(1, 2**63, dtype=np.int64))


class _DrawnWeights(Initializer):
    """Fills a weight as MindSpore's own initializers do, but for the values and what is said of slices.

    No weight is drawn before it gets its memory. `mindspore.set_seed` fixes the weights; without it they are others in
    every process. MindSpore seeds the slices of a weight that a layout cuts, so that devices which hold the same slice
    draw the same. But its own initializers then draw the same for every weight of one shape, queries, keys and values
    of all layers among them; here each has its own number. A weight of another dtype holds the float32 draws rounded.
    The values follow from the seed, the weights made before and the size alone, whatever the number of cores.
    """

    def __init__(self, **settings: float):
        super().__init__(**settings)
        # The same on all devices: they make the same weights in the same order. Without a seed MindSpore counts them.
        self.number = 0 if ms.get_seed() is None else _draw()

    def _fill(self, stream: np.random.Generator, values: np.ndarray) -> None:
        """Draw all of `values`, float32."""
        raise NotImplementedError

    def _initialize(self, arr: np.ndarray) -> None:
        """Fill `arr`, of any shape and contiguous."""
        assert arr.flags.c_contiguous, "the values would go into a copy"
        flat = arr.reshape(-1)
        seed = (_draw(), self.number)
        pieces = -(-flat.size // PIECE)
        numbers = iter(range(pieces))

        def fill() -> None:
            for number in numbers:
                piece = flat[number * PIECE : (number + 1) * PIECE]
                stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(number,))))
                values = piece if piece.dtype == np.float32 else np.empty(piece.size, np.float32)
                self._fill(stream, values)
                if values is not piece:
                    piece[:] = values

        # This thread draws too: those of a pool begin on one core, and part only after a few milliseconds.
        helpers = min(pieces, available_cores(), MOST_THREADS) - 1
        if helpers < 1:
            fill()
            return
        with ThreadPoolExecutor(helpers) as pool:
            others = [pool.submit(fill) for _ in range(helpers)]
            fill()
        for other in others:
            other.result()  # raises what it raised


class NormalWeights(_DrawnWeights):
    """Draws from N(0, std^2); std is positive."""

    def __init__(self, std: float):
        assert std > 0, "configurations allow positive ones only"
        super().__init__(std=std)
        self.std = std

    def _fill(self, stream: np.random.Generator, values: np.ndarray) -> None:
        stream.standard_normal(out=values, dtype=np.float32)
        values *= np.float32(self.std)


class UniformWeights(_DrawnWeights):
    """Draws from [-bound, bound)."""

    def __init__(self, bound: float):
        super().__init__(bound=bound)
        self.bound = bound

    def _fill(self, stream: np.random.Generator, values: np.ndarray) -> None:
        stream.random(out=values, dtype=np.float32)
        values *= np.float32(2 * self.bound)
        values -= np.float32(self.bound)
