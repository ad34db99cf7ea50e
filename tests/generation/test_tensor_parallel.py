"""Models run by two processes, each with half of their heads and widths, against one process with the whole."""

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


VARIANTS = ("gpt2", "gpt2_ml")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, cpu):
    """Toy models of both variants, whose logits are far apart, and whose biases matter."""
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "vocab_size": 60, "seq_length": 64}
    paths = []
    for variant in VARIANTS:
        model = GPT2LMHeadModel(GPT2Config(**sizes, variant=variant, initializer_range=0.4))
        draw = np.random.default_rng(0)
        for parameter in model.get_parameters():
            if parameter.name.endswith("bias"):
                parameter.set_data(Tensor(draw.normal(0, 0.5, parameter.shape).astype(np.float32)))
        paths.append(tmp_path_factory.mktemp(variant))
        model.save_pretrained(paths[-1])
    return paths


@pytest.fixture
def results_of(repo, folders, tmp_path):
    """Run the program in so many processes: what rank 0 prints about each model."""

    def run(processes):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
        environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(repo)}
        command = [
            "bash",
            repo / "scripts" / "msrun_launcher.sh",
            " ".join(map(str, [PROGRAM, *folders])),
            str(processes),
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = [line for line in done.stdout.splitlines() if "results: " in line]
        return json.loads(line.partition("results: ")[2])

    return run


def test_two_processes_compute_what_one_does(results_of):
    for variant, one, two in zip(VARIANTS, results_of(1), results_of(2), strict=True):
        assert np.abs(one["logits"]).max() > 5
        np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-4, err_msg=variant)
        assert two["new"] == one["new"]
        assert len({tuple(row) for row in one["new"]}) == 3
        whole_only = 32 * (60 + 64) + 2 * (4 * 32 + 2 * 32) + 2 * 32  # tables, norms, biases of the projections
        assert two["held"] - whole_only == (one["held"] - whole_only) // 2
