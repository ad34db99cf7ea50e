"""The engine: texts are continued token by token, greedy, by sampling or by beam search.

Shape letters: B rows of a batch, V vocabulary.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from weakref import WeakKeyDictionary

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindgpt.config.errors import UserError
from mindgpt.generation.beam_search import Search, ShrinkingSearch, next_log_probs
from mindgpt.generation.inference_graphs import InferenceGraphs, Shape, int_tensor
from mindgpt.generation.requests import checked_prompts, length_limits, random_streams
from mindgpt.generation.sampling import next_tokens
from mindgpt.generation.settings import GenerationSettings
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

OnToken = Callable[[int, int], None]
Stop = Callable[[int, Sequence[int]], bool]
NewTokens = list[tuple[int, int]]  # of one step: the row and the token

WORTH_COMPILING = 200
"""Decode steps that take about as long as compiling one."""

_ONE_AT_A_TIME = threading.RLock()
"""The device, and the mode that MindSpore works in, are the whole process's: other threads wait."""


class Generator:
    """Continues texts with a model, and keeps what it compiled for the next call.

    The model may be trained between calls: its weights are shared, not copied. Where cells or parameters have been
    exchanged (LoRA put on it), the graphs are compiled anew. Several threads may call it; they wait for one another.
    """

    def __init__(self, model: GPT2LMHeadModel):
        # Not the model itself: a generator is kept as long as its model lives (`generate`), not the other way round.
        self.config = model.config
        self.graphs = InferenceGraphs(model.backbone, model.head)
        self._reserved = False

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        settings: GenerationSettings,
        on_token: OnToken | None = None,
        row_numbers: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> list[list[int]]:
        """Continue each prompt; what a row gets does not depend on the other rows.

        Args:
            input_ids: the prompts, of any lengths, without padding.
            settings: how to choose tokens and when to stop; but for `stop_strings`, which need a tokenizer (`stop`).
            on_token: called as `on_token(row, id)` with each new token, when it is known. Not with beams.
            row_numbers: with the seed they name each prompt's random stream; 0, 1, 2... if None.
            stop: called as `stop(row, new_tokens)` after each token; True ends the row.

        Returns:
            The new tokens of each row; with `num_return_sequences` n, rows i * n to (i + 1) * n - 1 are of prompt i, in
            a beam search the best first, with an `end_token` those that it ended first. A row ends with a token of
            `eos_token_id` or with `end_token`, which it then includes, where `stop` says so, or when it is as long as
            `max_new_tokens`, `max_length` or the context length allow.

        Raises:
            UserError: no prompts, an empty one, one that leaves no room for a token, an id outside the vocabulary,
                `on_token` in a beam search or for several texts whose order their ends decide, a stream of this model
                that is open, or logits that are no numbers.
        """
        copies = settings.num_return_sequences
        if on_token is not None and settings.end_token is not None and copies > 1:
            raise UserError(
                "end_token: several texts of a prompt come in the order in which they end, so their tokens cannot be "
                "had before. Set num_return_sequences to 1, or wait for the whole texts."
            )
        with _ONE_AT_A_TIME:
            if settings.num_beams > 1 and on_token is None:
                return self._search(input_ids, settings, row_numbers, stop)
            rows: list[list[int]] = [[] for _ in range(len(input_ids) * copies)]
            with closing(self.stream(input_ids, settings, row_numbers, stop)) as steps:
                for new_tokens in steps:
                    for row, token in new_tokens:
                        rows[row].append(token)
                        if on_token is not None:
                            on_token(row, token)
            return rows if settings.end_token is None else in_order_of_ends(rows, settings)

    def stream(
        self,
        input_ids: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_numbers: Sequence[int] | None = None,
        stop: Stop | None = None,
    ) -> Iterator[NewTokens]:
        """`generate` step by step: of each, (row, token) for every row that goes on. The model runs only while the next
        step is asked for. From the first one to the end, or `close`, nothing else can be generated with this model.

        Raises:
            UserError: as `generate`, when the first step is asked for; also for any beam search.
        """
        if settings.num_beams > 1:
            raise UserError(
                "num_beams: a beam search goes back on what it said, so its tokens cannot be had as they come. Set "
                "num_beams to 1, or wait for the whole text."
            )
        prompts, limits = self._checked(input_ids, settings)
        streams = random_streams(settings.seed, row_numbers, len(prompts), settings.num_return_sequences)
        with self.reserved():
            batch = Batch(self.graphs, max(limits))
            yield from continue_texts(batch, prompts, limits, settings, streams, stop, self.running)

    def _search(
        self,
        input_ids: Sequence[Sequence[int]],
        settings: GenerationSettings,
        row_numbers: Sequence[int] | None,
        stop: Stop | None,
    ) -> list[list[int]]:
        prompts, limits = self._checked(input_ids, settings)
        streams = random_streams(settings.seed, row_numbers, len(prompts), 1)
        with self.reserved(), self.running():
            return beam_search(Batch(self.graphs, max(limits)), prompts, limits, settings, streams, stop)

    def _checked(
        self, input_ids: Sequence[Sequence[int]], settings: GenerationSettings
    ) -> tuple[list[list[int]], list[int]]:
        """The prompts, and how many tokens each row may have in all."""
        settings.check_vocabulary(self.config.vocab_size)
        prompts = checked_prompts(input_ids, self.config.vocab_size)
        return prompts, length_limits(prompts, settings, self.config.max_position_embeddings)

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Inside, the caches are the caller's: they hold the texts of one call. The graphs are those of the model as it
        is now. Raises `UserError` if they are another's.
        """
        with _ONE_AT_A_TIME:
            if self._reserved:
                raise UserError(
                    "A stream of this model is open, or this is called from within a call: its texts are in the "
                    "model's cache. Read the stream to its end, or close() it first."
                )
            if not self.graphs.are_current():
                self.graphs = InferenceGraphs(self.graphs.backbone, self.graphs.head)
            self._reserved = True
        try:
            yield
        finally:
            self._reserved = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the graphs can be called."""
        with _ONE_AT_A_TIME, evaluating(self.graphs.cells), graph_mode():
            yield


class Batch:
    """Texts that are continued together. What is computed for a text does not depend on the others.

    A text that is longer than the context is read again from its last three quarters of a context on, and so on when
    these fill the context again; so how it goes on depends on its length alone.
    """

    def __init__(self, graphs: InferenceGraphs, longest: int):
        """longest: tokens that a text can have in the end."""
        self.graphs = graphs
        self.longest = min(longest, graphs.context_length)
        self.kept_on_sliding = graphs.context_length - graphs.context_length // 4
        self.shape: Shape | None = None
        self.rows: dict[int, int] = {}  # the row of the cache that each text has, by its number
        self.starts: dict[int, int] = {}  # the first token of each text that the model sees
        self._unstored: list[tuple[int, int, int]] = []  # of what was read last: first slot, number of slots, text

    def prefill(self, texts: Sequence[Sequence[int]], copies: int = 1) -> np.ndarray:
        """Begin with these texts, `copies` of each: text i is numbers i * copies to (i + 1) * copies - 1.

        Returns:
            The logits at the end of each text, (texts * copies, V) float32.
        """
        starts = [start for text in texts for start in [self._start(text, 0)] * copies]
        self.starts = dict(enumerate(starts))
        self.rows = {number: number for number in self.starts}
        self.shape = self.graphs.shape_for(len(self.rows), self.longest)
        logits = self._read(texts, [range(i * copies, (i + 1) * copies) for i in range(len(texts))])
        return np.repeat(self._checked(logits), copies, axis=0)

    def decode(self, numbers: Sequence[int], texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Read one more token of each of these texts; those that are not named have ended.

        Args:
            numbers: which texts go on.
            texts: those texts, each with one token more than it had.

        Returns:
            The logits at the end of each text, (len(numbers), V) float32.
        """
        self._store()
        starts = [self._start(text, self.starts[number]) for number, text in zip(numbers, texts, strict=True)]
        self._shrink(numbers, max(map(len, texts)))
        ids, positions = np.zeros((2, self.shape[0], 1), np.int32)
        for number, text, start in zip(numbers, texts, starts, strict=True):
            ids[self.rows[number]], positions[self.rows[number]] = text[-1], len(text) - 1 - start
        rows = [self.rows[number] for number in numbers]
        logits = self.graphs.decoder(self.shape)(Tensor(ids), Tensor(positions), int_tensor([max(rows) + 1]))
        logits = logits.asnumpy()[rows]
        slid = [i for i, number in enumerate(numbers) if starts[i] != self.starts[number]]
        for i in slid:
            self.starts[numbers[i]] = starts[i]
        if slid:
            logits[slid] = self._read([texts[i] for i in slid], [[numbers[i]] for i in slid])
        return self._checked(logits)

    def reorder(self, numbers: Sequence[int], sources: Sequence[int]) -> None:
        """Let text `numbers[i]` be what text `sources[i]` is, for all i at once; `sources` are among `numbers`.

        Rows are exchanged; the cache is copied only where a text is the source of several.
        """
        self._store()
        free = [self.rows[number] for number in numbers if number not in sources]
        rows, starts, taken = dict(self.rows), dict(self.starts), set()
        for number, source in zip(numbers, sources, strict=True):
            row = self.rows[source]
            if row in taken:
                row = free.pop()
                self.graphs.copy(self.shape, self.rows[source], self.shape, row)
            taken.add(row)
            rows[number], starts[number] = row, self.starts[source]
        self.rows, self.starts = rows, starts

    def _start(self, text: Sequence[int], start: int) -> int:
        return start if len(text) - start <= self.graphs.context_length else len(text) - self.kept_on_sliding

    def _read(self, texts: Sequence[Sequence[int]], numbers: Sequence[Sequence[int]]) -> np.ndarray:
        """Read texts from their starts, each for all of its numbers -> (texts, V): the logits at their ends"""
        seen = [text[self.starts[own[0]] :] for text, own in zip(texts, numbers, strict=True)]
        logits = []
        for pack in self.graphs.packs(seen):
            self._store()
            starts, at_ends = prefill(self.graphs, seen[pack])
            logits.append(at_ends)
            self._unstored = [
                (start, len(text), number)
                for start, text, own in zip(starts, seen[pack], numbers[pack], strict=True)
                for number in own
            ]
        return np.concatenate(logits)

    def _store(self) -> None:
        """Copy what was read last to its rows. As late as can be: the first token is wanted before it is."""
        for start, slots, number in self._unstored:
            self.graphs.copy(None, 0, self.shape, self.rows[number], start, slots)
        self._unstored = []

    def _shrink(self, numbers: Sequence[int], length: int) -> None:
        """Move to a smaller graph if few of the rows go on, and if it is there or pays for being compiled."""
        if 2 * len(numbers) > self.shape[0]:
            return
        shape = self.graphs.shape_for(len(numbers), self.longest)
        pays = self.graphs.is_compiled(shape) or self.longest - length >= WORTH_COMPILING
        if shape[0] < self.shape[0] and pays:
            for row, number in enumerate(numbers):
                self.graphs.copy(self.shape, self.rows[number], shape, row)
                self.rows[number] = row
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


def prefill(graphs: InferenceGraphs, texts: Sequence[Sequence[int]]) -> tuple[list[int], np.ndarray]:
    """Read texts, at most a context in all, one after another into the cache of prompts.

    Returns:
        The slot where each begins, from where `InferenceGraphs.copy` can take it until others are read; and the logits
        at their ends, (texts, V) float32.
    """
    starts = np.cumsum([0, *map(len, texts)])
    ends = starts[1:] - 1
    logits: dict[int, np.ndarray] = {}
    for inputs, first in graphs.chunks(texts):
        hidden = graphs.prefill_cell(*inputs)
        here = [number for number, end in enumerate(ends) if first <= end < first + len(hidden)]
        positions = [len(texts[number]) - 1 for number in here]
        logits.update(zip(here, graphs.last_logits(hidden, ends[here] - first, positions), strict=True))
    return starts[:-1].tolist(), np.stack([logits[number] for number in range(len(texts))])


def continue_texts(
    batch: Batch,
    prompts: list[list[int]],
    limits: list[int],
    settings: GenerationSettings,
    streams: list[np.random.Generator],
    stop: Stop | None,
    running: Callable[[], AbstractContextManager[None]],
) -> Iterator[NewTokens]:
    """Greedy or by sampling; see `Generator.stream`. There is a random stream for each row, a limit for each prompt.

    Graphs are called inside `running()`, which is left before each step's tokens are handed on: whoever reads them
    works in its own mode, and may take its time.
    """
    copies = settings.num_return_sequences
    starts = [len(prompt) for prompt in prompts for _ in range(copies)]
    ends = [limit for limit in limits for _ in range(copies)]
    texts = [list(prompt) for prompt in prompts for _ in range(copies)]
    alive = list(range(len(texts)))

    def goes_on(row: int) -> bool:
        new = texts[row][starts[row] :]
        if settings.end_with(new) or len(texts[row]) >= ends[row]:
            return False
        return stop is None or not stop(row, new)

    with running():
        logits = batch.prefill(prompts, copies)
    while True:
        tokens = next_tokens(
            logits,
            [texts[row] for row in alive],
            [starts[row] for row in alive],
            [ends[row] for row in alive],
            settings,
            [streams[row] for row in alive],
        ).tolist()
        for row, token in zip(alive, tokens, strict=True):
            texts[row].append(token)
        yield list(zip(alive, tokens, strict=True))
        alive = [row for row in alive if goes_on(row)]
        if not alive:
            return
        with running():
            logits = batch.decode(alive, [texts[row] for row in alive])


def in_order_of_ends(rows: list[list[int]], settings: GenerationSettings) -> list[list[int]]:
    """The rows of each prompt, `num_return_sequences`, in the order in which they ended, those without an end last; as
    bert4keras's `random_sample` returns them. What ends in the same step keeps its order."""
    copies = settings.num_return_sequences
    by_prompt = (rows[start : start + copies] for start in range(0, len(rows), copies))
    return [row for own in by_prompt for row in sorted(own, key=lambda row: (len(row), not settings.end_with(row)))]


def beam_search(
    batch: Batch,
    prompts: list[list[int]],
    limits: list[int],
    settings: GenerationSettings,
    streams: list[np.random.Generator],
    stop: Stop | None,
) -> list[list[int]]:
    """Search for continuations of all prompts at once; see `Generator.generate`. There is a stream for each prompt.

    `stop` is asked about candidates, of which few become a text; the row it is given is the prompt's number.
    """
    kind = Search if settings.end_token is None else ShrinkingSearch
    searches = [
        kind(prompt, limit, settings, stream, None if stop is None else lambda new, row=row: stop(row, new))
        for row, (prompt, limit, stream) in enumerate(zip(prompts, limits, streams, strict=True))
    ]
    beams = settings.num_beams
    numbers = [range(row * beams, (row + 1) * beams) for row in range(len(prompts))]  # of each search, in the batch
    running = range(len(prompts))
    logits = batch.prefill(prompts, beams)
    first = True  # all beams are the prompt yet, so it does not matter which of them is continued
    while True:
        log_probs = next_log_probs(logits, [searches[row] for row in running], settings)
        for row, part in zip(running, np.split(log_probs, len(running)), strict=True):
            searches[row].advance(part)
        running = [row for row in running if searches[row].running]
        if not running:
            return [text for search in searches for text in search.texts()]
        if not first:
            for row in running:
                batch.reorder(numbers[row], [numbers[row][source] for source in searches[row].sources])
        first = False
        logits = batch.decode(
            [number for row in running for number in numbers[row]],
            [beam.text for row in running for beam in searches[row].running],
        )


_generators: "WeakKeyDictionary[GPT2LMHeadModel, Generator]" = WeakKeyDictionary()


def generator_of(model: GPT2LMHeadModel) -> Generator:
    """A generator that is kept as long as the model lives."""
    kept = _generators.get(model)
    if kept is None or kept.graphs.backbone is not model.backbone or kept.graphs.head is not model.head:
        kept = _generators[model] = Generator(model)
    return kept


def generate(
    model: GPT2LMHeadModel,
    input_ids: Sequence[Sequence[int]],
    settings: GenerationSettings,
    on_token: OnToken | None = None,
    row_numbers: Sequence[int] | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """`Generator.generate`, with a generator that is kept as long as the model lives."""
    return generator_of(model).generate(input_ids, settings, on_token, row_numbers, stop)


@contextmanager
def evaluating(cells: Iterable[nn.Cell]) -> Iterator[None]:
    """Dropout off inside, and each cell as it was afterwards."""
    training = [cell for cell in cells if cell.training]
    for cell in training:
        cell.add_flags(training=False)
    try:
        yield
    finally:
        for cell in training:
            cell.add_flags(training=True)


@contextmanager
def graph_mode() -> Iterator[None]:
    """Cells called inside are compiled, whatever mode the caller works in.

    `ms.jit` would do that too, but in PyNative mode it goes on with the weights of its first call after they change.
    """
    mode = ms.get_context("mode")
    if mode == ms.GRAPH_MODE:
        yield
        return
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=mode)
