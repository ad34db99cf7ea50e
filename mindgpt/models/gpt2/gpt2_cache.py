"""The key/value cache of generation.

Shape letters: B rows of the cache, T tokens of a row that are read at once, C slots of a row, N heads, D head size.

Rows are padded on the right, so a token's slot is its position in the text, whatever else is in the batch (but for the
cache of `Prefill`, which several texts may share). Slots after a row's last token hold padding or what an earlier text
left there; they are masked until the row gets there and overwrites them. The causal mask is thus the only mask.
"""

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
