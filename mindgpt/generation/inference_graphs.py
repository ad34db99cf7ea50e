"""The graphs of a model that read prompts and continue them, and the key/value caches that they work on.

Compiling a graph takes as long as a few hundred decode steps, so there are few:
- Prompts are read one after another, in chunks of one size, into a cache as long as the context. From there each is
  copied to its row of the batch.
- A decode graph is compiled for a batch and a capacity that are powers of two, and used again wherever it is not much
  too large; see `shape_for`.
"""

import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindgpt.models.acceleration import inference_cells
from mindgpt.models.gpt2.gpt2 import OPERATOR_CELLS, GPT2Model, InferenceCell
from mindgpt.models.gpt2.gpt2_cache import KeyValueCache
from mindgpt.models.gpt2.gpt2_heads import LMHead

SMALLEST_CACHE = 128  # slots
ROOMY = 4  # times as many slots as are needed are taken rather than to compile another graph
KEPT_SHAPES = 8  # each holds a cache of 2 * layers * B * C * H numbers
ENDS = 8  # texts whose last logits are computed at once
SCORED = 64  # tokens whose log-probabilities are computed at once

Shape = tuple[int, int]  # batch, capacity
Texts = Sequence[Sequence[int]]


def bucket(size: int, smallest: int, largest: int | None = None) -> int:
    """The power of two at or above `size`, but at least `smallest` and at most `largest`."""
    power = max(smallest, 1 << (size - 1).bit_length())
    return power if largest is None else min(power, largest)


def int_tensor(values: Sequence, size: int | None = None) -> Tensor:
    """Whole numbers as an int32 tensor; of `size` values, those that are not given being 0."""
    return Tensor(np.asarray([*values, *[0] * (size - len(values))] if size else values, np.int32))


def parts_of(*cells: nn.Cell) -> list[nn.Cell | Parameter]:
    """The cells within these, and their parameters."""
    inner = [cell for outer in cells if outer is not None for _, cell in outer.cells_and_names()]
    return inner + [parameter for cell in inner for parameter in cell.get_parameters(expand=False)]


class InferenceGraphs:
    """The graphs of a model, each compiled when it is first called; the caches that they work on."""

    def __init__(self, backbone: GPT2Model, head: LMHead):
        self.backbone = backbone
        self.head = head
        self.context_length = backbone.config.max_position_embeddings
        self._kinds = inference_cells(backbone) or OPERATOR_CELLS
        self._compiled_for = parts_of(backbone, head)
        self.cells = [part for part in self._compiled_for if isinstance(part, nn.Cell)]
        self.clear()

    def clear(self) -> None:
        """Forget all caches, and the graphs that work on them."""
        self._prompts: KeyValueCache | None = None
        self._decoders: OrderedDict[Shape, InferenceCell] = OrderedDict()
        self._copies: dict[tuple[KeyValueCache, KeyValueCache], InferenceCell] = {}

    def are_current(self) -> bool:
        """Whether the model's cells and parameters are those that the graphs are made of. Their values may differ."""
        now = parts_of(self.backbone, self.head)
        return len(now) == len(self._compiled_for) and all(map(operator.is_, now, self._compiled_for))

    def compile(self, rows: int, slots: int) -> Shape:
        """Compile what reads a prompt, and a decode step of so many rows of at most `slots` tokens, without running it.

        Returns:
            The batch and the capacity of the step.
        """
        shape = self.shape_for(rows, slots)
        one, ends = int_tensor([1]), int_tensor([], ENDS)
        tokens = int_tensor(np.zeros((1, self.prefill_cell.tokens)))
        self.prefill_cell.compile(tokens, tokens, tokens, one)
        hidden = np.zeros((self.prefill_cell.tokens, self.backbone.hidden_size))
        self._after_prefill(self._kinds.last_logits).compile(
            Tensor(hidden, self.backbone.hidden_dtype), ends, ends, one
        )
        self._copier(self._prompts, self.decoder(shape).cache).compile(one, one, one, one)
        token = int_tensor(np.zeros((shape[0], 1)))
        self.decoder(shape).compile(token, token, one)
        return shape

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def packs(self, texts: Texts) -> Iterator[slice]:
        """Which texts can be read together: as many as one context has room for, in order."""
        begin, total = 0, 0
        for number, text in enumerate(texts):
            if total + len(text) > self.context_length:
                yield slice(begin, number)
                begin, total = number, 0
            total += len(text)
        yield slice(begin, len(texts))

    def last_logits(self, hidden: Tensor, tokens: Sequence[int], positions: Sequence[int]) -> list[np.ndarray]:
        """The logits after some of the tokens that `prefill_cell` has read.

        Args:
            hidden: (T, H), what it returned.
            tokens: n numbers, which of its tokens.
            positions: n numbers, their positions in their texts.

        Returns:
            n arrays, (V,) float32.
        """
        cell = self._after_prefill(self._kinds.last_logits)
        logits: list[np.ndarray] = []
        for start in range(0, len(tokens), ENDS):
            some = slice(start, start + ENDS)
            count = int_tensor([len(tokens[some])])
            rows = cell(hidden, int_tensor(tokens[some], ENDS), int_tensor(positions[some], ENDS), count)
            logits.extend(rows.asnumpy()[: len(tokens[some])])
        return logits

    def log_probs(self, text: Sequence[int]) -> np.ndarray:
        """log P(token | tokens before it) of all tokens but the first -> (len(text) - 1,) float32"""
        result = np.empty(len(text) - 1, np.float32)
        for inputs, first in self.chunks([text[:-1]]):
            hidden = self.prefill_cell(*inputs)
            end = min(first + len(hidden), len(result))
            for start in range(first, end, SCORED):
                slots = np.arange(start, min(start + SCORED, end))
                tokens, positions, targets = (
                    int_tensor(values, SCORED) for values in (slots - first, slots, text[slots[0] + 1 : slots[-1] + 2])
                )
                cell = self._after_prefill(self._kinds.target_log_probs)
                result[slots] = cell(hidden, tokens, positions, int_tensor([len(slots)]), targets).asnumpy()[
                    : len(slots)
                ]
        return result

    def logits_within(self, text: Sequence[int]) -> Iterator[tuple[range, np.ndarray]]:
        """The logits after every token of a text, some at a time: which tokens, and (tokens, V) float32. Until the last
        of them, no other text can be read."""
        for inputs, first in self.chunks([text]):
            hidden = self.prefill_cell(*inputs)
            end = min(first + len(hidden), len(text))
            for start in range(first, end, ENDS):
                slots = range(start, min(start + ENDS, end))
                yield slots, np.stack(self.last_logits(hidden, [slot - first for slot in slots], slots))

    def chunks(self, texts: Texts) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        """What to call `prefill_cell` with, chunk by chunk, to read texts one after another, at most a context in all;
        and the slot of the chunk's first token.

        The last chunk starts earlier, and reads some tokens again, where it would reach beyond the cache.
        """
        total, chunk = sum(map(len, texts)), self.prefill_cell.tokens
        ids, positions = np.zeros((2, 1, self.context_length), np.int32)  # padding sees itself, and no token sees it
        if total:
            ids[0, :total] = np.concatenate(texts)
            positions[0, :total] = np.concatenate([np.arange(len(text)) for text in texts])
        for first in range(0, total, chunk):
            first = min(first, self.context_length - chunk)
            part = slice(first, first + chunk)
            slots = int_tensor([range(part.start, part.stop)])
            rows = int_tensor([min(total - first, chunk)])
            yield (Tensor(ids[:, part]), Tensor(positions[:, part]), slots, rows), first

    @property
    def prefill_cell(self) -> InferenceCell:
        """Reads `tokens` tokens at once into the cache of prompts; see `chunks`."""
        if self._prompts is None:  # the name is another than a batch's: `CopyRow` may not hold two of one name
            self._prompts = self._new_cache((1, self.context_length), "prompts")
            self._prompt_cells = {self._kinds.prefill: self._kinds.prefill(self.backbone, self._prompts)}
        return self._prompt_cells[self._kinds.prefill]

    def _after_prefill(self, kind: type[InferenceCell]) -> InferenceCell:
        if kind not in self._prompt_cells:
            self._prompt_cells[kind] = kind(self.backbone, self.head, self._prompts)
        return self._prompt_cells[kind]

    # ---- batches -----------------------------------------------------------------------------------------------------

    def shape_for(self, rows: int, slots: int) -> Shape:
        """The batch and capacity to continue texts with: the smallest that is compiled, if it has no more than `ROOMY`
        times the slots that are needed; else the powers of two at or above these."""
        least = bucket(rows, 1), bucket(slots, SMALLEST_CACHE, self.context_length)
        room = [shape for shape in self._decoders if shape[0] >= rows and shape[1] >= slots]
        return min(
            (shape for shape in room if math.prod(shape) <= ROOMY * math.prod(least)), key=math.prod, default=least
        )

    def is_compiled(self, shape: Shape) -> bool:
        """Whether there is a decode graph of this shape."""
        return shape in self._decoders

    def decoder(self, shape: Shape) -> InferenceCell:
        """The decode graph of this shape: ids, positions: (B, 1) int32; rows: (1,) int32, how many rows count, from
        the first on -> logits, (B, V) float32"""
        if shape not in self._decoders:
            if len(self._decoders) == KEPT_SHAPES:
                _, oldest = self._decoders.popitem(last=False)
                self._copies = {pair: copy for pair, copy in self._copies.items() if oldest.cache not in pair}
            self._decoders[shape] = self._kinds.decode(self.backbone, self.head, self._new_cache(shape, "cache"))
        self._decoders.move_to_end(shape)
        return self._decoders[shape]

    def copy(
        self,
        source: Shape | None,
        row: int,
        target: Shape,
        target_row: int,
        start: int = 0,
        slots: int | None = None,
    ) -> None:
        """Copy a row of one batch (None: the cache of prompts) from slot `start` on to a row of another or the same; so
        many slots at least, or all there is room for."""
        cache = self._prompts if source is None else self.decoder(source).cache
        copier = self._copier(cache, self.decoder(target).cache)
        slots = target[1] if slots is None else slots
        copier(int_tensor([row]), int_tensor([start]), int_tensor([target_row]), int_tensor([slots]))

    def _copier(self, source: KeyValueCache, target: KeyValueCache) -> InferenceCell:
        if (source, target) not in self._copies:
            self._copies[source, target] = self._kinds.copy_row(source, target)
        return self._copies[source, target]

    def _new_cache(self, shape: Shape, name: str) -> KeyValueCache:
        config, dtype = self.backbone.config, self.backbone.embedding.compute
        heads = self.backbone.blocks[0].attention.num_heads  # of this process: tensor parallelism shards them
        return self._kinds.cache(config.num_layers, heads, config.head_size, dtype, *shape, name)
