"""What is done to a built model from the outside, so that the maths stays free of machinery."""

from mindgpt.config.execution import RecomputeSection
from mindgpt.models.gpt2.gpt2 import GPT2Model


def apply_recompute(backbone: GPT2Model, section: RecomputeSection) -> None:
    """Compute activations again in the backward pass rather than keep them.

    `recompute` drops all of a block's, so that only the blocks' inputs stay; `select_recompute` only those of the
    attention kernel, which are the largest and the cheapest to make (Korthikanti et al. 2022, section 5).
    """
    for block in backbone.blocks:
        if section.recompute:
            block.recompute()
        elif section.select_recompute:
            block.attention.attend.recompute()
