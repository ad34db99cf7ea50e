"""Which graph reads which tokens: the graphs compiled so far, and a batch of texts in the cache of one of them.

Compiling a graph takes as long as a few hundred steps, so what is compiled is used again wherever that is nearly as
good as the best fit:
- Texts are read one behind the other, by graphs that are there for all lengths and batch sizes (`prefill.py`). Their
  cache is as long as the context window; from there a text is copied to its row of the batch.
- Steps of one token are compiled for batches and capacities that are powers of two; see `CompiledGraphs.choose`.
- A batch of which rows have ended goes on in the graph of a smaller one, if there is one or it pays to compile it.
"""

import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindgpt.config.errors import UserError
from mindgpt.generation.cached_model import CopyRow, Decode, KeyValueCache
from mindgpt.generation.cpu_layers import KernelCopyRow, KernelDecode
from mindgpt.generation.prefill import ChunkedReading, KernelReading, int_tensor
from mindgpt.models.cpu.gpt2_layers import kernels_fit
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_heads import LMHead
from mindgpt.runtime.alignment import align

SMALLEST_CACHE = 128  # slots
KEPT_SHAPES = 8  # each holds a cache of 2 * layers * B * C * H numbers
COMPILING_COSTS = 200  # steps, about: what a step takes and what compiling it takes both grow with the layers
NEARLY_AS_GOOD = 1.25  # steps that cost so much more than the best are taken rather than to compile those
HARDLY_MORE = 1.05  # so much more is paid for a cache that this text does not need, but a later one may
ROW_COSTS = 0.075  # what one more row costs, its cache apart, as a part of what reading the weights costs

Shape = tuple[int, int]  # batch, capacity


def bucket(size: int, smallest: int, largest: int | None = None) -> int:
    """The power of two at or above `size`, but at least `smallest` and at most `largest`."""
    power = max(smallest, 1 << (size - 1).bit_length())
    return power if largest is None else min(power, largest)


def parts_of(*cells: nn.Cell) -> list[nn.Cell | Parameter]:
    """The cells within these, and their parameters."""
    inner = [cell for outer in cells if outer is not None for _, cell in outer.cells_and_names()]
    return inner + [parameter for cell in inner for parameter in cell.get_parameters(expand=False)]


class CompiledGraphs:
    """The graphs of a model, each compiled when it is first called, and the caches that they work on."""

    def __init__(self, backbone: GPT2Model, head: LMHead):
        self.backbone = backbone
        self.head = head
        self.window = backbone.config.max_position_embeddings
        self.by_kernels = kernels_fit(backbone)
        self._weights = sum(math.prod(weight.shape) for weight in backbone.get_parameters())
        self._compiled_for = parts_of(backbone, head)
        self.cells = [part for part in self._compiled_for if isinstance(part, nn.Cell)]
        self._reading: KernelReading | ChunkedReading | None = None
        self._decodes: OrderedDict[Shape, Decode | KernelDecode] = OrderedDict()
        self._copies: dict[tuple[KeyValueCache, KeyValueCache], CopyRow | KernelCopyRow] = {}

    def are_current(self) -> bool:
        """Whether the model's cells and parameters are those that the graphs are made of. Their values may differ."""
        now = parts_of(self.backbone, self.head)
        return len(now) == len(self._compiled_for) and all(map(operator.is_, now, self._compiled_for))

    def clear(self) -> None:
        """Forget all caches, and the graphs that work on them."""
        self._reading = None
        self._decodes.clear()
        self._copies.clear()

    def compile(self, rows: int, longest: int) -> Shape:
        """Compile what reads texts, and a step of so many of at most `longest` tokens, and what either needs, without
        running anything.

        Returns:
            The batch and the capacity of the step.
        """
        shape = self.choose(rows, longest, longest)
        self.reading.compile()
        place = int_tensor([0])
        self._copier(self.reading.cache, self._decodes[shape].cache).compile(place, place, place)
        token = int_tensor(np.zeros((shape[0], 1)))
        self._decodes[shape].compile(token, token)
        return shape

    def packs(self, texts: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Which texts can be read together: as many as the window has room for, in order."""
        begin, total = 0, 0
        for number, text in enumerate(texts):
            if total + len(text) > self.window:
                yield slice(begin, number)
                begin, total = number, 0
            total += len(text)
        yield slice(begin, len(texts))

    def prefill(self, texts: Sequence[Sequence[int]]) -> tuple[list[int], np.ndarray]:
        """Read texts, at most `window` tokens in all, one behind the other.

        Returns:
            Where each begins, from where `keep` can copy it until others are read; and the logits at their ends,
            (texts, V) float32.
        """
        ends = (np.cumsum([len(text) for text in texts]) - 1).tolist()
        return [0, *(end + 1 for end in ends[:-1])], self.reading.last_logits(texts, ends)

    def log_probs(self, text: Sequence[int]) -> np.ndarray:
        """log P(token | tokens before it) of all tokens but the first -> (len(text) - 1,) float32"""
        return self.reading.log_probs(text)

    @property
    def reading(self) -> KernelReading | ChunkedReading:
        """The graphs that read texts."""
        if self._reading is None:
            cache = self._new_cache(1, self.window, "texts")  # `CopyRow` may not hold two of one name
            kind = KernelReading if self.by_kernels else ChunkedReading
            self._reading = kind(self.backbone, self.head, cache)
        return self._reading

    def keep(self, start: int, row: int, shape: Shape) -> None:
        """Copy the text that begins here in the cache of the texts last read to a row of the batch of this shape."""
        self._copy(self.reading.cache, 0, start, self._decodes[shape].cache, row)

    def copy(self, source: Shape, source_row: int, target: Shape, target_row: int) -> None:
        """Copy a row of one batch to a row of another, or of the same."""
        self._copy(self._decodes[source].cache, source_row, 0, self._decodes[target].cache, target_row)

    def _copy(self, source: KeyValueCache, row: int, start: int, target: KeyValueCache, target_row: int) -> None:
        self._copier(source, target)(int_tensor([row]), int_tensor([start]), int_tensor([target_row]))

    def _copier(self, source: KeyValueCache, target: KeyValueCache) -> CopyRow | KernelCopyRow:
        if (source, target) not in self._copies:
            kind = KernelCopyRow if self.by_kernels else CopyRow
            self._copies[source, target] = kind(source, target)
        return self._copies[source, target]

    def decode(self, shape: Shape, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """ids, positions: (B, 1) int32 -> (B, V) float32"""
        return self._decodes[shape](Tensor(ids), Tensor(positions)).asnumpy()

    def cost(self, shape: Shape) -> float:
        """What a step takes, about: in numbers that it reads, weights and cache."""
        batch, capacity = shape
        cache = 2 * self.backbone.config.num_layers * self.backbone.hidden_size * capacity
        return self._weights * (1 + ROW_COSTS * (batch - 1)) + cache * batch

    def choose(self, rows: int, needed: int, longest: int, current: Shape | None = None) -> Shape:
        """The shape to go on with; it is compiled if it is not yet.

        Args:
            rows: texts that go on.
            needed: tokens that the longest of them has now.
            longest: tokens that a text can have in the end; at most the window.
            current: the shape that holds the texts now.
        """
        least = bucket(rows, 1), bucket(needed, SMALLEST_CACHE, self.window)
        known = [shape for shape in self._decodes if shape[0] >= rows and shape[1] >= needed]
        known.sort(key=lambda shape: (shape[1] < longest, self.cost(shape)))  # if it can be, one that lasts to the end
        known = [shape for shape in known if self.cost(shape) <= NEARLY_AS_GOOD * self.cost(least)]
        best = known[0] if known else self._roomy(least, longest)
        if current is not None and current[0] >= rows and current[1] >= needed:
            saved = 1 - self.cost(best) / self.cost(current)  # of each step
            if saved * (longest - needed) < (rows if known else COMPILING_COSTS):  # to copy a row costs about a step
                best = current
        return self._made(best)

    def _roomy(self, least: Shape, longest: int) -> Shape:
        """The shape to compile where `least` would do: with a larger cache, if that costs hardly more."""
        batch, capacity = least
        while capacity < self.window:
            larger = min(2 * capacity, self.window)
            allowed = NEARLY_AS_GOOD if capacity < longest else HARDLY_MORE
            if self.cost((batch, larger)) > allowed * self.cost(least):
                break
            capacity = larger
        return batch, capacity

    def _made(self, shape: Shape) -> Shape:
        if shape not in self._decodes:
            if len(self._decodes) == KEPT_SHAPES:
                _, oldest = self._decodes.popitem(last=False)
                self._copies = {pair: copy for pair, copy in self._copies.items() if oldest.cache not in pair}
            kind = KernelDecode if self.by_kernels else Decode
            self._decodes[shape] = kind(self.backbone, self.head, self._new_cache(*shape))
        self._decodes.move_to_end(shape)
        return shape

    def _new_cache(self, batch: int, capacity: int, name: str = "cache") -> KeyValueCache:
        config, dtype = self.backbone.config, self.backbone.embedding.compute
        heads = self.backbone.blocks[0].attention.num_heads  # of this process, in tensor parallelism a part of them
        cache = KeyValueCache(config.num_layers, heads, config.head_size, dtype, batch, capacity, name)
        if self.by_kernels:
            align([*cache.keys, *cache.values])
        return cache


class Reader:
    """A batch of texts that are read on token by token. What it says of a text does not depend on the others.

    A text that is longer than the window is read again from its last `window - window // 4` tokens on, and so on when
    these fill the window again; so how it goes on depends on its length alone.
    """

    def __init__(self, graphs: CompiledGraphs, longest: int):
        """longest: tokens that a text can have in the end."""
        self.graphs = graphs
        self.longest = min(longest, graphs.window)
        self.kept_on_sliding = graphs.window - graphs.window // 4
        self.shape: Shape | None = None
        self.places: list[int] = []  # the row of the cache that each text has
        self.starts: list[int] = []  # the first token of each text that the model sees
        self._unsettled: list[tuple[int, int]] = []  # where a text begins that was read, and its number

    def read(self, texts: Sequence[Sequence[int]], copies: int = 1) -> np.ndarray:
        """Begin with these texts, `copies` of each: text i is numbers i * copies to (i + 1) * copies - 1.

        Returns:
            The logits at the end of each text, (texts * copies, V) float32.
        """
        rows = len(texts) * copies
        self.starts = [start for text in texts for start in [self._start(text, 0)] * copies]
        self.places = list(range(rows))
        seen = [len(text) - self.starts[number * copies] for number, text in enumerate(texts)]
        self.shape = self.graphs.choose(rows, max(seen), self.longest)
        logits = self._place(texts, [range(i * copies, (i + 1) * copies) for i in range(len(texts))])
        return np.repeat(self._checked(logits), copies, axis=0)

    def next(self, numbers: Sequence[int], texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read one more token of each of these texts; those that are not named have ended.

        Args:
            numbers: which texts go on.
            texts: those texts, each with one token more than it had.

        Returns:
            The logits at the end of each text, (len(numbers), V) float32.
        """
        self._settle()
        starts = [self._start(text, self.starts[number]) for number, text in zip(numbers, texts, strict=True)]
        self._fit(numbers, max(len(text) - start for text, start in zip(texts, starts, strict=True)))
        ids, positions = np.zeros((2, self.shape[0], 1), np.int32)
        for number, text, start in zip(numbers, texts, starts, strict=True):
            ids[self.places[number]], positions[self.places[number]] = text[-1], len(text) - 1 - start
        logits = self.graphs.decode(self.shape, ids, positions)[[self.places[number] for number in numbers]]
        slid = [row for row, number in enumerate(numbers) if starts[row] != self.starts[number]]
        for row in slid:
            self.starts[numbers[row]] = starts[row]
        if slid:
            logits[slid] = self._place([texts[row] for row in slid], [[numbers[row]] for row in slid])
        return self._checked(logits)

    def follow(self, numbers: Sequence[int], sources: Sequence[int]) -> None:
        """Let text `numbers[i]` be what text `sources[i]` is, for all i at once; `sources` are among `numbers`.

        Places are exchanged; what has been read is copied only where a text has several followers.
        """
        self._settle()
        free = [self.places[number] for number in numbers if number not in sources]
        places, starts, taken = list(self.places), list(self.starts), set()
        for number, source in zip(numbers, sources, strict=True):
            place = self.places[source]
            if place in taken:
                place = free.pop()
                self.graphs.copy(self.shape, self.places[source], self.shape, place)
            taken.add(place)
            places[number], starts[number] = place, self.starts[source]
        self.places, self.starts = places, starts

    def _start(self, text: Sequence[int], start: int) -> int:
        return start if len(text) - start <= self.graphs.window else len(text) - self.kept_on_sliding

    def _place(self, texts: Sequence[Sequence[int]], numbers: Sequence[Sequence[int]]) -> np.ndarray:
        """Read texts from their starts, each to the places of its numbers -> (texts, V): the logits at their ends"""
        seen = [text[self.starts[mine[0]] :] for text, mine in zip(texts, numbers, strict=True)]
        logits = []
        for pack in self.graphs.packs(seen):
            self._settle()
            starts, rows = self.graphs.prefill(seen[pack])
            logits.append(rows)
            self._unsettled = [
                (start, number) for start, mine in zip(starts, numbers[pack], strict=True) for number in mine
            ]
        return np.concatenate(logits)

    def _settle(self) -> None:
        """Copy what was read last to its places. As late as can be: the first token is wanted before it is."""
        for start, number in self._unsettled:
            self.graphs.keep(start, self.places[number], self.shape)
        self._unsettled = []

    def _fit(self, numbers: Sequence[int], needed: int) -> None:
        """Move to another shape if these texts have no room in this one, or another costs less."""
        if needed <= self.shape[1] and 2 * len(numbers) > self.shape[0]:
            return
        shape = self.graphs.choose(len(numbers), needed, self.longest, self.shape)
        if shape != self.shape:
            for place, number in enumerate(numbers):
                self.graphs.copy(self.shape, self.places[number], shape, place)
                self.places[number] = place
            self.shape = shape

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        if not np.isfinite(logits.max(axis=-1)).all():
            # A NaN in the cache outlives its text: 0 * NaN is NaN in every sum over the slots.
            self.graphs.clear()
            raise UserError(
                "The model's logits are not numbers (NaN or infinity): its weights are broken, or too large for "
                f"compute_dtype {self.graphs.backbone.config.compute_dtype}. Look at the loss of the run that wrote "
                "them."
            )
        return logits
