"""Recomputation on a CPU: it saves what the backward pass keeps, and changes no number."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT
from tests.train.recomputed_training import HIDDEN, LAYERS, ROWS, TOKENS

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What recomputed_training.py writes."""
    folder = tmp_path_factory.mktemp("recompute")
    environment = os.environ | DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": str(folder), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("recomputed_training.py"), folder],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "results.npz") as held:
        return dict(held)


@pytest.mark.parametrize("variant", ["gpt2", "gpt2_ml"])
def test_recomputation_with_dropout_changes_no_number(variant, results):
    kept, again = (
        {name.split("/")[2]: value for name, value in results.items() if name.startswith(f"{variant}/{recompute}/")}
        for recompute in (False, True)
    )
    losses, flops, flops_again = kept.pop("losses"), kept.pop("flops"), again.pop("flops")
    np.testing.assert_allclose(again.pop("losses"), losses, rtol=1e-6)
    assert kept.keys() == again.keys() and len(kept) > 10
    for name, value in kept.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert losses[-1] < losses[0] - 0.1, "the weights must have moved"
    tokens = ROWS * TOKENS
    block = 2 * tokens * 12 * HIDDEN**2 + 4 * tokens * TOKENS * HIDDEN
    last_product = 2 * tokens * 4 * HIDDEN**2  # whose result the backward pass of gpt2 does not need
    assert LAYERS * (block - last_product) <= flops_again - flops <= LAYERS * block
