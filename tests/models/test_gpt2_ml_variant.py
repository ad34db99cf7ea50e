"""The variant `gpt2_ml` against PyTorch: logits, gradients, training, generation with a cache, LoRA, classification."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.weights import load_weights
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.generation import GenerationSettings, Generator
from mindgpt.models.acceleration import inference_cells, loss_cell
from mindgpt.models.gpt2.gpt2 import OPERATOR_CELLS, GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.models.gpt2.gpt2_parallel import Layout, apply_layout, parameters_of_stage
from mindgpt.pet.lora import add_lora
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.step import TrainStep
from tests.models.gpt2_ml_reference import (
    loss_and_gradients,
    random_weights,
    reference_logits,
    toy_config,
    under_our_names,
)
from tests.models.kernel_support import skip_without_kernels

pytestmark = pytest.mark.usefixtures("cpu")

CONFIG = toy_config()
WEIGHTS = random_weights(CONFIG)


def new_model(config=CONFIG):
    model = GPT2LMHeadModel(config)
    values = under_our_names(WEIGHTS, config.num_layers)
    ms.load_param_into_net(
        model, {name: Parameter(Tensor(value), name=name) for name, value in values.items()}, strict_load=True
    )
    assert {name for name, _ in model.parameters_and_names()} == set(values)
    return model.set_train(False)


@pytest.fixture
def model():
    """The toy network with `WEIGHTS`."""
    return new_model()


def ids_of(shape):
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def test_what_the_variant_sets():
    assert (CONFIG.hidden_act, CONFIG.embedding_norm, CONFIG.final_norm) == ("gelu_erf", True, False)
    assert GPT2Config(variant="gpt2_ml", hidden_act="relu").hidden_act == "relu"
    assert GPT2Config().variant == "gpt2" and GPT2Config().hidden_act == "gelu"
    with pytest.raises(
        UserError, match=r"variant: must be one of gpt2, gpt2_ml, not 'gpt2-ml'; did you mean 'gpt2_ml'"
    ):
        GPT2Config(variant="gpt2-ml")


def test_parameters_of_the_published_models():
    mega = {"num_layers": 48, "hidden_size": 1536, "num_heads": 24, "variant": "gpt2_ml"}
    assert GPT2Config(**mega, vocab_size=21130).num_parameters() == 1_393_944_576
    assert GPT2Config(**mega, vocab_size=8021).num_parameters() == 1_373_809_152
    assert GPT2LMHeadModel(CONFIG).num_parameters() == CONFIG.num_parameters()


def test_logits_equal_pytorch(model):
    ids = ids_of((3, 20))
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), reference_logits(WEIGHTS, CONFIG, ids), atol=1e-5)


def test_loss_and_gradients_equal_pytorch(model):
    ids = ids_of((3, 21))
    model.set_train()
    parameters = model.trainable_params()
    loss, gradients = ms.value_and_grad(model, None, parameters)(Tensor(ids))
    expected_loss, theirs = loss_and_gradients(WEIGHTS, CONFIG, ids)
    assert float(loss.asnumpy()) == pytest.approx(expected_loss, rel=1e-5)
    expected = under_our_names(theirs, CONFIG.num_layers)
    assert len(gradients) == len(expected)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), expected[parameter.name], atol=1e-5, err_msg=parameter.name)


def test_generation_with_a_cache_says_what_pytorch_says_without(model):
    prompts = [[5, 7, 11], [3] * 9, ids_of(6).tolist()]
    rows = Generator(model).generate(prompts, GenerationSettings(max_new_tokens=12, eos_token_id=None))
    for prompt, row in zip(prompts, rows, strict=True):
        logits = reference_logits(WEIGHTS, CONFIG, np.array([prompt + row]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == row
        best = np.sort(logits, -1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 1e-4  # no ties, which rounding would decide
    assert len({tuple(row) for row in rows}) == 3


def test_a_training_step(model):
    ids = ids_of((4, 21))
    expected = loss_and_gradients(WEIGHTS, CONFIG, ids)[0]
    model.set_train()
    optimizer = build_optimizer(OptimizerSection(), model.trainable_params(), 1e-2)
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0).set_train()
    losses = [float(step(Tensor(ids))[0].asnumpy()) for _ in range(2)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] < losses[0] - 0.1
    before = under_our_names(WEIGHTS, CONFIG.num_layers)
    assert all((value.asnumpy() != before[name]).any() for name, value in model.parameters_dict().items())


def test_a_lora_begins_with_the_base_model_and_trains_its_factors_alone(model):
    ids = ids_of((4, 21))
    add_lora(model, PetSection(lora_rank=2))
    expected = loss_and_gradients(WEIGHTS, CONFIG, ids)[0]
    trained = [parameter.name for parameter in model.trainable_params()]
    assert len(trained) == 2 * 2 * CONFIG.num_layers and all("lora" in name for name in trained)
    model.set_train()
    optimizer = build_optimizer(OptimizerSection(), model.trainable_params(), 1e-1)
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0).set_train()
    losses = [float(step(Tensor(ids))[0].asnumpy()) for _ in range(3)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[2] < losses[0]
    for name, value in under_our_names(WEIGHTS, CONFIG.num_layers).items():
        np.testing.assert_array_equal(model.parameters_dict()[name].asnumpy(), value)


def test_a_classifier_pools_the_last_hidden_state(model):
    classifier = GPT2ForSequenceClassification(CONFIG).set_train(False)
    base = model.parameters_dict()
    for name, parameter in classifier.parameters_dict().items():
        if name in base:
            parameter.set_data(base[name])
    ids = ids_of((2, 12))
    hidden = model.backbone(Tensor(ids)).asnumpy()
    mask = np.array([[1] * 12, [1] * 7 + [0] * 5], np.int32)
    expected = np.stack([hidden[0, 11], hidden[1, 6]]) @ classifier.score.weight.asnumpy().T
    np.testing.assert_allclose(classifier(Tensor(ids), Tensor(mask)).asnumpy(), expected, atol=1e-5)


def test_kernels_leave_it_to_operators(model):
    assert inference_cells(model.backbone) is None and loss_cell(model) is None
    assert Generator(model).graphs._kinds is OPERATOR_CELLS
    skip_without_kernels()
    today = GPT2LMHeadModel(GPT2Config(num_layers=1, hidden_size=8, num_heads=1, vocab_size=9, seq_length=8))
    assert inference_cells(today.backbone) is not None and loss_cell(today) is not None


def test_a_layout_shards_it():
    model = GPT2LMHeadModel(toy_config(layer_norm="uer"))  # whose operators are the same on CPU and show strategies
    apply_layout(model, Layout(data_parallel=2, model_parallel=2, sequence_parallel=True))
    backbone = model.backbone
    assert backbone.blocks[0].layernorm2.layer_norm.sub.in_strategy == ((4, 1), (4, 1))
    assert backbone.embedding.layernorm.layer_norm.mul.in_strategy == ((2, 1, 1), (1,))
    staged = GPT2LMHeadModel(CONFIG)
    apply_layout(staged, Layout(blocks=(1, 1)))
    held = [parameters_of_stage(staged, (1, 1), stage) for stage in (0, 1)]
    assert sum(map(len, held)) == len(staged.trainable_params())


class Held:
    """Values as weights under our names."""

    path = "some.ckpt"

    def __init__(self, model):
        self.values = {name: value.asnumpy() for name, value in model.parameters_dict().items()}
        self.entries = {name: TensorInfo(value.shape, value.dtype.name) for name, value in self.values.items()}

    def read(self, name):
        return self.values[name]


def test_weights_of_one_variant_are_refused_by_the_other(model):
    gpt2 = GPT2LMHeadModel(toy_config(variant="gpt2"))
    before = Held(gpt2).values
    with pytest.raises(UserError, match=r"some.ckpt: holds the weights of a GPT2_ML .* the model is a GPT-2 "):
        load_weights(gpt2, Held(model))
    with pytest.raises(UserError, match=r"some.ckpt: holds the weights of a GPT-2 .* the model is a GPT2_ML "):
        load_weights(model, Held(gpt2))
    assert all((value == before[name]).all() for name, value in Held(gpt2).values.items())


def test_config_json_names_the_variant(tmp_path):
    file = CONFIG.save_pretrained(tmp_path)
    assert '"model_type": "gpt2_ml"' in file.read_text()  # so that transformers does not take it for a GPT-2
    assert GPT2Config.from_pretrained(tmp_path) == CONFIG
