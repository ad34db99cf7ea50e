"""The graphs of generation: a key/value cache, and the cells that read tokens into it.

Shape letters: B rows of the cache, T tokens of a row that are read at once, C slots of the cache, H hidden, N heads,
D head size, V vocabulary.

Rows are padded on the right, so a token's slot in the cache is its position in the text, whatever else is in the batch
(but for the cache that `Prefill` reads into, which several texts may share). Slots behind a row's last token hold
padding or what an earlier text left there; they are masked until the row gets there and overwrites them. The causal
mask is thus the only mask there is.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_heads import CrossEntropy, LMHead


class KeyValueCache(nn.Cell):
    """The keys and values of a batch, one pair of parameters for each layer, written in place.

    They are stored as (B*N*C, D), where a token's vector is one row: only in that layout does the CPU's scatter take
    time in proportion to the rows written, not to the whole parameter.
    """

    def __init__(
        self, layers: int, heads: int, head_size: int, dtype: ms.Type, batch: int, capacity: int, name: str = "cache"
    ):
        super().__init__()
        size = (batch * heads * capacity, head_size)

        def zeros(part: str) -> Parameter:
            return Parameter(initializer("zeros", size, dtype).init_data(), f"{name}{batch}x{capacity}.{part}", False)

        self.keys = ParameterTuple([zeros(f"{layer}.keys") for layer in range(layers)])
        self.values = ParameterTuple([zeros(f"{layer}.values") for layer in range(layers)])
        self.shape = (batch, heads, capacity, head_size)
        first = np.arange(batch * heads, dtype=np.int32).reshape(batch, heads, 1) * capacity
        self.first_slots = Tensor(first)  # (B, N, 1): where the slots of a head begin
        self.gather = ops.Gather()
        self.add = ops.Add()
        self.scatter = ops.ScatterUpdate()
        self.reshape = ops.Reshape()

    def slots_of(self, positions: Tensor) -> Tensor:
        """positions: (B or 1, T) int32 -> (B*N*T,): where the tokens at these positions lie, for each head"""
        return self.reshape(self.add(self.first_slots, ops.expand_dims(positions, 1)), (-1,))

    def slots_of_row(self, row: Tensor, positions: Tensor) -> Tensor:
        """row: (1,) int32; positions: (T,) -> (N*T,): the same for one row of the batch"""
        return self.reshape(self.add(self.gather(self.first_slots, row, 0), positions), (-1,))

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys, values: (B, N, T, D) or as rows (B*N*T, D); slots: (B*N*T,)"""
        self.scatter(self.keys[layer], slots, self.reshape(keys, (-1, self.shape[3])))
        self.scatter(self.values[layer], slots, self.reshape(values, (-1, self.shape[3])))

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all slots: (B, N, C, D) each."""
        return self.reshape(self.keys[layer], self.shape), self.reshape(self.values[layer], self.shape)


class Graph(nn.Cell):
    """A cell of others' layers that is always called with tensors of the same shapes.

    At every call of a graph MindSpore looks anew whether it fits, for GPT-2 small in 1 to 3 ms; but not for cells in
    the phase that it calls "increment".
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.phase = "increment"
        self.called_with: list[tuple[int, ...]] | None = None

    def __call__(self, *args: Tensor) -> Tensor:
        shapes = [value.shape for value in args]
        assert self.called_with in (None, shapes), f"{type(self).__name__} has one graph for one set of shapes"
        self.called_with = shapes
        return super().__call__(*args)


class CachedModel(Graph):
    """The model's own layers, over T more tokens of each row, which attend to all that the cache holds of their row."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache, tokens: int):
        super().__init__()
        self.embedding = backbone.embedding
        self.attention_mask = backbone.attention_mask
        self.blocks = backbone.blocks
        self.layernorm = backbone.layernorm
        self.cache = cache
        self.batch = cache.shape[0]
        self.tokens = tokens
        self.hidden_size = backbone.hidden_size
        self.slots = Tensor(np.arange(cache.shape[2], dtype=np.int32).reshape(1, 1, 1, -1))
        self.less_equal = ops.LessEqual()
        self.reshape = ops.Reshape()

    def up_to(self, slots: Tensor) -> Tensor:
        """slots: (B, T) int32 -> (B, 1, T, C) bool: the slots of the cache that do not lie behind these"""
        return self.less_equal(self.slots, self.reshape(slots, (self.batch, 1, self.tokens, 1)))

    def hidden(self, input_ids: Tensor, positions: Tensor, slots: Tensor, visible: Tensor) -> Tensor:
        """Read tokens.

        Args:
            input_ids, positions: (B, T) int32.
            slots: (B, T) int32, where in their row of the cache they are to lie.
            visible: (B, 1, T, C) bool, which slots each token attends to.

        Returns:
            (B*T, H), in the layer-norm dtype.
        """
        x = self.reshape(self.embedding(input_ids, positions), (-1, self.hidden_size))
        mask = self.attention_mask(visible)
        slots = self.cache.slots_of(slots)
        for layer, block in enumerate(self.blocks):
            q, k, v = block.attention.heads(block.layernorm1(x), self.tokens)
            self.cache.write(layer, slots, k, v)
            keys, values = self.attended(layer, k, v)
            context = block.attention.attend(q, keys, values, mask)  # (B, N, T, D)
            x = block.add1(x, block.attention.projection(block.attention.merge_heads(context)))
            x = block.add2(x, block.output(block.layernorm2(x)))
        return self.layernorm(x)

    def attended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v: (B, N, T, D) of the tokens that are read -> what they attend to: (B, N, C, D) each"""
        return self.cache.read(layer)


class Decode(CachedModel):
    """Read one more token of each row."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        super().__init__(backbone, cache, 1)
        self.head = head

    def construct(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32 -> (B, V): logits at these tokens"""
        x = self.hidden(input_ids, positions, positions, self.up_to(positions))
        return self.head(x, self.embedding.word_embedding.embedding_table)


class Prefill(CachedModel):
    """Read T tokens at once into a cache of one row, which may hold several short texts, one behind the other.

    What is made of them is left to `LastLogits` and `TargetLogProbs`.
    """

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache, tokens: int):
        super().__init__(backbone, cache, tokens)
        self.sub = ops.Sub()
        self.less = ops.Less()
        self.both = ops.LogicalAnd()
        self.logical_not = ops.LogicalNot()

    def construct(self, input_ids: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        """input_ids, positions, slots: (1, T) int32 -> (T, H). A token sees the slots from where its text begins."""
        first = self.reshape(self.sub(slots, positions), (1, 1, self.tokens, 1))
        visible = self.both(self.up_to(slots), self.logical_not(self.less(self.slots, first)))
        return self.hidden(input_ids, positions, slots, visible)


class Opening(Prefill):
    """`Prefill` into the front of a cache: the tokens attend to one another alone, not to slots that are yet empty."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache, tokens: int):
        super().__init__(backbone, cache, tokens)
        self.slots = Tensor(np.arange(tokens, dtype=np.int32).reshape(1, 1, 1, -1))

    def attended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `CachedModel.attended`; here C is T."""
        return k, v


class LastLogits(nn.Cell):
    """What comes behind some of the tokens that `Prefill` has read."""

    def __init__(self, backbone: GPT2Model, head: LMHead):
        super().__init__(auto_prefix=False)
        self.word_embedding = backbone.embedding.word_embedding
        self.head = head
        self.gather = ops.Gather()

    def construct(self, x: Tensor, ends: Tensor) -> Tensor:
        """x: (T, H); ends: (n,) int32, which tokens -> (n, V) float32"""
        return self.head(self.gather(x, ends, 0), self.word_embedding.embedding_table)


class TargetLogProbs(nn.Cell):
    """How likely what comes behind each token was that `Prefill` has read."""

    def __init__(self, backbone: GPT2Model, head: LMHead):
        super().__init__(auto_prefix=False)
        self.word_embedding = backbone.embedding.word_embedding
        self.head = head
        self.cross_entropy = CrossEntropy()
        self.neg = ops.Neg()

    def construct(self, x: Tensor, targets: Tensor) -> Tensor:
        """x: (T, H); targets: (T,) int32, the tokens behind -> (T,) float32: log P of each"""
        return self.neg(self.cross_entropy(self.head(x, self.word_embedding.embedding_table), targets))


class CopyRow(Graph):
    """Copy one row of a cache, from some slot on, to the front of a row of another cache or of the same.

    As many slots are copied as the smaller cache has.
    """

    def __init__(self, source: KeyValueCache, target: KeyValueCache):
        super().__init__()
        self.source = source
        self.target = target
        self.slots = Tensor(np.arange(min(source.shape[2], target.shape[2]), dtype=np.int32))
        self.last = Tensor(source.shape[2] - 1, ms.int32)
        self.gather = ops.Gather()
        self.add = ops.Add()
        self.minimum = ops.Minimum()

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor) -> None:
        """source_row, first_slot, target_row: (1,) int32"""
        taken = self.minimum(self.add(self.slots, first_slot), self.last)  # behind the end there is no text
        taken = self.source.slots_of_row(source_row, taken)
        written = self.target.slots_of_row(target_row, self.slots)
        for layer in range(len(self.source.keys)):
            keys = self.gather(self.source.keys[layer], taken, 0)  # (N*slots, D)
            self.target.write(layer, written, keys, self.gather(self.source.values[layer], taken, 0))
