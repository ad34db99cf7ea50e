"""UER's layer norm, and an untied head: in training, evaluation, generation, LoRA and layouts, against torch."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.weights import load_weights, open_weights, save_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.generation import GenerationSettings, Generator
from mindgpt.generation.scoring import score
from mindgpt.models import acceleration
from mindgpt.models.gpt2.gpt2 import OPERATOR_CELLS, GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.models.gpt2.gpt2_modules import UnbiasedLayerNorm
from mindgpt.models.gpt2.gpt2_parallel import Layout, apply_layout, has_tied_copy, parameters_of_stage
from mindgpt.pet.lora import add_lora
from mindgpt.pet.merge import MergedWeights
from tests.models import uer_reference
from tests.models.kernel_support import skip_without_kernels

pytestmark = pytest.mark.usefixtures("cpu")

RATES = dict.fromkeys(("hidden_dropout_rate", "attention_dropout_rate", "embedding_dropout_rate"), 0.0)
SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 60, "seq_length": 24}
TOY = GPT2Config(**SIZES, **RATES, layer_norm="uer", tie_word_embeddings=False, initializer_range=0.3)


def model_of(config, kind=GPT2LMHeadModel):
    """With weights large enough that every part of the network counts."""
    model, random = kind(config), np.random.default_rng(0)
    for name, parameter in model.parameters_dict().items():
        values = random.normal(name.endswith("gamma"), config.initializer_range, parameter.shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    return model.set_train(False)


def weights_of(model):
    return {name: torch.tensor(p.asnumpy(), requires_grad=True) for name, p in model.parameters_dict().items()}


def ids_of(*shape, below=60):
    return np.random.default_rng(1).integers(0, below, shape).astype(np.int32)


class WeighedSum(nn.Cell):
    """The sum of a layer norm's values times weights, and its gradients."""

    def __init__(self, weights):
        super().__init__()
        self.norm, self.weights = UnbiasedLayerNorm(1e-6), Tensor(weights)

    def construct(self, x, gamma, beta):
        return (self.norm(x, gamma, beta)[0] * self.weights).sum()

    def gradients(self, *inputs):
        """By x, gamma and beta"""
        return ms.ops.GradOperation(get_all=True)(self)(*map(Tensor, inputs))


# ---- the layer norm -------------------------------------------------------------------------------------------------


def test_the_anchor():
    """1, 2, 3, 4: the mean is 2.5 and the unbiased variance 5/3."""
    one, zero = Tensor(np.ones(4, np.float32)), Tensor(np.zeros(4, np.float32))
    y = UnbiasedLayerNorm(1e-6)(Tensor([[1.0, 2.0, 3.0, 4.0]], ms.float32), one, zero)[0].asnumpy()
    np.testing.assert_allclose(y, [[-1.1618941, -0.3872980, 0.3872980, 1.1618941]], rtol=3e-7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_and_gradients_equal_torch(dtype):
    random = np.random.default_rng(0)
    x, weight = random.normal(3, 2, (2, 7, 48)).astype(dtype), random.normal(0, 1, (2, 7, 48)).astype(dtype)
    gamma, beta = (random.normal(1, 0.5, 48).astype(dtype) for _ in range(2))
    cell = WeighedSum(weight)
    ours = [cell.norm(Tensor(x), Tensor(gamma), Tensor(beta))[0], *cell.gradients(x, gamma, beta)]
    theirs = [torch.tensor(array.astype(float), requires_grad=True) for array in (x, gamma, beta)]
    y = uer_reference.layer_norm(*theirs)
    (y * torch.tensor(weight.astype(float))).sum().backward()
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for ours_, expected in zip(ours, [y.detach(), *(tensor.grad for tensor in theirs)], strict=True):
        assert str(ours_.dtype).lower() == dtype
        np.testing.assert_allclose(ours_.asnumpy(), expected.numpy(), rtol=tolerance, atol=tolerance)


def test_a_row_of_equal_values_has_a_finite_gradient():
    """torch's is NaN: it divides by the standard deviation, which is 0."""
    x = np.stack([np.full(8, 3.0), np.zeros(8), np.arange(8.0)]).astype(np.float32)
    gamma, beta = np.full(8, 2.0, np.float32), np.arange(8, dtype=np.float32)
    cell = WeighedSum(beta)
    y = cell.norm(*map(Tensor, (x, gamma, beta)))[0].asnumpy()
    np.testing.assert_array_equal(y[:2], np.stack([beta, beta]))
    gradients = cell.gradients(x, gamma, beta)
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)
    # Of a function that divides by 0 + eps: gamma beta / eps, less its mean.
    np.testing.assert_allclose(gradients[0].asnumpy()[0], 2e6 * (beta - beta.mean()), rtol=1e-5)


def test_the_conversion_must_fit_the_arithmetic():
    for arithmetic, conversion in (("standard", "uer"), ("uer", "copy"), ("uer", "folded")):
        with pytest.raises(UserError, match=f"layer_norm_conversion: '{conversion}' makes layer_norm"):
            GPT2Config(layer_norm=arithmetic, layer_norm_conversion=conversion)
    for arithmetic, conversion in (("standard", "copy"), ("standard", "folded"), ("uer", "uer"), ("uer", None)):
        assert GPT2Config(layer_norm=arithmetic, layer_norm_conversion=conversion).layer_norm == arithmetic
    with pytest.raises(UserError, match="hidden_size: must be at least 2"):
        GPT2Config(layer_norm="uer", hidden_size=1, num_heads=1)
    assert TOY.layernorm_epsilon == 1e-6 and GPT2Config().layernorm_epsilon == 1e-5
    assert GPT2Config(layer_norm="uer", layernorm_epsilon=1e-5).layernorm_epsilon == 1e-5


# ---- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_weights_that_are_opened_with_the_other_arithmetic_get_its_eps(tmp_path):
    model_of(GPT2Config(**SIZES)).save_pretrained(tmp_path)
    changes = {"layer_norm": "uer"}
    assert GPT2LMHeadModel.from_pretrained(tmp_path, **changes).config.layernorm_epsilon == 1e-6
    assert GPT2LMHeadModel.from_pretrained(tmp_path, **changes, layernorm_epsilon=1e-5).config.layernorm_epsilon == 1e-5
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.layernorm_epsilon == 1e-5


def test_logits_at_base_shape():
    config = GPT2Config(vocab_size=21128, layer_norm="uer", seq_length=64)
    ms.set_seed(0)
    model = GPT2LMHeadModel(config).set_train(False)
    ids = ids_of(1, 9, below=21128)
    with torch.no_grad():
        expected = uer_reference.logits(weights_of(model), config, torch.tensor(ids).long()).numpy()
    assert np.abs(model(Tensor(ids)).asnumpy() - expected).max() < 1e-4


def test_logits_and_losses_by_operators_and_kernels():
    model, ids = model_of(TOY), ids_of(3, 20)
    weights = weights_of(model)
    expected = uer_reference.logits(weights, TOY, torch.tensor(ids).long()).detach().numpy()
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), expected, atol=2e-3)  # logits of about 10
    loss = uer_reference.loss(weights, TOY, torch.tensor(ids).long()).item()
    assert model.set_train()(Tensor(ids)).asnumpy() == pytest.approx(loss, rel=1e-4)
    skip_without_kernels()
    total, count = acceleration.loss_cell(model)(Tensor(ids))
    assert float(total.asnumpy()) / float(count.asnumpy()) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_equal_torch(tied):
    config = TOY.replaced({"tie_word_embeddings": tied})
    model, ids = model_of(config).set_train(), ids_of(2, 12)
    weights = weights_of(model)
    uer_reference.loss(weights, config, torch.tensor(ids).long()).backward()
    parameters = ms.ParameterTuple(model.trainable_params())
    gradients = ms.ops.GradOperation(get_by_list=True)(model, parameters)(Tensor(ids))
    assert len(gradients) == len(weights)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = weights[parameter.name].grad.numpy()
        tolerance = max(1e-6, 2e-3 * np.abs(expected).max())  # that of a key's bias is 0
        np.testing.assert_allclose(gradient.asnumpy(), expected, atol=tolerance, err_msg=parameter.name)


@pytest.mark.parametrize("kernels", [False, True])
def test_generation_says_what_torch_says_without_a_cache(monkeypatch, kernels):
    if kernels:
        skip_without_kernels()
    monkeypatch.setattr(acceleration, "USE_KERNELS", kernels)
    model = model_of(TOY)
    generator, prompts = Generator(model), [[5, 7, 11], [3] * 9, ids_of(6).tolist()]
    assert (generator.graphs._kinds is OPERATOR_CELLS) != kernels
    rows = generator.generate(prompts, GenerationSettings(max_new_tokens=12, eos_token_id=None))
    weights = weights_of(model)
    for prompt, row in zip(prompts, rows, strict=True):
        logits = uer_reference.logits(weights, TOY, torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1].detach()
        assert logits.argmax(-1).tolist() == row
    scores = score(model, [prompts[2] + rows[2]])[0]
    expected = uer_reference.logits(weights, TOY, torch.tensor([prompts[2] + rows[2]]))[0, :-1].log_softmax(-1)
    targets = torch.tensor(prompts[2][1:] + rows[2])[:, None]
    np.testing.assert_allclose(scores, expected.gather(1, targets)[:, 0].detach().numpy(), atol=2e-3)


def test_a_classifier_reads_the_last_token():
    model, ids = model_of(TOY, GPT2ForSequenceClassification), ids_of(3, 20)
    weights = weights_of(model)
    hidden = uer_reference.hidden_states(weights, TOY, torch.tensor(ids).long())[:, -1]
    expected = (hidden @ weights["score.weight"].T).detach().numpy()
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), expected, atol=2e-3)


def test_merged_lora_equals_unmerged(tmp_path):
    model, ids = model_of(TOY), Tensor(ids_of(2, 12))
    model.save_pretrained(tmp_path / "base")
    before = model(ids).asnumpy()
    lora = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    add_lora(lora, PetSection(lora_rank=4, lora_alpha=6.0, target_modules=".*dense[13]|.*mapping"))
    draw = np.random.default_rng(2)
    for parameter in lora.trainable_params():
        parameter.set_data(Tensor(draw.normal(0, 0.1, parameter.shape).astype(np.float32)))
    save_checkpoint(tmp_path / "lora.ckpt", lora)
    weights = open_weights(tmp_path / "lora.ckpt").source
    merged = MergedWeights(weights, weights, scaling=1.5)
    load_weights(model, merged)
    unmerged = lora.set_train(False)(ids).asnumpy()
    np.testing.assert_allclose(model(ids).asnumpy(), unmerged, atol=1e-4)
    assert np.abs(before - unmerged).max() > 0.1


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_a_layout_shards_them():
    model = model_of(TOY)
    apply_layout(model, Layout(data_parallel=2, model_parallel=2, sequence_parallel=True, vocab_parallel=True))
    norm = model.backbone.blocks[0].layernorm1.layer_norm
    assert norm.sub.in_strategy == ((4, 1), (4, 1)) and norm.mul.in_strategy == ((4, 1), (1,))
    assert model.head.matmul.in_strategy == ((2, 1), (2, 1))


def test_the_head_is_the_last_stages_own():
    model = model_of(TOY)
    apply_layout(model, Layout(blocks=(1, 1)))
    held = [{parameter.name for parameter in parameters_of_stage(model, (1, 1), stage)} for stage in (0, 1)]
    assert not held[0] & held[1] and held[0] | held[1] == set(model.parameters_dict())
    assert "head.weight" in held[1] and uer_reference.TABLE.format("word") in held[0]
    assert not any(has_tied_copy(model, 2, 1, parameter) for parameter in model.get_parameters())
