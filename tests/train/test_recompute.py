"""Recomputation on a CPU: it saves what the backward pass keeps, and changes no number."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.execution_sections import RecomputeSection
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.gpt2.gpt2_parallel import apply_recompute
from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT, CompiledGraph
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import TrainStep

pytestmark = pytest.mark.usefixtures("unfused")

LAYERS, HIDDEN, TOKENS, ROWS, STEPS = 2, 16, 8, 2, 3
SIZES = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 2, "vocab_size": 50, "seq_length": TOKENS,
    "hidden_dropout_rate": 0.2, "attention_dropout_rate": 0.2, "embedding_dropout_rate": 0.2,
}  # fmt: skip


def train(variant, recompute, folder, monkeypatch):
    """The losses, the weights at the end, and the floating-point operations of the step's graph."""
    for name, value in {**DUMP_ENVIRONMENT, "MS_DEV_SAVE_GRAPHS_PATH": str(folder)}.items():
        monkeypatch.setenv(name, value)
    ms.set_seed(7)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, variant=variant))
    apply_recompute(model.backbone, recompute)
    optimizer = build_optimizer(
        OptimizerSection(eps=1e-6), model.trainable_params(), LearningRateTable(np.full(STEPS, 0.05))
    )
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0)
    step.set_train()
    rows = np.random.default_rng(0).integers(0, 50, (ROWS, TOKENS + 1)).astype(np.int32)
    losses = [step(Tensor(rows))[0].asnumpy().item() for _ in range(STEPS)]
    (text,) = folder.rglob("*_validate_*.ir")
    return losses, {p.name: p.asnumpy() for p in model.get_parameters()}, CompiledGraph(text).product_flops


@pytest.mark.parametrize("variant", ["gpt2", "gpt2_ml"])
def test_recomputation_with_dropout_changes_no_number(variant, tmp_path, monkeypatch):
    losses, weights, flops = train(variant, RecomputeSection(), tmp_path / "kept", monkeypatch)
    again, weights_again, flops_again = train(
        variant, RecomputeSection(recompute=True), tmp_path / "again", monkeypatch
    )
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(weights_again[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert losses[-1] < losses[0] - 0.1, "the weights must have moved"
    tokens = ROWS * TOKENS
    block = 2 * tokens * 12 * HIDDEN**2 + 4 * tokens * TOKENS * HIDDEN
    last_product = 2 * tokens * 4 * HIDDEN**2  # whose result the backward pass of gpt2 does not need
    assert LAYERS * (block - last_product) <= flops_again - flops <= LAYERS * block
