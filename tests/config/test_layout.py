"""Checks of parallel layouts: what does not fit is named with the numbers, and with layouts that do."""

import math

import pytest

from mindgpt.config.layout import (
    DeviceGrid,
    data_parallel_problems,
    divides_layers,
    layout_problems,
    rows_of_step,
    semi_auto_problems,
    shards_vocabulary,
    tensor_parallel_problems,
    working_grids,
)
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy


def config(model=None, runner=None, mode=1, **layout):
    network = {"num_layers": 8, "num_heads": 12, "hidden_size": 768, "vocab_size": 50257, **(model or {})}
    return RunConfig.model_validate(
        {
            "lr_schedule": {"learning_rate": 1e-4},
            "model": {"model_config": network},
            "runner_config": {"batch_size": 2, **(runner or {})},
            "use_parallel": True,
            "parallel": {"parallel_mode": mode},
            "parallel_config": layout,
        }
    )


def problems(cards, **keywords):
    return list(semi_auto_problems(config(**keywords), cards))


@pytest.mark.parametrize(
    "layout",
    [
        {"data_parallel": 8},
        {"data_parallel": 2, "model_parallel": 4},
        {"data_parallel": 1, "model_parallel": 2, "pipeline_stage": 4, "micro_batch_num": 4},
        {"data_parallel": 2, "model_parallel": 4, "use_seq_parallel": True},
    ],
)
def test_layouts_that_work(layout):
    assert problems(8, **layout) == []


def test_the_number_of_cards():
    (message,) = problems(8, data_parallel=2, model_parallel=2)
    assert "data_parallel 2 x model_parallel 2 x pipeline_stage 1 = 4 cards, but there are 8" in message
    assert "On 8 cards these work: data_parallel 4 x model_parallel 2 x pipeline_stage 1; or " in message


def test_heads_that_are_not_divisible():
    (message,) = problems(8, data_parallel=1, model_parallel=8)
    assert "model_parallel 8 does not divide num_heads 12" in message
    assert "data_parallel 2 x model_parallel 4 x pipeline_stage 1" in message


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"pipeline_stage": 4, "micro_batch_num": 2}, "2 micro-batches cannot keep 4 pipeline stages busy"),
        ({"pipeline_stage": 4, "model": {"num_layers": 3}, "micro_batch_num": 4}, "is more than the 3 layers there"),
        (
            {"pipeline_stage": 4, "micro_batch_num": 4, "runner": {"gradient_accumulation_steps": 3}},
            "set it to 1 and micro_batch_num to 12",
        ),
        (
            {"model_parallel": 4, "use_seq_parallel": True, "model": {"seq_length": 1022}},
            "model_parallel 4 does not divide seq_length 1022",
        ),
    ],
)
def test_what_does_not_work(keywords, words):
    assert any(words in message for message in problems(4, **keywords))


def test_every_working_grid_works_and_uses_all_devices():
    asked = config(data_parallel=1, model_parallel=3, pipeline_stage=1)
    grids = working_grids(asked, 24)
    assert len(grids) == len(set(grids))
    for grid in grids:
        assert math.prod(grid) == 24
        layout = dict(zip(DeviceGrid._fields, grid, strict=True))
        assert problems(24, **layout, micro_batch_num=64) == []
    # 12 heads and 8 layers: model_parallel in 1, 2, 3, 4, 6, 12; pipeline_stage up to 8; both dividing 24.
    assert len(grids) == sum(1 for mp in (1, 2, 3, 4, 6, 12) for pp in range(1, 9) if (24 // mp) % pp == 0)
    assert grids[0].model_parallel == 3


def test_rows_and_vocabulary():
    assert rows_of_step(config(data_parallel=4, runner={"gradient_accumulation_steps": 3})) == 24
    assert rows_of_step(config(data_parallel=2, pipeline_stage=2, micro_batch_num=8)) == 32
    interleaved = {"micro_batch_interleave_num": 2}
    assert rows_of_step(config(data_parallel=2, pipeline_stage=2, micro_batch_num=8).replaced(interleaved)) == 64
    assert rows_of_step(config(data_parallel=2, mode=0).replaced(interleaved)) == 4  # without effect
    assert not shards_vocabulary(config(model_parallel=4, vocab_emb_dp=False))  # 50257 is a prime
    assert shards_vocabulary(config(model_parallel=4, vocab_emb_dp=False, model={"vocab_size": 50304}))
    assert not shards_vocabulary(config(model_parallel=4, model={"vocab_size": 50304}))


def test_evaluation_and_prediction_take_tensor_parallelism_alone():
    def problems(cards, **keywords):
        return list(tensor_parallel_problems(config(**keywords), cards))

    assert problems(4, model_parallel=4) == []
    (message,) = problems(4, model_parallel=2, data_parallel=2)
    assert "to evaluate or predict on 4 cards, set model_parallel to 4" in message
    for asked in ({"model_parallel": 8}, {"model_parallel": 4, "data_parallel": 2}):  # what helps for neither
        (message,) = problems(8, **asked)
        assert "model_parallel 8 does not divide num_heads 12" in message
        assert message.endswith("Numbers of cards that work: 1, 2, 3, 4, 6")
    of_52b = {"num_heads": 32, "hidden_size": 8192, "num_layers": 64}
    (message,) = problems(64, model_parallel=8, pipeline_stage=8, model=of_52b)
    assert "model_parallel 64 does not divide num_heads 32" in message
    assert message.endswith("Numbers of cards that work: 1, 2, 4, 8, 16, 32")


def test_layers_that_can_be_sharded_over_eight_devices():
    """Heads of small, large, xl, and 13B."""
    by_heads = {
        heads: divides_layers(config(model={"num_heads": heads, "hidden_size": 64 * heads}), 8)
        for heads in (12, 20, 25, 40)
    }
    assert by_heads == {12: False, 20: False, 25: False, 40: True}


def test_a_mode_that_does_not_shard_is_refused_with_the_one_that_does():
    def problems(processes, target="Ascend", **keywords):
        return list(data_parallel_problems(config(**keywords), processes, target))

    assert problems(8, mode=0) == problems(8, mode=0, data_parallel=8) == []
    (message,) = problems(8, mode=0, model_parallel=8)
    assert "with parallel_mode data_parallel several processes can only be data parallel" in message
    assert "asks for parallel_config.model_parallel" in message
    assert message.endswith("To shard the model over the cards, set parallel.parallel_mode: 1 (semi_auto_parallel)")
    (message,) = problems(8, mode=0, data_parallel=4)
    assert message.endswith("Set data_parallel to 8, or start 4")
    (message,) = problems(2, mode="stand_alone")
    assert "Set it to data_parallel, or start one" in message


def test_adafactor_takes_its_means_over_model_parallel_ranks_alone():
    def problems_of(devices, **layout):
        return list(semi_auto_problems(config(**layout).replaced({"optimizer.type": "adafactor"}), devices))

    assert problems_of(4, data_parallel=2, model_parallel=2) == []
    assert problems_of(4, model_parallel=2, pipeline_stage=2, micro_batch_num=2) == []
    (message,) = problems_of(4, data_parallel=2, model_parallel=2, optimizer_shard=True)
    assert "adafactor does not take its row and column means over data-parallel ranks" in message
    assert "optimizer_shard to False" in message


def test_rows_of_which_flash_attention_cannot_drop_weights():
    def found(target="Ascend", **network):
        given = config(model={"use_flash_attention": True, "seq_length": 127} | network, mode=0)
        return list(layout_problems(given, target, Strategy.SINGLE, 1))

    (message,) = found()
    assert (
        "use_flash_attention: with attention_dropout_rate 0.1 it needs a seq_length that is a multiple of 8" in message
    )
    assert found(seq_length=128) == found(attention_dropout_rate=0.0) == found(target="CPU") == []
    assert found(use_flash_attention=False) == []
