"""The dry run: bytes against bytes worked out by hand, collectives and products against a hand count, and refusals."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from mindgpt.config.errors import UserError
from mindgpt.config.hardware import load_hardware
from mindgpt.config.loader import load_config
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.planning import estimates
from mindgpt.planning.dry_run import dry_run, report, shortfall
from mindgpt.planning.formula import flops_of_stage
from mindgpt.runtime.compiled_graph import Collective
from tests import programs

LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, ROWS = 2, 64, 256, 256, 32, 4


@pytest.fixture
def toy(tmp_path):
    """A YAML file; `toy(parallel_config={...}, ...)` writes it with further sections."""

    def write(network=None, **sections):
        settings = {
            "runner_config": {"batch_size": ROWS},
            "lr_schedule": {"learning_rate": 1e-4},
            "parallel": {"parallel_mode": 1},
            "train_dataset": {"input_columns": ["input_ids"]},
            "model": {
                "model_config": {
                    "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 8, "vocab_size": VOCAB,
                    "seq_length": TOKENS, "compute_dtype": "float16", **(network or {}),
                }
            },
            **sections,
        }  # fmt: skip
        file = tmp_path / "toy.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    return write


@pytest.fixture
def plan(repo, monkeypatch):
    monkeypatch.setattr("mindgpt.planning.dry_run.run_simulated", programs.run_simulated)

    def make(file, cards):
        hardware = load_hardware(repo / "configs" / "hardware" / "atlas_800t_a2.yaml")
        return dry_run(load_config(file)[0], cards, hardware)

    return make


def command(repo, *flags):
    return programs.run([sys.executable, "tools/dry_run.py", *flags], repo, timeout=300)


def parameters_of_card(layers, hidden, wide, vocab, tokens, mp):
    """Number of values of GPT-2 on one of mp tensor-parallel ranks: weights of products are sharded, all else whole."""
    by_columns = 3 * (hidden * hidden + hidden) + hidden * wide + wide
    by_rows = hidden * hidden + wide * hidden
    whole = 2 * hidden  # biases of row-parallel products
    return layers * ((by_columns + by_rows) // mp + whole) + (vocab + tokens) * hidden + layer_norms(layers, hidden)


def layer_norms(layers, hidden):
    """Their values: two in a block, and the last."""
    return (2 * layers + 1) * 2 * hidden


def test_memory_of_13b_by_hand(repo):
    """docs/parallel.md shows what the dry run of 13B printed, which takes minutes: weights in half precision sharded by
    data_parallel 2 x model_parallel 4, biases and layer norms by model_parallel or not at all, the table of a prime
    number of rows whole, positions by all 8."""
    h, wide = 5120, 4 * 5120
    matrices = 40 * (4 * h * h + 2 * h * wide)
    vectors, whole = 40 * (3 * h + wide) // 4, 40 * 2 * h + 50257 * h
    values = matrices // 8 + vectors + whole + 2048 * h // 8
    norms = layer_norms(40, h)
    page = (repo / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert f"parameters            3.42 GiB ({2 * values + 4 * norms:,} bytes)" in page
    assert f"optimizer state      20.48 GiB ({12 * values + 8 * norms:,} bytes)" in page  # master, two moments
    assert f"gathered weights      5.88 GiB ({2 * (matrices // 4 + 2048 * h):,} bytes)" in page


@pytest.mark.needs_ascend
def test_a_tensor_parallel_plan_by_hand(toy, plan):
    file = toy(parallel_config={"data_parallel": 2, "model_parallel": 2})
    found = plan(file, 4)
    (card,) = found.stages
    size = 4 * parameters_of_card(LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, mp=2)
    assert (card.parameters, card.gradients, card.optimizer) == (size, size, 2 * size)

    rows = ROWS * TOKENS
    by_purpose = {}
    for (kind, purpose, cards, _), count in card.collectives.items():
        by_purpose[kind, purpose, cards] = by_purpose.get((kind, purpose, cards), 0) + count
    assert by_purpose == {
        ("AllReduce", "activations", (0, 1)): 4 * LAYERS,  # Megatron's 2 forward and 2 backward
        ("AllReduce", "gradients", (0, 2)): 10 * LAYERS,  # 6 weights, 4 biases of column-parallel products
        ("AllReduce", "gradients", (0, 1, 2, 3)): 6 * LAYERS + 4,  # layer norms, whole biases, embeddings
        ("AllReduce", "activations", (0, 1, 2, 3)): 3,  # sums of losses and of weights, and the gradient of the first
        ("AllReduce", "other", (0, 1, 2, 3)): 1,  # the norm of all gradients
    }
    assert card.collectives[Collective("AllReduce", "activations", (0, 1), rows * HIDDEN * 2)] == 4 * LAYERS
    weights = [c.bytes * n for c, n in card.collectives.items() if c.purpose == "gradients"]
    assert sum(weights) == size  # every gradient once

    block = 2 * rows * (4 * HIDDEN**2 + 2 * HIDDEN * WIDE) // 2 + 2 * 2 * rows * TOKENS * HIDDEN // 2
    assert card.flops == 3 * (LAYERS * block + 2 * rows * HIDDEN * VOCAB // 2)  # the head's rows are shared by two

    statistics = 4 * rows * 4  # of layer norm, which the formula leaves out
    assert card.kept_by_block == statistics + estimates.kept_by_block(found.config)


@pytest.mark.needs_ascend
def test_blocks_of_stages_and_recomputation_by_stage(toy, plan):
    """4 blocks as 1 and 3. The first is recomputed but for its scores; of the others one, and of one the attention."""
    file = toy(
        network={"num_layers": 4, "offset": [-1, 1]},
        parallel_config={"pipeline_stage": 2, "micro_batch_num": 2},
        recompute_config={
            "recompute": [1, 1],
            "select_recompute": [0, 2],
            "select_recompute_exclude": {r"attention\.attend\.scores": [1, 0]},
        },
    )
    found = plan(file, 2)
    assert [stage.blocks for stage in found.stages] == [1, 3]
    rows = ROWS * TOKENS
    scores = 2 * rows * TOKENS * HIDDEN
    products = 2 * rows * (4 * HIDDEN**2 + 2 * HIDDEN * WIDE)
    last = 2 * rows * WIDE * HIDDEN  # whose result nothing needs again
    block, again = products + 2 * scores, products - last + 2 * scores
    expected = [2 * (3 * block + again - scores), 2 * (9 * block + again + scores + 3 * 2 * rows * HIDDEN * VOCAB)]
    assert [stage.flops for stage in found.stages] == expected
    assert flops_of_stage(found.config, 1) == expected[1]
    assert flops_of_stage(found.config, 0) - expected[0] == 2 * scores  # operators that are taken out are not counted
    kept = estimates.kept_by_block(found.config) - estimates._dropout_masks_of_block(found.config)
    inputs, attention = rows * HIDDEN * 2, estimates._kept_by_attention_kernel(found.config)
    by_stage = [estimates._with_recompute(found.config, stage)[0] for stage in (0, 1)]
    assert by_stage == [inputs, inputs + 2 * kept - attention]


def adafactor_state(mp):
    """Values: of each matrix one for a row and one for a column, and as many as a vector has."""
    matrices = [(HIDDEN // mp, HIDDEN)] * 4 + [(HIDDEN, WIDE // mp), (WIDE // mp, HIDDEN)]
    vectors = [HIDDEN // mp] * 3 + [WIDE // mp] + [HIDDEN] * 6
    of_block = sum(map(sum, matrices)) + sum(vectors)
    return LAYERS * of_block + (VOCAB + HIDDEN) + (TOKENS + HIDDEN) + 2 * HIDDEN


@pytest.mark.needs_ascend
def test_a_card_holds_adafactors_means_of_its_shards(toy, plan):
    file = toy(parallel_config={"data_parallel": 2, "model_parallel": 2}, optimizer={"type": "adafactor"})
    (card,) = plan(file, 4).stages
    assert card.optimizer == 4 * adafactor_state(mp=2)
    sums = sum(n for c, n in card.collectives.items() if (c.kind, c.cards) == ("AllReduce", (0, 1)))
    matrices, vectors = 6 * LAYERS + 2, 10 * LAYERS + 2
    of_blocks = 4 * LAYERS
    assert sums - of_blocks == 5 * matrices + 2 * vectors  # row and column means; three means, or two, of one number

    (card,) = plan(toy(optimizer={"type": "adafactor"}), 1).stages
    assert card.optimizer == 4 * adafactor_state(mp=1)
    assert card.parameters == card.gradients == 4 * parameters_of_card(LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, mp=1)


@pytest.mark.needs_ascend
def test_what_uers_layer_norm_and_an_untied_head_take(toy, plan):
    found = plan(toy({"layer_norm": "uer", "tie_word_embeddings": False}, parallel_config={"model_parallel": 2}), 2)
    (card,) = found.stages
    size = 4 * (parameters_of_card(LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, mp=2) + VOCAB * HIDDEN)
    assert (card.parameters, card.gradients, card.optimizer) == (size, size, 2 * size)
    statistics = 4 * ROWS * TOKENS * 4  # of layer norm, which the formula leaves out: deviation and divisor
    assert card.kept_by_block == statistics + estimates.kept_by_block(found.config)


@pytest.mark.needs_ascend
def test_products_are_those_of_the_formula(toy, repo):
    """As a user types it: with data parallel alone nothing is computed twice."""
    file = toy(parallel_config={"data_parallel": 4}, model={"model_config": {"seq_length": 8}})
    flags = ["num_layers=2", "hidden_size=64", "num_heads=8", "vocab_size=250", "compute_dtype=float16"]
    options = [f"model.model_config.{flag}" for flag in flags]
    result = command(repo, "--config", file, "--rank_size", 4, "--batch_size", 3, "--options", *options)
    assert result.returncode == 0, result.stderr
    note, legal, *_ = result.stdout.splitlines()
    assert note == "use_parallel is False; this is the plan with True, which 4 cards need"
    assert legal.startswith("legal: 4 cards = data_parallel 4 x model_parallel 1 x pipeline_stage 1")
    size = 4 * parameters_of_card(2, 64, 256, 250, 8, mp=1)
    assert f"({size:,} bytes)" in result.stdout
    tokens = 4 * 3 * 8
    by_formula = tokens * (6 * (2 * 12 * 64 * 64 + 250 * 64) + 12 * 2 * 64 * 8)
    assert f"step: {by_formula:.4g} on all cards" in result.stdout
    assert f"rank 0: {by_formula / 4:.4g}, 1.000 of a card's share" in result.stdout
    assert "estimated, not measured:" in result.stdout
    assert "12 rows of 8 tokens" in result.stdout


@pytest.mark.needs_ascend
def test_plain_data_parallel_sums_every_gradient_once(toy, plan):
    file = toy(parallel={"parallel_mode": 0}, train_dataset={}, micro_batch_interleave_num=2)  # without effect
    found = plan(file, 2)
    (card,) = found.stages
    assert f"{2 * ROWS} rows of {TOKENS} tokens" in "\n".join(report(found))
    one_part = found.config.model_copy(update={"micro_batch_interleave_num": 1})
    assert card.activations == estimates.activations_of_stage(one_part, 0, LAYERS)
    size = 4 * parameters_of_card(LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, mp=1)
    assert card.parameters == size
    assert {c.kind for c in card.collectives} == {"AllReduce"}
    assert sum(c.bytes * n for c, n in card.collectives.items() if c.purpose == "gradients") == size
    assert not [c for c in card.collectives if c.purpose not in ("gradients", "other")]


@pytest.mark.needs_ascend
def test_every_kind_of_stage_is_compiled_and_recomputation_obeyed(toy, plan):
    """7 blocks on 4 stages are 1, 2, 2 and 2. A stage holds 4, 3, 2 and 1 micro-batches, with recomputation the inputs
    and masks of their blocks: 4, 6, 4 and 2, and one block whole. So the second is the fullest of the middle ones."""
    file = toy(
        {"num_layers": 7, "embedding_dropout_rate": 0.0},
        parallel_config={"pipeline_stage": 4, "micro_batch_num": 5},
        recompute_config={"recompute": True},
    )
    found = plan(file, 4)
    first, middle, last = found.stages
    assert [(card.stage, card.rank, card.blocks) for card in found.stages] == [(0, 0, 1), (1, 1, 2), (3, 3, 2)]
    hidden = ROWS * TOKENS * HIDDEN * 2
    masks = (2 * ROWS * TOKENS * HIDDEN + 8 * ROWS * TOKENS * TOKENS) // 8  # a bit for each value and score of 8 heads
    rest = estimates.kept_by_block(found.config) - masks
    held = [(card.activations.kept, card.activations.dropout_masks) for card in (first, middle)]
    assert held == [(n * hidden, n * masks) for n in (4, 6)]
    assert first.activations.working_set == middle.activations.working_set == rest
    values = parameters_of_card(1, HIDDEN, WIDE, 0, 0, mp=1) - 2 * HIDDEN  # one block
    table, positions, norm = VOCAB * HIDDEN, TOKENS * HIDDEN, 2 * HIDDEN
    assert first.parameters == 4 * (values + table + positions)
    assert middle.parameters == 4 * 2 * values
    assert last.parameters == 4 * (2 * values + norm + table)
    assert middle.gradients == middle.parameters
    sent = {c.cards: n for c, n in middle.collectives.items() if c.kind == "Send" and c.bytes == hidden}
    assert sent == {(2,): 5, (0,): 5}  # each micro-batch forward, its gradient back
    block = 2 * ROWS * TOKENS * (4 * HIDDEN**2 + 2 * HIDDEN * WIDE) + 4 * ROWS * TOKENS * TOKENS * HIDDEN
    last_product = 2 * ROWS * TOKENS * WIDE * HIDDEN  # whose result nothing in the backward pass needs
    assert middle.flops == 5 * 2 * (4 * block - last_product)  # forward, again, and twice that backward


@pytest.mark.needs_ascend
def test_what_does_not_fit_ends_with_status_3_and_what_to_change(toy, repo, plan):
    file = toy(parallel_config={"data_parallel": 2, "model_parallel": 2}, recompute_config={"recompute": True})
    options = ["--options", "context.max_device_memory=0.001GB"]
    result = command(repo, "--config", file, "--rank_size", 4, *options)
    assert result.returncode == 3, result.stderr
    weights = 4 * 4 * parameters_of_card(LAYERS, HIDDEN, WIDE, VOCAB, TOKENS, mp=2)  # they, gradients, two states
    found = plan(file, 4)
    activations = estimates.activations_of_stage(found.config, 0, LAYERS).total
    assert f"{(weights + activations) / 2**20:.2f} MiB ({weights + activations:,} bytes)" in result.stdout
    assert "DOES NOT FIT 0.001 GiB" in result.stdout
    (message,) = result.stderr.splitlines()
    assert message.startswith("error: the layout is legal, but a card would hold ")
    of_head = found.stages[0].activations.logits
    assert f"logits and loss {of_head / 2**20:.2f} MiB" in message
    assert "parallel_config.optimizer_shard: True" in message
    assert "recompute_config" not in message  # which it has already

    assert shortfall(found) is None
    config = found.config.model_copy(deep=True, update={"recompute_config": RecomputeSection()})
    card = replace(found.stages[0], activations=estimates.Activations(65 * 2**30, 0, 0, 0, 0))
    message = shortfall(replace(found, config=config, stages=[found.stages[0], card]))
    for change in ("batch_size below 4", "recompute: True", "use_flash_attention: True", "use_seq_parallel: True"):
        assert change in message


def test_refusals_are_one_clear_message(toy, repo, tmp_path):
    file = toy(parallel_config={"data_parallel": 2, "model_parallel": 2})
    wrong = tmp_path / "hardware.yaml"
    wrong.write_text("name: x\nmemory_gib: much\n")
    for flags, message in [
        (["--config", file], "--rank_size N is required"),
        (["--config", file, "--rank_size", "four"], "--rank_size must be a whole number from 1, not 'four'"),
        (["--config", tmp_path / "no.yaml", "--rank_size", 4], "no.yaml: there is no such file"),
        (["--config", file, "--rank_size", 6], "= 4 cards, but there are 6. On 6 cards these work:"),
        (
            ["--config", file, "--rank_size", 4, "--options", "parallel.parallel_mode=0"],
            "To shard the model over the cards, set parallel.parallel_mode: 1 (semi_auto_parallel)",
        ),
        (["--config", file, "--rank_size", 4, "--device_target", "CPU"], "the dry run is for Ascend"),
        (["--config", file, "--rank_size", 4, "--run_mode", "predict"], "the dry run is of a training step"),
        (["--config", file, "--rank_size", 4, "--hardware", wrong], "hardware.yaml:2: memory_gib: must be a number"),
        (["--config", file, "--rank_size", 4, "--nonsense", 1], "unknown flag --nonsense"),
    ]:
        result = command(repo, *flags)
        assert (result.returncode, result.stdout) == (2, ""), flags
        assert result.stderr.startswith("error: "), result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.needs_ascend
def test_what_mindspore_refuses_is_told_in_its_words(toy, repo, monkeypatch):
    """No layout is known that passes our checks and that MindSpore refuses, so the compiling process is replaced."""

    def refuse(command, rank, size, cwd, **_):
        (cwd / "facts.json").write_text(json.dumps({"refused": "For primitive[Reshape], the shapes differ."}))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr("mindgpt.planning.dry_run.run_simulated", refuse)
    config, _ = load_config(toy({}, parallel_config={"data_parallel": 2}))
    with pytest.raises(UserError, match=r"^MindSpore refuses the plan of rank 0 of 2: For primitive\[Reshape\], the"):
        dry_run(config, 2, load_hardware(repo / "configs" / "hardware" / "atlas_800t_a2.yaml"))
