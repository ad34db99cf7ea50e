"""Room for variants: one that differs in every part is trained, evaluated, generates and is sharded by today's code."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.generation import GenerationSettings, Generator
from mindgpt.models.acceleration import inference_cells, loss_cell
from mindgpt.models.gpt2.gpt2 import OPERATOR_CELLS, GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_parallel import Layout, apply_layout, parameters_of_stage
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.step import TrainStep
from tests.models.kernel_support import skip_without_kernels
from tests.models.toy_variant import ToyConfig, random_weights, reference_logits, renamed

pytestmark = pytest.mark.usefixtures("cpu")

CONFIG = ToyConfig()
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def model():
    """The variant with `WEIGHTS`."""
    model = GPT2LMHeadModel(CONFIG)
    values = renamed(WEIGHTS, CONFIG.num_layers)
    ms.load_param_into_net(
        model, {name: Parameter(Tensor(value), name=name) for name, value in values.items()}, strict_load=True
    )
    assert {name for name, _ in model.parameters_and_names()} == set(values)
    return model.set_train(False)


def ids_of(shape):
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def test_logits_equal_numpy(model):
    ids = ids_of((3, 20))
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), reference_logits(WEIGHTS, CONFIG, ids), atol=1e-3)


def test_generation_with_a_cache_says_what_numpy_says_without(model):
    prompts = [[5, 7, 11], [3] * 9, ids_of(6).tolist()]
    rows = Generator(model).generate(prompts, GenerationSettings(max_new_tokens=12, eos_token_id=None))
    for prompt, row in zip(prompts, rows, strict=True):
        logits = reference_logits(WEIGHTS, CONFIG, np.array([prompt + row]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == row
        best = np.sort(logits, -1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 2e-3  # no ties, which rounding would decide
    assert len({tuple(row) for row in rows}) == 3


def test_a_training_step(model):
    ids = ids_of((4, 21))
    logits = reference_logits(WEIGHTS, CONFIG, ids[:, :-1])
    log_normaliser = np.log(np.exp(logits).sum(-1))
    expected = (log_normaliser - np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]).mean()
    model.set_train()
    optimizer = build_optimizer(OptimizerSection(), model.trainable_params(), 1e-2)
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0).set_train()
    losses = [float(step(Tensor(ids))[0].asnumpy()) for _ in range(2)]
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert losses[1] < losses[0] - 0.1
    before = renamed(WEIGHTS, CONFIG.num_layers)
    assert all((value.asnumpy() != before[name]).any() for name, value in model.parameters_dict().items())


def test_kernels_leave_it_to_operators(model):
    assert inference_cells(model.backbone) is None and loss_cell(model) is None
    assert Generator(model).graphs._kinds is OPERATOR_CELLS
    skip_without_kernels()
    today = GPT2LMHeadModel(GPT2Config(num_layers=1, hidden_size=8, num_heads=1, vocab_size=9, seq_length=8))
    assert inference_cells(today.backbone) is not None and loss_cell(today) is not None


def test_a_layout_shards_it(model):
    apply_layout(model, Layout(data_parallel=2, model_parallel=2, sequence_parallel=True))
    backbone = model.backbone
    assert backbone.blocks[0].layernorm1.layer_norm.sub.in_strategy == ((4, 1), (4, 1))
    assert backbone.embedding.layernorm.layer_norm.mul.in_strategy == ((2, 1, 1), (1,))
    staged = GPT2LMHeadModel(CONFIG)
    apply_layout(staged, Layout(pipeline_stages=2))
    held = [parameters_of_stage(staged, 2, stage) for stage in (0, 1)]
    assert sum(map(len, held)) == len(staged.trainable_params())
