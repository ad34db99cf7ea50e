"""Trains toy networks on a CPU with and without recomputation, each from the same seed: the program of
test_recompute.py, which gives it a process of its own, since MindSpore reads once where to write its graphs.

Usage: recomputed_training.py FOLDER, where graphs are written and which gets a results.npz.
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.gpt2.gpt2_recompute import apply_recompute
from mindgpt.runtime.compiled_graph import CompiledGraph
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import TrainStep

LAYERS, HIDDEN, TOKENS, ROWS, STEPS = 2, 16, 8, 2, 3
SIZES = {
    "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 2, "vocab_size": 50, "seq_length": TOKENS,
    "hidden_dropout_rate": 0.2, "attention_dropout_rate": 0.2, "embedding_dropout_rate": 0.2,
}  # fmt: skip


def train(variant: str, recompute: bool) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses, and the weights at the end."""
    ms.set_seed(7)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, variant=variant))
    apply_recompute(model.backbone, RecomputeSection(recompute=recompute))
    optimizer = build_optimizer(
        OptimizerSection(eps=1e-6), model.trainable_params(), LearningRateTable(np.full(STEPS, 0.05))
    )
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0)
    step.set_train()
    rows = np.random.default_rng(0).integers(0, 50, (ROWS, TOKENS + 1)).astype(np.int32)
    losses = [step(Tensor(rows))[0].asnumpy().item() for _ in range(STEPS)]
    return losses, {p.name: p.asnumpy() for p in model.get_parameters()}


def main(folder: Path) -> None:
    """Write, under "variant/recompute/name", losses, weights, and the floating-point operations of the step's graph."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    results, seen = {}, set()
    for variant in ("gpt2", "gpt2_ml"):
        for recompute in (False, True):
            losses, weights = train(variant, recompute)
            (text,) = set(folder.rglob("*_validate_*.ir")) - seen
            seen.add(text)
            found = {"losses": losses, "flops": CompiledGraph(text).product_flops, **weights}
            results |= {f"{variant}/{recompute}/{name}": value for name, value in found.items()}
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
