"""Which entries of a checkpoint are no weights."""

import re

# What a training checkpoint of MindSpore or MindFormers holds besides the weights: (rule, the names it skips).
SKIP_RULES = (
    ("optimizer state", re.compile(r"(adam_[mv]|adafactor_(row|col|v|m)|lion_m|sgd_v|accu_grads)\.")),
    # AdaFactor, Came, Momentum, SGD and others of MindSpore and MindFormers.
    ("optimizer state", re.compile(r"(moments|moment[12]|accum|stat|exp_avg)\.|exp_avg_(sq|insta)_")),
    ("optimizer state", re.compile(r"(beta[12]_power|momentum|afactor_step)$")),
    ("training state", re.compile(r"(dropout_key|training_state)$")),
    ("loss scale", re.compile(r"(loss_scale|scale_sense|current_iterator_step|last_overflow_iterator_step)$")),
    ("layout", re.compile(r"norm_shares$")),
    ("training counter", re.compile(r"(epoch_num|step_num|global_step|learning_rate(_group_\d+)?)$")),
    ("key-value cache", re.compile(r"backbone\.blocks\.\d+\.(attention\.)?(key_past|value_past)$")),
    ("causal-mask buffer", re.compile(r"backbone\.blocks\.\d+\.attention\.(beta|masked_beta)$")),
)


def skip_rule(name: str) -> str | None:
    """The rule by which a checkpoint's entry `name` is no weight, or None if it is one."""
    return next((rule for rule, pattern in SKIP_RULES if pattern.match(name)), None)
