"""The key/value cache of generation, and what the cells that work on it have in common.

Shape letters: B rows of the cache, T tokens of a row that are read at once, C slots of a row, N heads, D head size.

Rows are padded on the right, so a token's slot is its position in the text, whatever else is in the batch (but for the
cache of `Prefill`, which several texts may share). Slots after a row's last token hold padding or what an earlier text
left there; they are masked until the row gets there and overwrites them. The causal mask is thus the only mask.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.models.gpt2.gpt2_modules import LayerCache

ModelCache = list[LayerCache]


class KeyValueCache(nn.Cell):
    """The keys and values of a batch, one pair of parameters for each layer, written in place.

    They are stored as (B*N*C, D), where a token's vector is one row: only in that layout does the CPU's scatter take
    time in proportion to the rows written, not to the whole parameter.

    Attributes:
        batch, heads, capacity, head_size: B, N, C, D.
        keys, values: a parameter for each layer.
    """

    def __init__(
        self, layers: int, heads: int, head_size: int, dtype: ms.Type, batch: int, capacity: int, name: str = "cache"
    ):
        super().__init__()
        self.batch, self.heads, self.capacity, self.head_size = batch, heads, capacity, head_size
        size = (batch * heads * capacity, head_size)

        def zeros(part: str) -> Parameter:
            return Parameter(initializer("zeros", size, dtype).init_data(), f"{name}{batch}x{capacity}.{part}", False)

        self.keys = ParameterTuple([zeros(f"{layer}.keys") for layer in range(layers)])
        self.values = ParameterTuple([zeros(f"{layer}.values") for layer in range(layers)])
        first = np.arange(batch * heads, dtype=np.int32).reshape(batch, heads, 1) * capacity
        self.first_rows = Tensor(first)  # (B, N, 1): where the slots of a head begin
        self.slots = Tensor(np.arange(capacity, dtype=np.int32).reshape(1, 1, 1, -1))
        self.gather = ops.Gather()
        self.add = ops.Add()
        self.less_equal = ops.LessEqual()
        self.greater_equal = ops.GreaterEqual()
        self.reshape = ops.Reshape()

    def up_to(self, slots: Tensor) -> Tensor:
        """slots: (B, T) int32 -> (B, 1, T, C) bool: the slots of the row up to these"""
        return self.less_equal(self.slots, self.reshape(slots, (self.batch, 1, -1, 1)))

    def since(self, slots: Tensor) -> Tensor:
        """slots: (B, T) int32 -> (B, 1, T, C) bool: the slots of the row from these on"""
        return self.greater_equal(self.slots, self.reshape(slots, (self.batch, 1, -1, 1)))

    def at(self, slots: Tensor) -> ModelCache:
        """slots: (B, T) int32 -> for each layer the cache, and where the tokens with these slots are written"""
        rows = self.reshape(self.add(self.first_rows, ops.expand_dims(slots, 1)), (-1,))  # (B*N*T,)
        return [(self.keys[layer], self.values[layer], rows) for layer in range(len(self.keys))]

    def rows_of(self, row: Tensor, slots: Tensor) -> Tensor:
        """row: (1,) int32; slots: (T,) -> (N*T,): where the tokens with these slots of one row of the batch are"""
        return self.reshape(self.add(self.gather(self.first_rows, row, 0), slots), (-1,))


class InferenceCell(nn.Cell):
    """A cell of others' layers that is always called with tensors of the same shapes.

    At every call of a graph MindSpore checks anew whether it fits, for GPT-2 small in 1 to 3 ms; but not for cells in
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


class CopyRow(InferenceCell):
    """Copy one row of a cache, from some slot on, to the front of a row of another cache or of the same.

    As many slots are copied as the smaller cache has.
    """

    def __init__(self, source: KeyValueCache, target: KeyValueCache):
        super().__init__()
        self.source = source
        self.target = target
        self.slots = Tensor(np.arange(min(source.capacity, target.capacity), dtype=np.int32))
        self.last = Tensor(source.capacity - 1, ms.int32)
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.add = ops.Add()
        self.minimum = ops.Minimum()

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor) -> None:
        """source_row, first_slot, target_row: (1,) int32"""
        taken = self.minimum(self.add(self.slots, first_slot), self.last)  # after the end there is no text
        taken = self.source.rows_of(source_row, taken)
        written = self.target.rows_of(target_row, self.slots)
        for layer in range(len(self.source.keys)):
            keys = self.gather(self.source.keys[layer], taken, 0)  # (N*slots, D)
            values = self.gather(self.source.values[layer], taken, 0)
            self.scatter(self.target.keys[layer], written, keys)
            self.scatter(self.target.values[layer], written, values)


class InferenceCells(NamedTuple):
    """The cells of generation by one implementation, MindSpore's operators or a device's kernels.

    All are built and called alike, as those of `gpt2.py`. `tokens` of a `prefill` cell is how many tokens it reads at
    once; the last argument of `prefill` and the fourth of the two after it tell how many of its rows count, (1,) int32.
    """

    cache: type[KeyValueCache]
    decode: type[InferenceCell]
    prefill: type[InferenceCell]
    last_logits: type[InferenceCell]
    target_log_probs: type[InferenceCell]
    copy_row: type[InferenceCell]
