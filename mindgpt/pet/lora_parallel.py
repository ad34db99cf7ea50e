"""Shard strategies of LoRA's factors in a parallel layout, which follow those of their layer."""

from mindgpt.models.gpt2.gpt2_modules import Linear
from mindgpt.models.gpt2.gpt2_parallel import Layout, linear_layers, shard_dropout
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.pet.lora import LoRALinear


def apply_layout_to_lora(model: PretrainedCell, layout: Layout) -> None:
    """Set the shard strategies of the factors, after `apply_layout`.

    In a column-parallel layer, A is replicated and B sharded by its outputs. In a row-parallel layer, A is sharded by
    its inputs and B replicated, so the AllReduce is over activations of width r, the smallest possible.
    """
    for linear, by_column in linear_layers(model.backbone):
        if isinstance(linear, LoRALinear):
            _shard(linear, layout, by_column)


def _shard(cell: Linear, layout: Layout, by_column: bool) -> None:
    dp, mp, rows = layout.data_parallel, layout.model_parallel, layout.row_shards
    shard_dropout(cell.lora_dropout, layout, (dp, 1) if by_column else (dp, mp))
    cell.lora_mul.shard(((dp, 1), ()))
    if by_column:
        cell.lora_a_matmul.shard(((dp, 1), (1, 1)))
        cell.lora_b_matmul.shard(((dp, 1), (mp, 1)))
        cell.lora_add.shard(((dp, mp), (dp, mp)))
    else:
        cell.lora_a_matmul.shard(((dp, mp), (1, mp)))
        cell.lora_b_matmul.shard(((dp, 1), (1, 1)))
        cell.lora_add.shard(((rows, 1), (rows, 1)))
