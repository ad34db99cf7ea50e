"""Which entries of a checkpoint are not weights."""

import re

MASTER = "master."  # + the name of a half-precision weight: its float32 master copy, part of the optimizer's state

# What training checkpoints of MindSpore, MindFormers and TensorFlow hold besides weights: (rule, the names it skips).
SKIP_RULES = (
    ("optimizer state", re.compile(r"(adam_[mv]|adafactor_(row|col|v|m)|lion_m|sgd_v|master|accu_grads|grad_sum)\.")),
    # AdaFactor, Came, Momentum, SGD and others of MindSpore and MindFormers.
    ("optimizer state", re.compile(r"(moments|moment[12]|accum|stat|(max_)?exp_avg(_sq)?)\.|exp_avg_(sq|insta)_")),
    ("optimizer state", re.compile(r"(mean_square|vhat|lamb_[mv]|pma_weight)\.")),
    ("optimizer state", re.compile(r"(beta[12]_power|momentum|afactor_step|state_step|accumulation_step)$")),
    # TensorFlow's slots: of GPT2_ML's AdaFactor, of BERT's AdamWeightDecayOptimizer and LAMB, of tf.train.
    ("optimizer state", re.compile(r".+/(adafactor_(v|vr|vc|m)|(adam|lamb)_[mv]|Adam(_1)?|Momentum|RMSProp(_1)?)$")),
    ("training state", re.compile(r"(dropout_key|training_state)$")),
    ("loss scale", re.compile(r"(loss_scale|scale_sense|current_iterator_step|last_overflow_iterator_step)$")),
    ("loss scale", re.compile(r"(scale_value|growth_tracker|scale_window_(up|down)_count)$")),
    ("layout", re.compile(r"norm_shares$")),
    ("training counter", re.compile(r"(epoch_num|step_num|global_step|(learning_rate|weight_decay)(_group_\d+)?)$")),
    # Written by CheckpointMonitor of MindFormers 1.3 to 1.5 and save_checkpoint of MindSpore.
    ("training counter", re.compile(r"(global_batch_size|dataset_size|steps_per_epoch|consumed_samples)$")),
    ("training counter", re.compile(r"(cur_epoch_num|cur_step_num|batch_num|random_seed|remove_redundancy)$")),
    ("training counter", re.compile(r"(fused_step|cur_rank|__exception_save__|graceful_(exit|init))$")),
    ("key-value cache", re.compile(r"backbone\.blocks\.\d+\.(attention\.)?(key_past|value_past)$")),
    ("causal-mask buffer", re.compile(r"backbone\.blocks\.\d+\.attention\.(beta|masked_beta)$")),
)


def skip_rule(name: str) -> str | None:
    """The rule that skips the entry `name` of a checkpoint, or None if the entry is a weight."""
    return next((rule for rule, pattern in SKIP_RULES if pattern.match(name)), None)
