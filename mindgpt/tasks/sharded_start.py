"""What a sharded run begins with: each rank reads its shards of the weights, and of no other tensor.

The model is built without values (`model_setup.plan_model`) and the step compiled, after which MindSpore tells how each
parameter is sharded. Only then are values made: of weights, the box of the file that is this rank's shard; of all else,
what MindSpore would have made while compiling.
"""

from collections.abc import Mapping
from typing import Any

from mindspore import Parameter, nn
from mindspore.communication import get_group_size, get_rank

from mindgpt.checkpoints.strategy_format import TensorLayout
from mindgpt.checkpoints.tensor_source import Box
from mindgpt.runtime.collectives import ranks_per_stage
from mindgpt.runtime.ranks import rank
from mindgpt.tasks.model_setup import Start


def load_shards(step: nn.Cell, start: Start) -> None:
    """Give the parameters of a compiled step their values, unless they have them: this rank's shards of the weights of
    `start`, and initial values of what is not in it. Master copies get the weights' values as they are in the file.

    Parameters of other pipeline stages stay without.
    """
    layouts = step.parameter_layout_dict
    held = {parameter.name: parameter for parameter in step.get_parameters() if parameter.sliced}

    def box(parameter: Parameter, whole: tuple[int, ...]) -> Box | None:
        return box_of_rank(layouts.get(parameter.name), whole)

    start.load(held, box, step.optimizer.masters)
    initialize(held, layouts)


def initialize(parameters: Mapping[str, Parameter], layouts: Mapping[str, tuple[Any, ...]]) -> None:
    """Give parameters that have no values their initial ones, as MindSpore does for a shard: random weights are others
    for each shard, and the same wherever it is held.

    Args:
        parameters: name -> Parameter, of a compiled step.
        layouts: its `parameter_layout_dict`.
    """
    for name, parameter in parameters.items():
        if parameter.has_init:
            layout = layouts.get(name)
            if layout is not None:  # whose shape of a shard leaves optimizer sharding out
                layout = (*layout[:2], list(parameter.shape), *layout[3:])
            made = parameter.init_data(layout, set_sliced=True)
            assert made is parameter, f"{name}: MindSpore has made another parameter in its place"


def box_of_rank(layout: tuple[Any, ...] | None, shape: tuple[int, ...]) -> Box | None:
    """The box of a parameter that is this rank's shard; None: it is whole.

    Args:
        layout: from the `parameter_layout_dict` of a compiled cell: device matrix; for each dimension the axis of that
            matrix that shards it, counted from the right, or -1; shape of the shard; two fields that are of no use
            here; and the group of ranks over which optimizer sharding shards the first dimension again, or "".
        shape: of the whole parameter.
    """
    if layout is None or not layout[1]:
        return None
    matrix, axes, _, _, _, group, *_ = layout
    tensor_map = tuple((len(matrix) - 1 - axis,) if axis >= 0 else () for axis in axes)
    box = TensorLayout(tuple(matrix), tensor_map).box(rank() % ranks_per_stage(), shape)
    if group:
        rows = (box[0].stop - box[0].start) // get_group_size(group)
        first = box[0].start + get_rank(group) * rows
        box = (slice(first, first + rows), *box[1:])
    return box
