"""Layouts of a toy model, data_parallel x model_parallel x pipeline_stage of 1, 2 and 4 with everything that goes with
them: each is refused by our own check for a reason written down here, or compiles and cuts what it should.

Too many to compile all. CI compiles cases in which every pair of settings occurs; those marked slow, every triple.
"""

import itertools
import re

import pytest

from mindgpt.config.layout import semi_auto_problems
from mindgpt.config.run_config import RunConfig
from tests.tasks.toy_layouts import (
    FACTORS,
    cards_of,
    compile_as_rank,
    covering,
    flops_of_step,
    holders_of,
    is_tied,
    logits_of,
    masks_of_step,
    masters_of,
    part_of_weights,
    settings_of,
    stages_of,
    values_of,
    with_more_settings,
)

GRID = ("dp", "mp", "pp")
DEFAULTS = {name: values[0] for name, values in FACTORS.items()} | {"weights": "float32", "vocabulary": "divisible"}

# What must be refused, and in which words: (of which network and layout, words of the message). Nothing else may be.
REASONS = [
    (lambda case, network: network["num_heads"] % case["mp"], "does not divide num_heads"),  # sharded by heads
    (lambda case, network: network["hidden_size"] % case["mp"], "does not divide hidden_size"),
    (lambda case, network: case["pp"] > network["num_layers"], "layers there are"),  # a stage without a block
    (  # every card takes an equal part of a row's tokens
        lambda case, network: case["use_seq_parallel"] and network["seq_length"] % case["mp"],
        "does not divide seq_length",
    ),
    # With stages, micro-batches are what gradients are accumulated over.
    (lambda case, network: case["pp"] > 1 and case["accumulate"] > 1, "runner_config.gradient_accumulation_steps"),
    (  # MindSpore 2.10 adds a whole and a sharded tensor there, and fails
        lambda case, network: (
            case["recompute"] == "sliced"
            and ((case["accumulate"] > 1 and case["pp"] == 1) or case["interleave"] > 1)
            and case["mp"] > 1
            and not case["use_seq_parallel"]
        ),
        "recompute_slice_activation",
    ),
    (  # nor does it find the forward pass of what it should keep of each part
        lambda case, network: (
            case["recompute"] == "sliced" and case["interleave"] > 1 and case["mp"] > 1 and case["pp"] > 1
        ),
        "mp_comm_recompute",
    ),
    (  # masks are kept, which MindSpore 2.10 cannot do there
        lambda case, network: case["recompute"] in ("full", "sliced") and case["interleave"] > 1 and case["pp"] > 1,
        "dropout masks",
    ),
]
NETWORKS = [
    {"num_heads": 4, "num_layers": 4, "hidden_size": 256, "seq_length": 32},
    {"num_heads": 2, "num_layers": 2, "hidden_size": 256, "seq_length": 32},
    {"num_heads": 3, "num_layers": 3, "hidden_size": 258, "seq_length": 30},
]


def reasons(case, network=NETWORKS[0]):
    return [words for is_wrong, words in REASONS if is_wrong(case, network)]


def short(case):
    """A name for a case: its grid, and what differs from the defaults."""
    rest = [f"{name} {value}" for name, value in case.items() if name not in GRID and value != DEFAULTS[name]]
    return ", ".join(["x".join(str(case[name]) for name in GRID), *rest])


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_combination_is_refused_for_these_reasons_and_no_other(network):
    free = [name for name in FACTORS if name not in ("flash", "vocab_emb_dp", "network")]  # no check depends on them
    refused = 0
    for values in itertools.product(*(FACTORS[name] for name in free)):
        case = DEFAULTS | dict(zip(free, values, strict=True))
        config = RunConfig.model_validate(settings_of(case, **network))
        messages = list(semi_auto_problems(config, cards_of(case)))
        expected = reasons(case, network)
        text = "\n".join(messages)
        assert [words for _, words in REASONS if words in text] == expected, (case, text)
        assert bool(messages) == bool(expected)
        refused += bool(messages)
        for found in re.findall(r"data_parallel (\d) x model_parallel (\d) x pipeline_stage (\d)", text):
            better = case | dict(zip(GRID, map(int, found), strict=True))
            assert cards_of(better) == cards_of(case)
            assert set(reasons(better, network)) <= {
                "runner_config.gradient_accumulation_steps",
                "recompute_slice_activation",
                "mp_comm_recompute",
                "dropout masks",
            }  # which no grid puts right
    assert refused


# Of 10 seeds the first whose cases have the fewest stages to compile.
_PAIRS = covering(2, lambda case: not reasons(case), cost=lambda case: len(stages_of(case)) ** 0.5, seed=9)
_TRIPLES = [case for case in covering(3, lambda case: not reasons(case)) if case not in _PAIRS]
PAIRS, TRIPLES = with_more_settings(_PAIRS), with_more_settings(_TRIPLES)


@pytest.mark.needs_ascend
@pytest.mark.parametrize(
    "case",
    [*(pytest.param(case, id=short(case)) for case in PAIRS),
     *(pytest.param(case, id=short(case), marks=pytest.mark.slow) for case in TRIPLES)],
)  # fmt: skip
def test_compiles_and_shards_as_worked_out_by_hand(case, tmp_path):
    cards, stages = cards_of(case), case["pp"]
    for stage in stages_of(case):
        rank = stage * cards // stages + (cards // stages - 1 if stage % 2 else 0)  # its last card, or its first
        facts = compile_as_rank(tmp_path, settings_of(case), rank, cards)
        parts = part_of_weights(case, stage)
        trained = [name for name in parts if is_trained(case, name)]
        assert {name: size for name, size in values_of(facts["held"]).items() if name in parts} == parts
        assert not [name for name in facts["held"] if name not in parts and not is_lent(case, stage, name)]
        assert values_of(facts["shapes"]) == {name: parts[name] for name in trained}
        assert values_of(facts["masters"]) == {name: parts[name] for name in masters_of(case, stage)}
        assert facts["updates"] == len(trained)
        assert bool(facts["flash"]) == case["flash"]
        assert len(facts["masks"]) == masks_of_step(case, stage), facts["masks"]  # not drawn again by recomputation
        if case["task"] != "LoRA":
            least, recomputed = flops_of_step(case, stage)
            assert least <= facts["flops"] <= least + recomputed
            assert (facts["flops"] > least) == (recomputed > 0)
        if case["task"] != "classification" and stage == stages - 1:
            assert facts["logits"] == logits_of(case)
        if cards > 1:
            holders = holders_of(case, stage)
            assert facts["holders"] == {name: holders[name] for name in trained}


def is_trained(case, name):
    return case["task"] != "LoRA" or "lora" in name


def is_lent(case, stage, name):
    """The token embedding is the head on the last stage."""
    return stage == case["pp"] - 1 > 0 and is_tied(case) and "word_embedding" in name
