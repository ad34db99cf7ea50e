"""Flash attention of long rows in the graph compiled for Ascend: no tensor of seq_length x seq_length."""

import pytest

from tests.tasks.toy_layouts import FACTORS, compile_as_rank, settings_of

pytestmark = pytest.mark.needs_ascend

CASE = {name: values[0] for name, values in FACTORS.items()} | {"flash": True, "weights": "float32"}


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
