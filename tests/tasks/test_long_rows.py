"""Flash attention of long rows in the graph compiled for Ascend: no tensor of seq_length x seq_length."""

import re
import sys

import pytest
import yaml

from tests import programs
from tests.tasks.toy_layouts import FACTORS, compile_as_rank, settings_of

pytestmark = pytest.mark.needs_ascend

LAYERS, HIDDEN, HEADS, VOCAB, LONG = 2, 256, 4, 512, 32768
_TERM = r"^  (\w[\w ]+?) +[\d.]+ \wiB \(([\d,]+) bytes\)"

CASE = {name: values[0] for name, values in FACTORS.items()} | {
    "flash": True,
    "weights": "float32",
    "vocabulary": "divisible",
}


@pytest.mark.parametrize("task", ["language model", "classification"])
def test_only_a_classifier_has_a_mask_as_large_as_its_rows(tmp_path, task):
    settings = settings_of(CASE | {"task": task}, seq_length=4096, attention_dropout_rate=0.0)
    facts = compile_as_rank(tmp_path, settings, 0, 1)
    assert facts["flash"] == 2
    assert (facts["squares"] == 0) == (task == "language model")


@pytest.mark.parametrize("flash", [True, False])
def test_packed_documents_have_masks_and_positions_of_their_own_on_each_rank(tmp_path, flash):
    settings = settings_of(
        CASE | {"flash": flash, "dp": 2, "mp": 2, "pp": 1},
        seq_length=136, reset_attention_mask=True, reset_position_ids=True, eos_token_id=0,
    )  # fmt: skip
    facts = compile_as_rank(tmp_path, settings, 3, 4)
    assert bool(facts["flash"]) == flash and facts["squares"] > 0
    kinds = {kind for kind, _ in facts["collectives"]}
    assert kinds == {"AllReduce"}  # nothing is gathered


@pytest.fixture
def yaml_of_32k(tmp_path):
    """Rows of 32,768 tokens, as docs/parallel.md says to train on them, in a network of two small blocks."""
    settings = {
        "runner_config": {"batch_size": 1},
        "lr_schedule": {"learning_rate": 1e-4},
        "parallel": {"parallel_mode": 1},
        "parallel_config": {"data_parallel": 2, "model_parallel": 2, "use_seq_parallel": True},
        "recompute_config": {"recompute": True},
        "model": {
            "model_config": {
                "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": HEADS, "vocab_size": VOCAB,
                "seq_length": LONG, "compute_dtype": "float16", "use_flash_attention": True,
                "attention_dropout_rate": 0.0,
            }
        },
    }  # fmt: skip
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_the_dry_run_of_rows_of_32k_names_each_term_of_memory(yaml_of_32k, repo):
    """All but the one mask grow with the row, none with its square, of which a byte each would be 1 GiB."""
    result = programs.run([sys.executable, "tools/dry_run.py", "--config", yaml_of_32k, "--rank_size", "4"], repo)
    assert result.returncode == 0, result.stderr
    terms = {name.strip(): int(size.replace(",", "")) for name, size in re.findall(_TERM, result.stdout, re.MULTILINE)}
    values, half, mp = LONG * HIDDEN, 2, 2
    masks = 2 * values // mp // 8  # two in a block, a bit for each value
    assert terms["kept by blocks"] == LAYERS * values * half // mp
    assert terms["dropout masks"] == LAYERS * masks + values // 8
    norms, gathered, wide = 2 * values * 4 // mp, 2 * values * half, 4 * values * 2 * half // mp
    flash = (5 * values * half + HEADS * LONG * 64) // mp  # query, key, value, context, output; statistics
    weights = 12 * HIDDEN**2 * half // mp  # cast copies
    assert terms["working set"] == norms + gathered + wide + flash + weights
    head = values * (half + 4) + 3 * 4 * LONG * VOCAB // mp + VOCAB * HIDDEN * half
    assert terms["logits and loss"] == head
    assert terms["attention mask"] == 2048**2
    assert {"parameters", "gradients", "optimizer state"} < set(terms)
    assert terms["together"] == sum(terms.values()) - terms["together"] < LONG**2


def test_a_sequence_is_not_sharded(yaml_of_32k, repo):
    command = [sys.executable, "tools/dry_run.py", "--config", yaml_of_32k, "--rank_size", "4"]
    result = programs.run([*command, "--options", "parallel_config.context_parallel=2"], repo)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "attention needs all keys of a row, and nothing here exchanges them" in result.stderr
