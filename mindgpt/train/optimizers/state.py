"""What all optimizers have in common: which parameters are decayed, and the state they hold for them."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, nn
from mindspore.common.initializer import initializer


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: to matrices and embeddings, not to biases and layer norms."""
    return len(parameter.shape) > 1


def zeros_like(parameters: Sequence[Parameter], prefix: str) -> ParameterTuple:
    """A float32 zero for each parameter, cut as the parameter is cut, named as MindFormers names it."""
    states = []
    for parameter in parameters:
        state = parameter.clone("zeros")
        state.set_dtype(ms.float32)
        state.name = f"{prefix}.{parameter.name}"
        states.append(state)
    return ParameterTuple(states)


def zeros_over(parameters: Sequence[Parameter], axis: int, prefix: str) -> ParameterTuple:
    """A float32 zero for each parameter, of its shape without `axis`: what a mean over that axis needs."""
    states = []
    for parameter in parameters:
        shape = list(parameter.shape)
        del shape[axis]
        zeros = initializer("zeros", shape, ms.float32)
        states.append(Parameter(zeros, name=f"{prefix}.{parameter.name}", requires_grad=False))
    return ParameterTuple(states)


def state_bytes(optimizer: nn.Optimizer) -> int:
    """The size of all that the optimizer holds besides the weights, its counter of steps included."""
    weights = {parameter.name for parameter in optimizer.parameters}
    return sum(p.size * p.itemsize for p in optimizer.get_parameters() if p.name not in weights)
