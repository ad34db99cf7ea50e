"""Checks of parallel layouts: what does not fit is named with the numbers, and with layouts that do."""

import math

import pytest

from mindgpt.config.layout import (
    CardGrid,
    cuts_vocabulary,
    layout_problems,
    rows_of_step,
    tensor_parallel_problems,
    working_grids,
)
from mindgpt.config.run import RunConfig


def config(model=None, runner=None, **layout):
    network = {"num_layers": 8, "num_heads": 12, "hidden_size": 768, "vocab_size": 50257, **(model or {})}
    return RunConfig.model_validate(
        {
            "lr_schedule": {"learning_rate": 1e-4},
            "model": {"model_config": network},
            "runner_config": {"batch_size": 2, **(runner or {})},
            "parallel_config": layout,
        }
    )


def problems(cards, **keywords):
    return list(layout_problems(config(**keywords), cards))


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


def test_every_working_grid_works_and_is_on_all_cards():
    asked = config(data_parallel=1, model_parallel=3, pipeline_stage=1)
    grids = working_grids(asked, 24)
    assert len(grids) == len(set(grids))
    for grid in grids:
        assert math.prod(grid) == 24
        layout = dict(zip(CardGrid._fields, grid, strict=True))
        assert problems(24, **layout, micro_batch_num=64) == []
    # 12 heads and 8 layers: model_parallel in 1, 2, 3, 4, 6, 12; pipeline_stage up to 8; both dividing 24.
    assert len(grids) == sum(1 for mp in (1, 2, 3, 4, 6, 12) for pp in range(1, 9) if (24 // mp) % pp == 0)
    assert grids[0].model_parallel == 3


def test_rows_and_vocabulary():
    assert rows_of_step(config(data_parallel=4, runner={"gradient_accumulation_steps": 3})) == 24
    assert rows_of_step(config(data_parallel=2, pipeline_stage=2, micro_batch_num=8)) == 32
    interleaved = config(data_parallel=2, pipeline_stage=2, micro_batch_num=8)
    interleaved.micro_batch_interleave_num = 2
    assert rows_of_step(interleaved) == 64
    assert not cuts_vocabulary(config(model_parallel=4, vocab_emb_dp=False))  # 50257 is a prime
    assert cuts_vocabulary(config(model_parallel=4, vocab_emb_dp=False, model={"vocab_size": 50304}))
    assert not cuts_vocabulary(config(model_parallel=4, model={"vocab_size": 50304}))


def test_evaluation_and_prediction_take_tensor_parallelism_alone():
    def problems(cards, **keywords):
        return list(tensor_parallel_problems(config(**keywords), cards))

    assert problems(4, model_parallel=4) == []
    (message,) = problems(8, model_parallel=4, data_parallel=2)
    assert "to evaluate or predict on 8 cards, set model_parallel to 8" in message
    (message,) = problems(8, model_parallel=8)
    assert "model_parallel 8 does not divide num_heads 12" in message
    assert message.endswith("Numbers of cards that work: 1, 2, 3, 4, 6")


def test_adafactor_cannot_be_cut():
    asked = config(model_parallel=2)
    asked.optimizer.type = "adafactor"
    assert any("adafactor cannot be cut" in message for message in layout_problems(asked, 2))
