"""Common parts of the optimizers: which parameters are decayed, and their state."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.skip_rules import MASTER
from mindgpt.config.strategy import Strategy
from mindgpt.runtime.collectives import strategy


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


def masters_of(parameters: Sequence[Parameter]) -> ParameterTuple:
    """For each parameter in half precision a float32 copy, sharded like it, and named `master.<its name>`; for each in
    float32 the parameter itself."""
    return ParameterTuple([p if p.dtype == ms.float32 else _master_of(p) for p in parameters])


def _master_of(parameter: Parameter) -> Parameter:
    sharded = strategy() is Strategy.SEMI_AUTO
    if parameter.has_init and not sharded:
        parameter.init_data()
    master = parameter.clone("same" if parameter.has_init else "zeros")
    master.set_dtype(ms.float32)
    master.name = f"{MASTER}{parameter.name}"
    master.requires_grad = False
    if parameter.has_init:  # the same values as the weight's, not rounded; a clone would share the lazy tensor with it
        master.init_mode = Tensor(shape=parameter.shape, dtype=ms.float32, init=parameter.init_mode.init)
    else:
        master.set_data(Tensor(parameter, ms.float32))
    return master


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
