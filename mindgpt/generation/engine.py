"""The loop that continues texts token by token: greedy or by drawing; beam search is in `beam_search.py`."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from weakref import WeakKeyDictionary

import mindspore as ms
import numpy as np
from mindspore import nn

from mindgpt.config.errors import UserError
from mindgpt.generation.beam_search import Stop, beam_search
from mindgpt.generation.reader import CompiledGraphs, Reader
from mindgpt.generation.sampling import next_tokens
from mindgpt.generation.settings import GenerationSettings
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

OnToken = Callable[[int, int], None]
NewTokens = list[tuple[int, int]]  # of one step: the row and the token

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
        self.graphs = CompiledGraphs(model.backbone, model.head)
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
            a beam search the best first. A row ends with a token of `eos_token_id`, which it then includes, where
            `stop` says so, or when it is as long as `max_new_tokens`, `max_length` or the context window allow.

        Raises:
            UserError: no prompts, an empty one, one that leaves no room for a token, an id outside the vocabulary,
                `on_token` in a beam search, a stream of this model that is open, or logits that are no numbers.
        """
        with _ONE_AT_A_TIME:
            if settings.num_beams > 1 and on_token is None:
                return self._search(input_ids, settings, row_numbers, stop)
            rows: list[list[int]] = [[] for _ in range(len(input_ids) * settings.num_return_sequences)]
            with closing(self.stream(input_ids, settings, row_numbers, stop)) as steps:
                for new_tokens in steps:
                    for row, token in new_tokens:
                        rows[row].append(token)
                        if on_token is not None:
                            on_token(row, token)
            return rows

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
            reader = Reader(self.graphs, max(limits))
            yield from continue_texts(reader, prompts, limits, settings, streams, stop, self.running)

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
            return beam_search(Reader(self.graphs, max(limits)), prompts, limits, settings, streams, stop)

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
                self.graphs = CompiledGraphs(self.graphs.backbone, self.graphs.head)
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


def continue_texts(
    reader: Reader,
    prompts: list[list[int]],
    limits: list[int],
    settings: GenerationSettings,
    streams: list[np.random.Generator],
    stop: Stop | None,
    running: Callable[[], AbstractContextManager[None]],
) -> Iterator[NewTokens]:
    """Greedy or by drawing; see `Generator.stream`. There is a random stream for each row, a limit for each prompt.

    Graphs are called inside `running()`, which is left before each step's tokens are handed on: whoever reads them
    works in its own mode, and may take its time.
    """
    copies = settings.num_return_sequences
    starts = [len(prompt) for prompt in prompts for _ in range(copies)]
    ends = [limit for limit in limits for _ in range(copies)]
    texts = [list(prompt) for prompt in prompts for _ in range(copies)]
    alive = list(range(len(texts)))

    def goes_on(row: int) -> bool:
        if texts[row][-1] in settings.eos_token_ids or len(texts[row]) >= ends[row]:
            return False
        return stop is None or not stop(row, texts[row][starts[row] :])

    with running():
        logits = reader.read(prompts, copies)
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
            logits = reader.next(alive, [texts[row] for row in alive])


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


def checked_prompts(input_ids: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """The prompts as lists of ints. Raises `UserError` for one that is empty or holds what is no token id."""
    prompts = []
    for row, prompt in enumerate(input_ids):
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise UserError(f"Prompt {row} is empty: there is no token to continue. Give at least one.")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"Prompt {row} must be a row of token ids; it has shape {ids.shape} and dtype {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise UserError(
                f"Prompt {row} holds the id {wrong}, outside the model's vocabulary of {vocab_size}. Does the "
                "tokenizer belong to this model?"
            )
        prompts.append(ids.tolist())
    if not prompts:
        raise UserError("There are no prompts to continue.")
    return prompts


def length_limits(
    prompts: list[list[int]], settings: GenerationSettings, window: int, names: Sequence[str] | None = None
) -> list[int]:
    """How many tokens each row may have in all. Raises `UserError` where that leaves no room for a new one, and there
    calls the prompts by `names`, or "Prompt 0", "Prompt 1"...
    """
    names = names or [f"Prompt {row}" for row in range(len(prompts))]
    slides = settings.context_overflow == "slide"
    limits = []
    for name, prompt in zip(names, prompts, strict=True):
        tokens = len(prompt)
        if tokens >= window and not slides:
            raise UserError(
                f"{name} has {tokens} tokens and fills the context window of {window} (max_position_embeddings): "
                f"there is no room for a new one. Cut it to {window - 1} or fewer, or set context_overflow to slide."
            )
        if settings.max_new_tokens is not None:
            limit = tokens + settings.max_new_tokens
        elif settings.max_length is not None:
            limit = settings.max_length
        elif slides:
            raise UserError("generation: context_overflow: with slide no text ends by itself; set max_new_tokens too")
        else:
            limit = window
        if tokens >= limit:
            raise UserError(
                f"{name} has {tokens} tokens, and max_length, {limit}, counts them: there is no room for a new one. "
                "Raise it, or set max_new_tokens, which counts new tokens only."
            )
        limits.append(limit if slides else min(limit, window))
    return limits


def random_streams(
    seed: int | None, row_numbers: Sequence[int] | None, prompts: int, copies: int
) -> list[np.random.Generator]:
    """One stream for each row, which depends on the seed, its prompt's number and its number among the copies alone.

    The first of several texts is the one that would be drawn alone.
    """
    if seed is None:
        return [np.random.default_rng() for _ in range(prompts * copies)]
    numbers = range(prompts) if row_numbers is None else row_numbers
    names = zip(numbers, range(prompts), strict=True)
    return [np.random.default_rng([seed, number, copy]) for number, _ in names for copy in range(copies)]


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
