"""Reading texts into the cache, one behind the other: which graph reads which tokens.

`KernelReading` has one graph, which takes as long as there are tokens. MindSpore's own operators work on all rows that
a graph was compiled for; `ChunkedReading` therefore has two, for `CHUNK` tokens at once and for the first `OPENING` of
long texts. The one that suits the first text is compiled; the other when it would have saved as much as it costs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from mindspore import Tensor

from mindgpt.generation.cached_model import KeyValueCache, LastLogits, Opening, Prefill, TargetLogProbs
from mindgpt.generation.cpu_layers import KernelLastLogits, KernelPrefill, KernelTargetLogProbs
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_heads import LMHead

CHUNK = 64  # tokens of texts that are read, or scored, at once
OPENING = 512  # tokens at the beginning that are
CALL_COSTS = 32  # what reading the weights for a chunk costs, in tokens
COMPILING_A_READER_COSTS = 4000  # tokens, about
ENDS = 8  # ends of texts whose logits are computed at once

Plan = list[tuple[type[Prefill], int]]  # how a text is read: which kind of graph, and from which token on
Texts = Sequence[Sequence[int]]


def int_tensor(values: Sequence) -> Tensor:
    """Whole numbers as an int32 tensor."""
    return Tensor(np.asarray(values, np.int32))


def padded(values: Sequence[int], size: int) -> Tensor:
    """(size,) int32: the values, and zeros behind them"""
    return int_tensor([*values, *[0] * (size - len(values))])


def one_behind_the_other(texts: Texts, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of texts, `window` tokens in all or fewer, and the position of each in its text: (window,) int32 each."""
    total = sum(map(len, texts))
    ids, positions = np.zeros((2, window), np.int32)  # padding sees itself, and no one sees it
    ids[:total] = np.concatenate(texts)
    positions[:total] = np.concatenate([np.arange(len(text)) for text in texts])
    return ids, positions


class KernelReading:
    """Reads by the C++ kernels.

    Args:
        backbone, head: the model's.
        cache: of one row, as long as the context window.
    """

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        self.cache = cache
        self.window = cache.shape[2]
        self.hidden_size = backbone.hidden_size
        self._prefill = KernelPrefill(backbone, cache)
        self._last_logits = KernelLastLogits(backbone, cache)
        self._target_log_probs = KernelTargetLogProbs(backbone, cache)

    def compile(self) -> None:
        """Compile what `last_logits` needs, without running it."""
        tokens, rows = int_tensor(np.zeros((1, self.window))), int_tensor([1])
        self._prefill.compile(tokens, tokens, rows)
        hidden = Tensor(np.zeros((self.window, self.hidden_size), np.float32))
        self._last_logits.compile(hidden, padded([], ENDS), padded([], ENDS), rows)

    def last_logits(self, texts: Texts, ends: Sequence[int]) -> np.ndarray:
        """Read texts into the cache, at most `window` tokens in all; ends: the slot where each ends -> (texts, V)"""
        hidden = self._read(texts)
        positions = [len(text) - 1 for text in texts]
        logits = []
        for first in range(0, len(ends), ENDS):
            some = slice(first, min(first + ENDS, len(ends)))
            places = padded(ends[some], ENDS), padded(positions[some], ENDS)
            rows = self._last_logits(hidden, *places, int_tensor([some.stop - first])).asnumpy()
            logits.append(rows[: some.stop - first])
        return np.concatenate(logits)

    def log_probs(self, text: Sequence[int]) -> np.ndarray:
        """log P(token | tokens before it) of all tokens but the first -> (len(text) - 1,) float32"""
        result = np.empty(len(text) - 1, np.float32)
        hidden = self._read([text[:-1]]) if len(result) else None
        for first in range(0, len(result), CHUNK):
            places = range(first, min(first + CHUNK, len(result)))
            targets = padded(text[places.start + 1 : places.stop + 1], CHUNK)
            slots = padded(places, CHUNK)
            values = self._target_log_probs(hidden, slots, slots, int_tensor([len(places)]), targets)
            result[places.start : places.stop] = values.asnumpy()[: len(places)]
        return result

    def _read(self, texts: Texts) -> Tensor:
        """(window, H): what the last block gets of each token"""
        ids, positions = one_behind_the_other(texts, self.window)
        rows = int_tensor([sum(map(len, texts))])
        return self._prefill(Tensor(ids[None]), Tensor(positions[None]), rows)[0]


class ChunkedReading:
    """Reads by MindSpore's operators, on every device. Arguments and methods as of `KernelReading`."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        self.backbone = backbone
        self.cache = cache
        self.window = cache.shape[2]
        self.sizes = {Prefill: min(CHUNK, self.window), Opening: min(OPENING, self.window)}
        self._last_logits = LastLogits(backbone, head)
        self._target_log_probs = TargetLogProbs(backbone, head)
        self._prefills: dict[type[Prefill], Prefill] = {}
        self._would_have_saved = 0.0  # tokens: the graph that is not there

    def compile(self) -> None:
        """See `KernelReading.compile`."""
        kinds = (Prefill, Opening) if self.sizes[Opening] > self.sizes[Prefill] else (Prefill,)  # as in `_plan`
        for kind in kinds:
            tokens = int_tensor(np.zeros((1, self.sizes[kind])))
            self._made(kind).compile(tokens, tokens, tokens)
            hidden = np.zeros((self.sizes[kind], self.backbone.hidden_size))
            self._last_logits.compile(Tensor(hidden, self.backbone.layernorm.gamma.dtype), padded([], ENDS))

    def last_logits(self, texts: Texts, ends: Sequence[int]) -> np.ndarray:
        """See `KernelReading.last_logits`."""
        logits: dict[int, np.ndarray] = {}
        for hidden, first in self._read(texts):
            here = [end for end in ends if first <= end < first + len(hidden) and end not in logits]
            for some in (here[i : i + ENDS] for i in range(0, len(here), ENDS)):
                rows = self._last_logits(hidden, padded([end - first for end in some], ENDS)).asnumpy()
                logits.update(zip(some, rows, strict=False))
        return np.stack([logits[end] for end in ends])

    def log_probs(self, text: Sequence[int]) -> np.ndarray:
        """See `KernelReading.log_probs`."""
        result = np.empty(len(text) - 1, np.float32)
        for hidden, first in self._read([text[:-1]]):
            targets = text[first + 1 : first + 1 + len(hidden)]
            values = self._target_log_probs(hidden, padded(targets, len(hidden))).asnumpy()
            result[first : first + len(targets)] = values[: len(targets)]
        return result

    def _read(self, texts: Texts) -> Iterator[tuple[Tensor, int]]:
        """The hidden states of each chunk of tokens, (chunk, H), and the slot of its first one."""
        ids, positions = one_behind_the_other(texts, self.window)
        for kind, first in self._plan(sum(map(len, texts))):
            part = slice(first, first + self.sizes[kind])
            slots = int_tensor([range(part.start, part.stop)])
            yield self._made(kind)(Tensor(ids[None, part]), Tensor(positions[None, part]), slots), first

    def _plan(self, total: int) -> Plan:
        """How to read so many tokens: by graphs that are compiled, unless another would have paid by now."""
        small, opening = self.sizes[Prefill], self.sizes[Opening]
        plans = [self._in_chunks(0, total)]
        if opening > small:
            plans.append([(Opening, 0), *self._in_chunks(opening, total)])
        best = min(plans, key=self._costs)
        ready = [plan for plan in plans if self._missing(plan) == 0]
        if not ready:
            compiling = COMPILING_A_READER_COSTS
            return min(plans, key=lambda plan: self._missing(plan) * compiling + self._costs(plan))
        cheapest = min(ready, key=self._costs)
        self._would_have_saved += self._costs(cheapest) - self._costs(best)
        return cheapest if self._would_have_saved < COMPILING_A_READER_COSTS else best

    def _in_chunks(self, first: int, total: int) -> Plan:
        """The last chunk starts earlier, and reads some tokens again, where it would reach beyond the window."""
        size = self.sizes[Prefill]
        return [(Prefill, min(start, self.window - size)) for start in range(first, total, size)]

    def _costs(self, plan: Plan) -> float:
        return sum(self.sizes[kind] + CALL_COSTS for kind, _ in plan)

    def _missing(self, plan: Plan) -> int:
        return len({kind for kind, _ in plan} - self._prefills.keys())

    def _made(self, kind: type[Prefill]) -> Prefill:
        if kind not in self._prefills:
            self._prefills[kind] = kind(self.backbone, self.cache, self.sizes[kind])
        return self._prefills[kind]
