"""Optimizers: which one a configuration asks for, and what it costs.

All of them count a step in `global_step`, decay matrices only, and hold float32 state as parameters of their own, named
`<kind>.<name of the weight>`, so that it goes into checkpoints and is left out where only weights are loaded.
"""

from collections.abc import Sequence

from mindspore import Parameter, nn

from mindgpt.config.optimizer_sections import OPTIMIZER_KEYS, OptimizerSection
from mindgpt.train.optimizers.adafactor import AdaFactor
from mindgpt.train.optimizers.adamw import AdamW
from mindgpt.train.optimizers.lion import Lion
from mindgpt.train.optimizers.sgd import SGD
from mindgpt.train.optimizers.state import is_decayed, state_bytes
from mindgpt.train.schedules import LearningRateTable

_CLASSES = {"adamw": AdamW, "adafactor": AdaFactor, "lion": Lion, "sgd": SGD}
_IN_THE_RATES = ("relative_step", "warmup_init")  # keys that `schedules.rates_of_run` obeys
_ADAMW_BYTES = 8  # a parameter: two float32 moments


def build_optimizer(
    section: OptimizerSection, parameters: Sequence[Parameter], rates: LearningRateTable
) -> nn.Optimizer:
    """The optimizer that the section `optimizer` names, for `parameters`."""
    settings = {key: getattr(section, key) for key in OPTIMIZER_KEYS[section.type] if key not in _IN_THE_RATES}
    return _CLASSES[section.type](parameters, rates, **settings)


def decay_groups(parameters: Sequence[Parameter], weight_decay: float) -> str:
    """One line for the person: how many values are decayed and how many are not."""
    if weight_decay == 0:
        return f"no weight decay ({sum(p.size for p in parameters):,} values)"
    decayed = [p.size for p in parameters if is_decayed(p)]
    rest = [p.size for p in parameters if not is_decayed(p)]
    return (
        f"weight decay {weight_decay:g} on {len(decayed)} matrices ({sum(decayed):,} values), "
        f"none on {len(rest)} biases and layer norms ({sum(rest):,} values)"
    )


def state_line(optimizer: nn.Optimizer) -> str:
    """One line for the person: the optimizer, and the memory that it holds for each value it trains."""
    trained = sum(parameter.size for parameter in optimizer.parameters)
    line = f"optimizer: {type(optimizer).__name__}, {state_bytes(optimizer) / trained:.2f} state bytes a parameter"
    return line if isinstance(optimizer, AdamW) else f"{line} (AdamW would hold {_ADAMW_BYTES:.2f})"
