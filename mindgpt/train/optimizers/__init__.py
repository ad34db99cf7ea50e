"""Optimizers, by the `optimizer` section of a configuration.

All count steps in `global_step`, decay only matrices (but for AdamW's `decay_all`), and hold their float32 state as
parameters named `<kind>.<name of the weight>` (AdaFactor's row and column means `<kind>_<name of the weight>`), which
checkpoints contain and which are skipped when only weights are loaded. Master copies of half-precision weights are part
of that state.
"""

from collections.abc import Sequence

from mindspore import Parameter, nn

from mindgpt.config.optimizer_sections import OPTIMIZER_KEYS, OptimizerSection
from mindgpt.train.optimizers.adafactor import AdaFactor, MeanOverShards
from mindgpt.train.optimizers.adamw import AdamW
from mindgpt.train.optimizers.lion import Lion
from mindgpt.train.optimizers.sgd import SGD
from mindgpt.train.optimizers.state import is_decayed, state_bytes
from mindgpt.train.schedules import LearningRateTable

_CLASSES = {"adamw": AdamW, "adafactor": AdaFactor, "lion": Lion, "sgd": SGD}
# Keys that `schedules.learning_rates_of_run` uses.
_SCHEDULE_KEYS = ("relative_step", "warmup_init", "relative_step_factor")
_MOMENTS_BYTES = 8  # of AdamW, a parameter: two float32 moments
_MASTER_BYTES = 4  # of any optimizer, a half-precision weight


def build_optimizer(
    section: OptimizerSection,
    parameters: Sequence[Parameter],
    schedule: LearningRateTable,
    shards: MeanOverShards | None = None,
) -> nn.Optimizer:
    """The optimizer that the section `optimizer` names, for `parameters`.

    shards: the mean over a model-parallel group, if `parameters` will be sharded over one; only AdaFactor needs it.
    """
    settings = {key: getattr(section, key) for key in OPTIMIZER_KEYS[section.type] if key not in _SCHEDULE_KEYS}
    if section.type == "adafactor":
        settings["shards"] = shards
    return _CLASSES[section.type](parameters, schedule, **settings)


def decay_groups(parameters: Sequence[Parameter], weight_decay: float, decay_all: bool = False) -> str:
    """A line for the user: how many values are decayed and how many are not."""
    if weight_decay == 0:
        return f"no weight decay ({sum(p.size for p in parameters):,} values)"
    if decay_all:
        return f"weight decay {weight_decay:g} on all {sum(p.size for p in parameters):,} values"
    decayed = [p.size for p in parameters if is_decayed(p)]
    rest = [p.size for p in parameters if not is_decayed(p)]
    return (
        f"weight decay {weight_decay:g} on {len(decayed)} matrices ({sum(decayed):,} values), "
        f"none on {len(rest)} biases and layer norms ({sum(rest):,} values)"
    )


def state_line(optimizer: nn.Optimizer) -> str:
    """A line for the user: the optimizer, and its state in bytes per parameter."""
    trained = sum(parameter.size for parameter in optimizer.parameters)
    line = f"optimizer: {type(optimizer).__name__}, {state_bytes(optimizer) / trained:.2f} state bytes a parameter"
    if isinstance(optimizer, AdamW):
        return line
    of_masters = _MASTER_BYTES * sum(master.size for master in optimizer.masters.values())
    return f"{line} (AdamW would hold {_MOMENTS_BYTES + of_masters / trained:.2f})"
