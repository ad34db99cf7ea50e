"""Common parts of the optimizers: which parameters are decayed, and their state."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, nn
from mindspore.common.initializer import initializer


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: to matrices and embeddings, not to biases and layer norms."""
    return len(parameter.shape) > 1


def zeros_like(parameters: Sequence[Parameter], prefix: str) -> ParameterTuple:
    """Float32 zeros of the shape of each parameter, sharded like it, and named as in MindFormers."""
    states = []
    for parameter in parameters:
        state = parameter.clone("zeros")
        state.set_dtype(ms.float32)
        state.name = f"{prefix}.{parameter.name}"
        states.append(state)
    return ParameterTuple(states)


def zeros_over(parameters: Sequence[Parameter], axis: int, prefix: str) -> ParameterTuple:
    """Float32 zeros of the shape of each parameter without `axis`, for means over that axis.

    Under semi-automatic parallelism MindSpore shards what is named `exp_avg_sq_row_<weight>` like the weight's rows,
    and `exp_avg_sq_col_<weight>` like its columns, strategy files included. It has no other way to shard them.
    """
    states = []
    for parameter in parameters:
        shape = list(parameter.shape)
        del shape[axis]
        zeros = initializer("zeros", shape, ms.float32)
        states.append(Parameter(zeros, name=f"{prefix}_{parameter.name}", requires_grad=False))
    return ParameterTuple(states)


def state_bytes(optimizer: nn.Optimizer) -> int:
    """Bytes of the optimizer's state, step counter included, without the weights."""
    weights = {parameter.name for parameter in optimizer.parameters}
    return sum(p.size * p.itemsize for p in optimizer.get_parameters() if p.name not in weights)
