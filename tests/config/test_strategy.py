"""How a run is spread is one value, and a resolved configuration does not change."""

import pytest
from pydantic import ValidationError

from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy, strategy_of

SEMI_AUTO = {"use_parallel": True, "parallel": {"parallel_mode": 1}}


def config(run_mode="train", **settings):
    return RunConfig.model_validate({"run_mode": run_mode, "lr_schedule": {"learning_rate": 1e-4}, **settings})


@pytest.mark.parametrize(
    ("run_mode", "settings", "target", "processes", "expected"),
    [
        ("train", SEMI_AUTO, "Ascend", 1, Strategy.SINGLE),
        ("train", {}, "Ascend", 8, Strategy.DATA_PARALLEL),
        ("train", {"use_parallel": True}, "Ascend", 8, Strategy.DATA_PARALLEL),
        ("train", {**SEMI_AUTO, "use_parallel": False}, "Ascend", 8, Strategy.DATA_PARALLEL),
        ("train", SEMI_AUTO, "CPU", 8, Strategy.DATA_PARALLEL),
        ("train", SEMI_AUTO, "Ascend", 8, Strategy.SEMI_AUTO),
        ("finetune", SEMI_AUTO, "Ascend", 8, Strategy.SEMI_AUTO),
        ("eval", {**SEMI_AUTO, "parallel_config": {"data_parallel": 8}}, "Ascend", 8, Strategy.DATA_PARALLEL),
        ("eval", {**SEMI_AUTO, "parallel_config": {"model_parallel": 8}}, "Ascend", 8, Strategy.TENSOR_PARALLEL),
        ("predict", {**SEMI_AUTO, "parallel_config": {"pipeline_stage": 2}}, "Ascend", 8, Strategy.TENSOR_PARALLEL),
        ("predict", {**SEMI_AUTO, "parallel_config": {"model_parallel": 8}}, "CPU", 8, Strategy.DATA_PARALLEL),
    ],
)
def test_the_strategy_of_a_run(run_mode, settings, target, processes, expected):
    assert strategy_of(config(run_mode, **settings), target, processes) is expected


def test_a_configuration_is_frozen_and_a_change_is_a_copy():
    first = config()
    for section, key in ((first, "seed"), (first.context, "device_target"), (first.callbacks[0], "per_print_times")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)
    second = first.replaced({"model.config.label_names": ["no", "yes"], "seed": 3})
    assert (second.model.config.label_names, second.seed) == (["no", "yes"], 3)
    assert (first.model.config.label_names, first.seed) == (None, 0)
    assert second.replaced({"model.config.label_names": None, "seed": 0}) == first
