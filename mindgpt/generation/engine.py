"""Prefill and decode with a key/value cache: the loop that continues texts token by token.

Shape letters: B rows of the batch, P tokens of a padded prompt, C slots of the cache, H hidden, N heads, D head size,
V vocabulary.

Rows are padded on the right, so a token's slot in the cache is its position in the text, whatever else is in the batch.
Slots behind a row's last token hold padding or what an earlier text left there; they are masked until the row gets
there and overwrites them. The causal mask is thus the only mask there is.

Shapes are rounded up to powers of two. A shape is compiled when it first occurs (seconds), and then kept. The cache
starts as large as the prompts need and doubles when a text reaches its end, since every step reads the whole of it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.config.errors import UserError
from mindgpt.generation.sampling import GenerationSettings, next_tokens
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel, GPT2Model
from mindgpt.models.gpt2.gpt2_heads import LMHead
from mindgpt.models.gpt2.gpt2_modules import Block

SMALLEST_PROMPT = 32  # tokens; a product of fewer rows takes hardly less time, since reading the weights does
SMALLEST_CACHE = 128  # slots
KEPT_SHAPES = 8  # (batch, capacity) pairs; each holds a cache of 2 * layers * B * C * H numbers

OnToken = Callable[[int, int], None]


class KeyValueCache(nn.Cell):
    """The keys and values of a batch, one pair of parameters for each layer, written in place.

    They are stored as (B*N*C, D), where a token's vector is one row: only in that layout does the CPU's scatter take
    time in proportion to the rows written, not to the whole parameter.
    """

    def __init__(self, layers: int, heads: int, head_size: int, dtype: ms.Type, batch: int, capacity: int):
        super().__init__()
        size = (batch * heads * capacity, head_size)

        def zeros(name: str) -> Parameter:
            return Parameter(initializer("zeros", size, dtype).init_data(), f"cache{capacity}.{name}", False)

        self.keys = ParameterTuple([zeros(f"{layer}.keys") for layer in range(layers)])
        self.values = ParameterTuple([zeros(f"{layer}.values") for layer in range(layers)])
        self.shape = (batch, heads, capacity, head_size)
        first = np.arange(batch * heads, dtype=np.int32).reshape(batch, heads, 1) * capacity
        self.first_rows = Tensor(first)  # (B, N, 1): where the slots of a head begin
        self.scatter = ops.ScatterUpdate()
        self.reshape = ops.Reshape()

    def rows_of(self, positions: Tensor) -> Tensor:
        """positions: (B or 1, T) int32 -> (B*N*T,): the rows of these slots, for each head"""
        return self.reshape(self.first_rows + ops.expand_dims(positions, 1), (-1,))

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys, values: (B, N, T, D); rows: (B*N*T,) from `rows_of`"""
        self.scatter(self.keys[layer], rows, self.reshape(keys, (-1, self.shape[3])))
        self.scatter(self.values[layer], rows, self.reshape(values, (-1, self.shape[3])))

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all slots: (B, N, C, D) each."""
        return self.reshape(self.keys[layer], self.shape), self.reshape(self.values[layer], self.shape)


class CachedModel(nn.Cell):
    """What prefill and decode share: the model's own layers, and the cache they write to."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        super().__init__(auto_prefix=False)
        self.embedding = backbone.embedding
        self.attention_mask = backbone.attention_mask
        self.blocks = backbone.blocks
        self.layernorm = backbone.layernorm
        self.head = head
        self.cache = cache
        self.batch = cache.shape[0]
        self.hidden_size = backbone.hidden_size
        self.reshape = ops.Reshape()

    def residuals(self, block: Block, x: Tensor, context: Tensor) -> Tensor:
        """The rest of a block after attention. x: (rows, H); context: (B, N, T, D) -> (rows, H)"""
        x = block.add1(x, block.attention.projection(block.attention.merge_heads(context)))
        return block.add2(x, block.output(block.layernorm2(x)))

    def logits(self, x: Tensor) -> Tensor:
        """x: (B, H) -> (B, V) float32"""
        return self.head(self.layernorm(x), self.embedding.word_embedding.embedding_table)


class Prefill(CachedModel):
    """Read the prompts: P tokens a row at once, which attend to each other."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache, tokens: int):
        super().__init__(backbone, head, cache)
        positions = np.arange(tokens, dtype=np.int32)
        self.tokens = tokens
        self.positions = Tensor(positions[None])  # (1, P)
        self.causal = Tensor(np.tril(np.ones((1, 1, tokens, tokens), np.bool_)))
        self.row_starts = Tensor(np.arange(cache.shape[0], dtype=np.int32) * tokens)  # (B,)
        self.gather = ops.Gather()

    def construct(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """input_ids: (B, P) int32, padded on the right; lengths: (B,) int32 -> (B, V): logits at the last tokens"""
        x = self.reshape(self.embedding(input_ids, self.positions), (-1, self.hidden_size))  # (B*P, H)
        mask = self.attention_mask(self.causal)
        rows = self.cache.rows_of(self.positions)
        for layer, block in enumerate(self.blocks):
            q, k, v = block.attention.heads(block.layernorm1(x), self.tokens)
            self.cache.write(layer, rows, k, v)
            x = self.residuals(block, x, block.attention.attend(q, k, v, mask))
        return self.logits(self.gather(x, self.row_starts + lengths - 1, 0))


class Decode(CachedModel):
    """Read one more token of each row, which attends to those of its row in the cache."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        super().__init__(backbone, head, cache)
        self.slots = Tensor(np.arange(cache.shape[2], dtype=np.int32).reshape(1, 1, 1, -1))

    def construct(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32 -> (B, V): logits at these tokens"""
        x = self.reshape(self.embedding(input_ids, positions), (-1, self.hidden_size))  # (B, H)
        mask = self.attention_mask(self.slots <= self.reshape(positions, (self.batch, 1, 1, 1)))  # (B, 1, 1, C)
        rows = self.cache.rows_of(positions)
        for layer, block in enumerate(self.blocks):
            q, k, v = block.attention.heads(block.layernorm1(x), 1)
            self.cache.write(layer, rows, k, v)
            keys, values = self.cache.read(layer)
            x = self.residuals(block, x, block.attention.attend(q, keys, values, mask))
        return self.logits(x)


class Growth(nn.Cell):
    """Copy a cache to the front of a larger one."""

    def __init__(self, smaller: KeyValueCache, larger: KeyValueCache):
        super().__init__(auto_prefix=False)
        self.smaller = smaller
        self.larger = larger
        self.positions = Tensor(np.arange(smaller.shape[2], dtype=np.int32)[None])  # (1, C)

    def construct(self) -> None:
        rows = self.larger.rows_of(self.positions)
        for layer in range(len(self.smaller.keys)):
            keys, values = self.smaller.read(layer)
            self.larger.write(layer, rows, keys, values)


class CompiledShape:
    """The cells for one batch size and capacity: one decode, and a prefill for each padded prompt length."""

    def __init__(self, backbone: GPT2Model, head: LMHead, batch: int, capacity: int):
        config, dtype = backbone.config, backbone.embedding.compute
        self.backbone = backbone
        self.head = head
        self.cache = KeyValueCache(config.num_layers, config.num_heads, config.head_size, dtype, batch, capacity)
        self.decode = Decode(backbone, head, self.cache)
        self.capacity = capacity
        self._prefills: dict[int, Prefill] = {}
        self._growth: Growth | None = None

    def prefill(self, tokens: int) -> Prefill:
        """The cell for prompts padded to `tokens`."""
        if tokens not in self._prefills:
            self._prefills[tokens] = Prefill(self.backbone, self.head, self.cache, tokens)
        return self._prefills[tokens]

    def take_over(self, smaller: "CompiledShape") -> None:
        """Go on with the texts in the cache of a smaller shape of the same batch size."""
        if self._growth is None or self._growth.smaller is not smaller.cache:
            self._growth = Growth(smaller.cache, self.cache)
        self._growth()


class Generator:
    """Continues texts with a model, and keeps what it compiled for the next call.

    The model may be trained between calls: its weights are shared, not copied. Not for use by several threads at once.
    """

    def __init__(self, model: GPT2LMHeadModel):
        # Not the model itself: a generator is kept as long as its model lives (`generate`), not the other way round.
        self.backbone = model.backbone
        self.head = model.head
        self.config = model.config
        self._shapes: OrderedDict[tuple[int, int], CompiledShape] = OrderedDict()

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        settings: GenerationSettings,
        on_token: OnToken | None = None,
        row_numbers: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt; what a row gets does not depend on the other rows.

        Args:
            input_ids: the prompts, of any lengths, without padding.
            settings: how to choose tokens and when to stop.
            on_token: called as `on_token(row, id)` with each new token, when it is known.
            row_numbers: with the seed they name each row's random stream; 0, 1, 2... if None.

        Returns:
            The new tokens of each row. A row ends with `eos_token_id`, which it then includes, or when it is as long as
            `max_new_tokens`, `max_length` or the context window allow.

        Raises:
            UserError: no prompts, an empty one, one that leaves no room for a token, an id outside the vocabulary, or
                logits that are no numbers.
        """
        prompts = checked_prompts(input_ids, self.config.vocab_size)
        limits = length_limits(prompts, settings, self.config.max_position_embeddings)
        streams = random_streams(settings.seed, row_numbers, len(prompts))
        with evaluating(self.backbone), graph_mode():
            return self._continue(prompts, limits, settings, streams, on_token)

    def _continue(
        self,
        prompts: list[list[int]],
        limits: list[int],
        settings: GenerationSettings,
        streams: list[np.random.Generator],
        on_token: OnToken | None,
    ) -> list[list[int]]:
        texts = [list(prompt) for prompt in prompts]
        alive = list(range(len(texts)))
        for logits in self._steps(texts):
            tokens = next_tokens(logits[alive], [texts[r] for r in alive], settings, [streams[r] for r in alive])
            for row, token in zip(alive, tokens.tolist(), strict=True):
                texts[row].append(token)
                if on_token is not None:
                    on_token(row, token)
            alive = [r for r in alive if texts[r][-1] != settings.eos_token_id and len(texts[r]) < limits[r]]
            if not alive:
                break
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    def _steps(self, texts: list[list[int]]) -> Iterator[np.ndarray]:
        """The logits at the end of each text, (rows, V) float32, again and again.

        Between two steps the caller appends a token to texts, in place. A text that gets none is read again at the same
        place and changes nothing.
        """
        rows, batch = len(texts), bucket(len(texts), 1)
        longest, window = max(map(len, texts)), self.config.max_position_embeddings
        shape = self._shape(batch, bucket(longest + 1, SMALLEST_CACHE, window))
        padded = bucket(longest, SMALLEST_PROMPT, window)
        ids = np.zeros((batch, padded), np.int32)  # what pads rows, and the batch, is masked or never looked at
        lengths = np.ones(batch, np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            lengths[row] = len(text)
        logits = shape.prefill(padded)(Tensor(ids), Tensor(lengths))
        while True:
            yield self._checked(logits.asnumpy()[:rows])
            longest = max(map(len, texts))
            if longest > shape.capacity:
                larger = self._shape(batch, bucket(longest, SMALLEST_CACHE, window))
                larger.take_over(shape)
                shape = larger
            last_ids, positions = np.zeros((2, batch, 1), np.int32)
            last_ids[:rows, 0] = [text[-1] for text in texts]
            positions[:rows, 0] = [len(text) - 1 for text in texts]
            logits = shape.decode(Tensor(last_ids), Tensor(positions))

    def _shape(self, batch: int, capacity: int) -> CompiledShape:
        """The cells for this shape, compiled when they are first called; the shape longest unused makes room for it."""
        key = (batch, capacity)
        if key not in self._shapes:
            if len(self._shapes) == KEPT_SHAPES:
                self._shapes.popitem(last=False)
            self._shapes[key] = CompiledShape(self.backbone, self.head, batch, capacity)
        self._shapes.move_to_end(key)
        return self._shapes[key]

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        if not np.isfinite(logits.max(axis=-1)).all():
            # A NaN in the cache outlives its text: 0 * NaN is NaN in every sum over the slots.
            self._shapes.clear()
            raise UserError(
                "The model's logits are not numbers (NaN or infinity): its weights are broken, or too large for "
                f"compute_dtype {self.config.compute_dtype}. Look at the loss of the run that wrote them."
            )
        return logits


_generators: "WeakKeyDictionary[GPT2LMHeadModel, Generator]" = WeakKeyDictionary()


def generate(
    model: GPT2LMHeadModel,
    input_ids: Sequence[Sequence[int]],
    settings: GenerationSettings,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """`Generator.generate`, with a generator that is kept as long as the model lives."""
    if model not in _generators:
        _generators[model] = Generator(model)
    return _generators[model].generate(input_ids, settings, on_token)


def bucket(size: int, smallest: int, largest: int | None = None) -> int:
    """The power of two at or above `size`, but at least `smallest` and at most `largest`."""
    power = max(smallest, 1 << (size - 1).bit_length())
    return power if largest is None else min(power, largest)


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


def length_limits(prompts: list[list[int]], settings: GenerationSettings, window: int) -> list[int]:
    """How many tokens each row may have in all. Raises `UserError` where that leaves no room for a new one."""
    limits = []
    for row, prompt in enumerate(prompts):
        tokens = len(prompt)
        if tokens >= window:
            raise UserError(
                f"Prompt {row} has {tokens} tokens and fills the context window of {window} (max_position_embeddings): "
                f"there is no room for a new one. Cut it to {window - 1} or fewer."
            )
        limit = window
        if settings.max_new_tokens is not None:
            limit = min(window, tokens + settings.max_new_tokens)
        elif settings.max_length is not None:
            if tokens >= settings.max_length:
                raise UserError(
                    f"Prompt {row} has {tokens} tokens, and max_length, {settings.max_length}, counts them: there is "
                    "no room for a new one. Raise it, or set max_new_tokens, which counts new tokens only."
                )
            limit = min(window, settings.max_length)
        limits.append(limit)
    return limits


def random_streams(seed: int | None, row_numbers: Sequence[int] | None, rows: int) -> list[np.random.Generator]:
    """One stream for each row, which depends on the seed and the row's number alone."""
    if seed is None:
        return [np.random.default_rng() for _ in range(rows)]
    numbers = range(rows) if row_numbers is None else row_numbers
    return [np.random.default_rng([seed, number]) for number, _ in zip(numbers, range(rows), strict=True)]


@contextmanager
def evaluating(model: nn.Cell) -> Iterator[None]:
    """Dropout off inside, and each cell as it was afterwards."""
    training = [cell for _, cell in model.cells_and_names() if cell.training]
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
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=mode)
