"""Recomputation: which activations of a built model are computed again in the backward pass rather than kept."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mindspore import nn, ops

from mindgpt.config.errors import UserError
from mindgpt.config.recompute_section import OfStages, RecomputeSection, blocks_meant
from mindgpt.config.section import shown
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_modules import Block

_LAYER_NORMS = r"layernorm[12]\.layer_norm"
_EXAMPLE = r"'output\.activation\.tanh'"


def apply_recompute(backbone: GPT2Model, section: RecomputeSection, blocks: Sequence[int] = ()) -> None:
    """Compute activations again in the backward pass rather than keep them.

    `recompute` drops all of a block's, so that only the blocks' inputs stay; `select_recompute` only those of the
    attention kernel, which are the largest and the cheapest to make (Korthikanti et al. 2022, section 5), or of the
    operators that it names. Under a layout, `mp_comm_recompute: False` keeps the results of collectives, and
    `recompute_slice_activation` keeps of a block's input only a rank's shard. `parallel_optimizer_comm_recompute` is to
    gather optimizer-sharded weights again; it is passed on, but MindSpore 2.10 compiles the same graph with it, which
    keeps them from forward to backward.

    Args:
        backbone: whose blocks are changed.
        section: the key `recompute_config`, which may name a number of blocks for each pipeline stage.
        blocks: of each pipeline stage; absent: all are of one.

    Raises:
        UserError: a pattern of the section matches no operator of a block.
    """
    every = iter(backbone.blocks)
    for stage, number in enumerate(blocks or [len(backbone.blocks)]):
        for place in range(number):
            _recompute_in_block(next(every), section, stage, number, place)


def _recompute_in_block(block: Block, section: RecomputeSection, stage: int, blocks: int, place: int) -> None:
    """place: of the block among the `blocks` of its stage."""

    def chosen(key: str, default: str) -> Iterator[Any]:
        return _chosen(block, section, key, default, lambda value: place < blocks_meant(value, stage, blocks))

    if place < blocks_meant(section.recompute, stage, blocks):
        block.recompute(
            mp_comm_recompute=section.mp_comm_recompute,
            parallel_optimizer_comm_recompute=section.parallel_optimizer_comm_recompute,
            recompute_slice_activation=section.recompute_slice_activation,
        )
    else:
        for part in chosen("select_recompute", r"attention\.attend"):
            for operator in [part] if isinstance(part, nn.Cell) else _operators_in(part):
                operator.recompute()
        for part in chosen("select_comm_recompute", _LAYER_NORMS):
            for operator in _operators_in(part):
                operator.add_prim_attr("recompute_comm_op", True)
    for part in chosen("select_recompute_exclude", ""):
        for operator in _operators_in(part):
            operator.recompute(False)
    for part in chosen("select_comm_recompute_exclude", ""):
        for operator in _operators_in(part):
            operator.add_prim_attr("recompute_comm_op", False)


def _chosen(
    block: Block, section: RecomputeSection, key: str, default: str, is_for: Callable[[OfStages], bool]
) -> Iterator[nn.Cell | ops.Primitive]:
    """The cells and operators of a block that a key of the section chooses. default: the pattern if it names none."""
    value = getattr(section, key)
    if isinstance(value, dict):
        patterns = value
    elif isinstance(value, list) and isinstance(value[0], str):
        patterns = dict.fromkeys(value, True)
    elif default or not value:
        patterns = {default: value} if default else {}
    else:
        raise UserError(f"recompute_config.{key}: must name operators, as in [{_EXAMPLE}], not {shown(value)}")
    for pattern, of_stages in patterns.items():
        found = list(_matching(block, pattern.split(r"\.")))
        if not found:
            raise UserError(
                f"recompute_config.{key}: {pattern!r} matches nothing in a block of this network. In it are "
                f"{', '.join(_paths(block))}; in a pattern the dots are written \\."
            )
        if is_for(of_stages):
            yield from found


def _matching(cell: nn.Cell, pattern: list[str]) -> Iterator[nn.Cell | ops.Primitive]:
    """What is in a cell under a path of names; each part of the pattern is a regular expression for one name."""
    first, *rest = pattern
    for name, inner in _parts(cell):
        if re.fullmatch(first, name):
            if not rest:
                yield inner
            elif isinstance(inner, nn.Cell):
                yield from _matching(inner, rest)


def _parts(cell: nn.Cell) -> Iterator[tuple[str, nn.Cell | ops.Primitive]]:
    """The cells and operators that are directly in a cell, by name."""
    for parts in (cell._cells, cell._primitives):
        yield from ((name, part) for name, part in parts.items() if part is not None)


def _operators_in(part: nn.Cell | ops.Primitive) -> Iterator[ops.Primitive]:
    """The operators of a cell, or the one operator; without those that generate dropout masks, which are kept."""
    if isinstance(part, nn.Cell):
        for _, inner in _parts(part):
            yield from _operators_in(inner)
    elif part.attrs.get("recompute") is not False:
        yield part


def _paths(cell: nn.Cell, above: str = "") -> Iterator[str]:
    """The paths of all operators of a cell."""
    for name, part in _parts(cell):
        yield from _paths(part, f"{above}{name}.") if isinstance(part, nn.Cell) else [above + name]
