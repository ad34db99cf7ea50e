"""A model run by two processes, each with half of its heads and widths, against one process with the whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel

PROGRAM = Path(__file__).with_name("run_in_parts.py")
CLEAN = ("MS_", "RANK_ID", "AKG_", "OMP_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cpu):
    """A toy model whose logits are far apart, and whose biases matter."""
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "vocab_size": 60, "seq_length": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4))
    draw = np.random.default_rng(0)
    for parameter in model.get_parameters():
        if parameter.name.endswith("bias"):
            parameter.set_data(Tensor(draw.normal(0, 0.5, parameter.shape).astype(np.float32)))
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def told(repo, folder, tmp_path):
    """Run the program in so many processes: what rank 0 tells."""

    def run(processes):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
        environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(repo)}
        command = ["bash", repo / "scripts" / "msrun_launcher.sh", f"{PROGRAM} {folder}", str(processes)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = [line for line in done.stdout.splitlines() if "told: " in line]
        return json.loads(line.partition("told: ")[2])

    return run


def test_two_processes_compute_what_one_does(told):
    one, two = told(1), told(2)
    assert np.abs(one["logits"]).max() > 5
    np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-4)
    assert two["new"] == one["new"]
    assert len({tuple(row) for row in one["new"]}) == 3
    whole_only = 32 * (60 + 64) + 2 * (4 * 32 + 2 * 32) + 2 * 32  # tables, norms, biases of the projections
    assert two["held"] - whole_only == (one["held"] - whole_only) // 2
