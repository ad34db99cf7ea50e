"""How a parallel layout cuts the factors of LoRA: as the layer that they stand beside."""

from mindgpt.models.gpt2.gpt2_modules import Linear
from mindgpt.models.gpt2.gpt2_parallel import Layout, cut_dropout, linear_cuts
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.pet.lora import LoRALinear


def apply_layout_to_lora(model: PretrainedCell, layout: Layout) -> None:
    """Set the shard strategies of the factors, after `apply_layout`.

    Where the layer is cut by columns, A is whole on every card and B cut by its outputs; where it is cut by rows, A is
    cut by its inputs, B whole, and the cards add up what is of rank r: the smallest sum there is.
    """
    for linear, by_column in linear_cuts(model.backbone):
        if isinstance(linear, LoRALinear):
            _cut(linear, layout, by_column)


def _cut(cell: Linear, layout: Layout, by_column: bool) -> None:
    dp, mp, rows = layout.data_parallel, layout.model_parallel, layout.row_cut
    cut_dropout(cell.lora_dropout, layout, (dp, 1) if by_column else (dp, mp))
    cell.lora_mul.shard(((dp, 1), ()))
    if by_column:
        cell.lora_a_matmul.shard(((dp, 1), (1, 1)))
        cell.lora_b_matmul.shard(((dp, 1), (mp, 1)))
        cell.lora_add.shard(((dp, mp), (dp, mp)))
    else:
        cell.lora_a_matmul.shard(((dp, mp), (1, mp)))
        cell.lora_b_matmul.shard(((dp, 1), (1, 1)))
        cell.lora_add.shard(((rows, 1), (rows, 1)))
