"""The model against transformers' GPT-2, through the real converter."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

import mindspore as ms  # noqa: E402
from mindspore import Tensor  # noqa: E402

from mindgpt import GPT2Config, GPT2LMHeadModel, UserError  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu")

TOY = {"n_layer": 2, "n_head": 4, "n_embd": 48, "vocab_size": 211, "n_positions": 40}


def peer(folder, seed=0, **settings):
    """A transformers GPT-2 with random weights, larger than its initialisation makes them, saved to `folder`."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**TOY, **settings}, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def ids(shape, vocab_size=211, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)


def logits_of(model, input_ids, mask=None):
    mask = None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        return model(torch.tensor(input_ids).long(), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu"},
        {"activation_function": "quick_gelu"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"n_inner": 100},
        {"n_inner": 1024},  # rows 4 KiB apart: on a CPU the product with the transposed matrix (of 128 rows or more)
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-3},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_logits_equal_transformers(tmp_path, settings):
    reference = peer(tmp_path, **settings)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    input_ids = ids((5, 30))
    np.testing.assert_allclose(model(Tensor(input_ids)).asnumpy(), logits_of(reference, input_ids), atol=1e-4)


@pytest.mark.long
def test_logits_of_gpt2_small_equal_transformers(tmp_path):
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    reference.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    input_ids = ids((2, 96), vocab_size=50257)
    difference = np.abs(model(Tensor(input_ids)).asnumpy() - logits_of(reference, input_ids)).max()
    assert difference < 1e-4, f"max abs difference {difference}"


def test_padded_positions_are_not_seen(tmp_path):
    reference = peer(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    input_ids, mask = ids((3, 20)), np.ones((3, 20), np.int32)
    mask[1, 12:] = 0  # padding on the right
    mask[2, :5] = 0  # padding on the left
    ours = model(Tensor(input_ids), Tensor(mask)).asnumpy()
    real = mask.astype(bool)
    np.testing.assert_allclose(ours[real], logits_of(reference, input_ids, mask)[real], atol=1e-4)
    changed = np.where(real, input_ids, 7).astype(np.int32)
    np.testing.assert_array_equal(model(Tensor(changed), Tensor(mask)).asnumpy()[real], ours[real])
    assert np.isfinite(ours).all(), "a query that sees no key must not be NaN"


@pytest.mark.parametrize("tokens", [1, 2, 39, 40])
def test_any_length_up_to_the_position_table(tmp_path, tokens):
    reference = peer(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    input_ids = ids((1, tokens))
    np.testing.assert_allclose(model(Tensor(input_ids)).asnumpy(), logits_of(reference, input_ids), atol=1e-4)


def test_a_row_longer_than_the_position_table_is_refused():
    model = GPT2LMHeadModel(GPT2Config(**TOY)).set_train(False)
    with pytest.raises(ValueError, match="41 tokens in a row, but the position table holds 40"):
        model(Tensor(ids((1, 41))))


def test_loss_obeys_labels_and_mask(tmp_path):
    reference = peer(tmp_path, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel.from_pretrained(tmp_path, seq_length=40).set_train(True)
    input_ids, mask, labels = ids((3, 20)), np.ones((3, 20), np.int32), ids((3, 20), seed=1)
    mask[0, 15:] = 0
    labels[1, :9] = -100  # a prompt
    seen = np.where(mask == 1, labels, -100)
    expected = reference(
        torch.tensor(input_ids).long(), attention_mask=torch.tensor(mask), labels=torch.tensor(seen).long()
    ).loss.item()
    ours = model(Tensor(input_ids), Tensor(mask), Tensor(labels)).asnumpy().item()
    assert ours == pytest.approx(expected, rel=1e-5)
    without = model(Tensor(input_ids)).asnumpy().item()
    plain = reference(torch.tensor(input_ids).long(), labels=torch.tensor(input_ids).long()).loss.item()
    assert without == pytest.approx(plain, rel=1e-5)


def test_a_batch_without_a_target_has_loss_zero():
    model = GPT2LMHeadModel(GPT2Config(**TOY)).set_train(True)
    labels = np.full((2, 9), -100, np.int32)
    assert model(Tensor(ids((2, 9))), Tensor(np.ones((2, 9), np.int32)), Tensor(labels)).asnumpy() == 0.0


def test_training_rows_may_be_one_longer_than_the_position_table():
    model = GPT2LMHeadModel(GPT2Config(**TOY)).set_train(True)
    assert np.isfinite(model(Tensor(ids((2, 41)))).asnumpy())


@pytest.mark.parametrize(("variant", "scaled"), [("gpt2", 0.02 / np.sqrt(2 * 8)), ("gpt2_ml", 0.02)])
def test_initialisation_is_hugging_faces_and_that_of_gpt2_ml(variant, scaled):
    ms.set_seed(1)
    sizes = {"num_layers": 8, "num_heads": 4, "hidden_size": 256, "vocab_size": 3000}
    model = GPT2LMHeadModel(GPT2Config(**sizes, variant=variant, initializer_range=0.02))
    parameters = {name: p.init_data().asnumpy() for name, p in model.parameters_dict().items()}
    for name, value in parameters.items():
        if name.endswith(("bias", "beta")):
            assert not value.any(), name
        elif name.endswith("gamma"):
            assert (value == 1).all(), name
        else:
            std = scaled if name.endswith(("attention.projection.weight", "output.projection.weight")) else 0.02
            assert value.std() == pytest.approx(std, rel=0.02), name
            assert abs(value.mean()) < std / 50, name


def test_dropout_acts_in_training_only_and_each_rate_is_obeyed():
    input_ids = Tensor(ids((2, 30)))
    for name in ("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"):
        rates = {"embedding_dropout_rate": 0.0, "hidden_dropout_rate": 0.0, "attention_dropout_rate": 0.0, name: 0.5}
        model = GPT2LMHeadModel(GPT2Config(**TOY, **rates, initializer_range=0.2))
        model.set_train(True)
        assert model(input_ids).asnumpy() != model(input_ids).asnumpy(), name
        model.set_train(False)
        np.testing.assert_array_equal(model(input_ids).asnumpy(), model(input_ids).asnumpy())


def test_weights_are_stored_as_asked():
    model = GPT2LMHeadModel(GPT2Config(**TOY, param_init_type="float16", compute_dtype="float16"))
    dtypes = {name: p.dtype for name, p in model.parameters_dict().items()}
    assert dtypes["backbone.blocks.0.attention.dense1.weight"] == ms.float16
    assert dtypes["backbone.embedding.word_embedding.embedding_table"] == ms.float16
    assert dtypes["backbone.blocks.0.layernorm1.gamma"] == ms.float32
    assert model.set_train(False)(Tensor(ids((1, 5)))).dtype == ms.float32


def test_save_and_load_again(tmp_path):
    peer(tmp_path / "hf")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "ours")
    input_ids = Tensor(ids((2, 12)))
    expected = model(input_ids).asnumpy()
    for path in (tmp_path / "ours", tmp_path / "ours" / "model.ckpt"):
        np.testing.assert_array_equal(GPT2LMHeadModel.from_pretrained(path)(input_ids).asnumpy(), expected)
    plain = GPT2LMHeadModel(GPT2Config(**TOY)).set_train(False)
    ms.load_param_into_net(plain, ms.load_checkpoint(str(tmp_path / "ours" / "model.ckpt")), strict_load=True)
    np.testing.assert_array_equal(plain(input_ids).asnumpy(), expected)


def test_a_checkpoint_without_its_config_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(**TOY)).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json beside the weights"):
        GPT2LMHeadModel.from_pretrained(tmp_path / "model.ckpt")


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_in_half_precision_give_the_gradients_of_whole_ones(stored):
    """At a width at which MindSpore's fusion made NaN of a matrix that was cast and transposed at once: 4 x 256 = 1024,
    and rows enough for the transposition to pay."""

    def loss_and_gradients(dtype):
        ms.set_seed(0)
        sizes = {"num_layers": 1, "hidden_size": 256, "num_heads": 4, "vocab_size": 300, "seq_length": 64}
        rates = dict.fromkeys(("hidden_dropout_rate", "attention_dropout_rate", "embedding_dropout_rate"), 0.0)
        model = GPT2LMHeadModel(GPT2Config(**sizes, **rates, param_init_type=dtype)).set_train()
        weights = ms.ParameterTuple(model.trainable_params())
        rows = Tensor(np.random.default_rng(0).integers(0, 300, (4, 65)).astype(np.int32))
        loss, gradients = ms.value_and_grad(model, None, weights)(rows)
        return loss.asnumpy(), [gradient.astype(ms.float32).asnumpy() for gradient in gradients]

    loss, gradients = loss_and_gradients(stored)
    expected_loss, expected = loss_and_gradients("float32")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max() + 1e-8)
