"""The classifier against transformers' GPT2ForSequenceClassification, through the real converter."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

import mindspore as ms  # noqa: E402
from mindspore import Tensor  # noqa: E402

from mindgpt import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, UserError  # noqa: E402
from mindgpt.models.gpt2 import convert_weight  # noqa: E402

pytestmark = pytest.mark.usefixtures("unfused")

PAD = 100
TOY = {"n_layer": 2, "n_head": 4, "n_embd": 48, "vocab_size": 101, "n_positions": 40, "num_labels": 3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LENGTHS = (12, 1, 7, 12, 4)


def peer_with_large_weights(**changes):
    """transformers' classifier whose logits and gradients are large enough to compare."""
    torch.manual_seed(1)
    settings = {**TOY, **NO_DROPOUT, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": PAD, **changes}
    peer = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**settings, id2label={0: "bad", 1: "so so", 2: "good"})
    )
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.mul_(4.0).add_(0.05 * torch.randn_like(parameter))
    return peer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """transformers' classifier, its folder, and the same converted to a .ckpt and back."""
    base = tmp_path_factory.mktemp("classifier")
    peer = peer_with_large_weights()
    peer.save_pretrained(base / "hf")
    convert_weight.main(["--torch_path", str(base / "hf"), "--mindspore_path", str(base / "x.ckpt")])
    convert_weight.main(["--reversed", "--mindspore_path", str(base / "x.ckpt"), "--torch_path", str(base / "back")])
    return peer, base


def batch(sides, seed=0):
    """Rows of `LENGTHS` real tokens, padded on the side that `sides` says, the longest tokens long on neither."""
    draw = np.random.default_rng(seed)
    ids = np.full((len(LENGTHS), max(LENGTHS)), PAD, np.int32)
    mask = np.zeros_like(ids)
    for row, (length, side) in enumerate(zip(LENGTHS, sides, strict=True)):
        missing = max(LENGTHS) - length
        start = {"right": 0, "left": missing, "both": missing // 2}[side]
        ids[row, start : start + length] = draw.integers(0, PAD, length)
        mask[row, start : start + length] = 1
    return ids, mask, draw.integers(0, 3, len(LENGTHS)).astype(np.int32)


def torch_logits(peer, ids, mask):
    with torch.no_grad():
        return peer.eval()(torch.tensor(ids).long(), attention_mask=torch.tensor(mask)).logits.numpy()


SIDES = {"right": ["right"] * 5, "left": ["left"] * 5, "mixed": ["left", "right", "both", "left", "right"]}


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("source", ["hf", "x.ckpt"])
def test_logits_of_mixed_lengths_equal_transformers(folders, source, sides):
    peer, base = folders
    model = GPT2ForSequenceClassification.from_pretrained(base / source)
    ids, mask, _ = batch(sides)
    expected = torch_logits(peer, ids, mask)
    assert np.abs(expected).max() > 1, "logits near zero would prove little"
    np.testing.assert_allclose(model(Tensor(ids), Tensor(mask)).asnumpy(), expected, atol=1e-4)


def test_without_a_mask_the_last_column_counts(folders):
    peer, base = folders
    model = GPT2ForSequenceClassification.from_pretrained(base / "hf")
    ids = np.random.default_rng(3).integers(0, PAD, (3, 9)).astype(np.int32)
    np.testing.assert_allclose(model(Tensor(ids)).asnumpy(), torch_logits(peer, ids, np.ones_like(ids)), atol=1e-4)


def test_the_last_token_is_found_by_the_mask_and_not_by_its_id(folders):
    """Real tokens that are equal to the id of padding; one row at a time without padding is the oracle."""
    _, base = folders
    model = GPT2ForSequenceClassification.from_pretrained(base / "hf")
    ids, mask, _ = batch(SIDES["right"])
    ids[np.arange(len(ids)), np.array(LENGTHS) - 1] = PAD
    logits = model(Tensor(ids), Tensor(mask)).asnumpy()
    for row, length in list(enumerate(LENGTHS))[1:3]:
        alone = model(Tensor(ids[row : row + 1, :length])).asnumpy()
        np.testing.assert_allclose(logits[row : row + 1], alone, atol=1e-5)


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def fused(request):
    """Whether element-wise operators are fused, by which GELU is computed in another way."""
    ms.set_context(enable_graph_kernel=request.param)
    yield request.param
    ms.set_context(enable_graph_kernel=False)


# Gradients of up to 5. What tanh and sigmoid cost on the CPU is in docs/performance.md.
TOLERANCES = {("gelu_new", True): 3e-4, ("gelu_new", False): 1e-4, ("relu", True): 3e-5, ("relu", False): 3e-5}


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_loss_and_gradients_equal_torch(tmp_path, activation, fused, weights):
    tolerance = TOLERANCES[activation, fused]
    peer = peer_with_large_weights(activation_function=activation)
    peer.save_pretrained(tmp_path)
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path)
    model.set_class_weights(weights)
    model.set_train(True)
    ids, mask, labels = batch(SIDES["mixed"])
    labels[1] = -100
    peer.train().zero_grad()
    output = peer(torch.tensor(ids).long(), attention_mask=torch.tensor(mask), labels=torch.tensor(labels).long())
    expected = output.loss
    if weights is not None:
        expected = torch.nn.CrossEntropyLoss(torch.tensor(weights))(output.logits, torch.tensor(labels).long())
    expected.backward()
    arguments = (Tensor(ids), Tensor(mask), Tensor(labels.reshape(-1, 1)))
    loss, gradients = ms.value_and_grad(model, None, model.trainable_params())(*arguments)
    assert float(loss.asnumpy()) == pytest.approx(expected.item(), abs=min(tolerance, 1e-4))
    by_name = {p.name: g.asnumpy() for p, g in zip(model.trainable_params(), gradients, strict=True)}
    table = "backbone.embedding.word_embedding.embedding_table"
    pairs = {"score.weight": peer.score.weight, table: peer.transformer.wte.weight}
    for name, parameter in pairs.items():
        np.testing.assert_allclose(by_name[name], parameter.grad.numpy(), atol=tolerance)


def test_a_batch_without_labels_has_loss_zero(folders):
    model = GPT2ForSequenceClassification.from_pretrained(folders[1] / "hf").set_train(True)
    ids, mask, labels = batch(SIDES["right"])
    assert float(model(Tensor(ids), Tensor(mask), Tensor(np.full_like(labels, -100))).asnumpy()) == 0.0


def test_label_names_go_there_and_back(folders):
    peer, base = folders
    names = ["bad", "so so", "good"]
    assert GPT2Config.from_pretrained(base / "hf").label_names == names
    written = json.loads((base / "back" / "config.json").read_text())
    assert written["id2label"] == {"0": "bad", "1": "so so", "2": "good"}
    assert written["label2id"] == {name: number for number, name in enumerate(names)}
    again = transformers.GPT2ForSequenceClassification.from_pretrained(base / "back")
    assert again.config.id2label == peer.config.id2label
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in peer.state_dict().items())


def test_saved_and_opened_again(folders, tmp_path):
    model = GPT2ForSequenceClassification.from_pretrained(folders[1] / "hf")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2ForSequenceClassification"]
    again = GPT2ForSequenceClassification.from_pretrained(tmp_path)
    assert again.config == model.config
    ids, mask, _ = batch(SIDES["left"])
    np.testing.assert_array_equal(
        again(Tensor(ids), Tensor(mask)).asnumpy(), model(Tensor(ids), Tensor(mask)).asnumpy()
    )


def test_a_language_model_gets_a_new_head_and_it_is_said(tmp_path, capsys):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "vocab_size": 50, "seq_length": 8}
    language_model = GPT2LMHeadModel(GPT2Config(**sizes))
    language_model.save_pretrained(tmp_path)
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path, num_labels=4, label_names=list("abcd"))
    assert "score.weight is not there: it is new" in capsys.readouterr().out
    assert model.score.weight.shape == (4, 16)
    table = "backbone.embedding.word_embedding.embedding_table"
    np.testing.assert_array_equal(
        model.parameters_dict()[table].asnumpy(), language_model.parameters_dict()[table].asnumpy()
    )
    with pytest.raises(UserError, match=r"left over in the file: score.weight"):
        model.save_pretrained(tmp_path / "classifier")
        GPT2LMHeadModel.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_class_weights_that_make_no_sense_are_refused(weights):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "vocab_size": 50, "seq_length": 8}
    with pytest.raises(UserError, match="3 positive numbers"):
        GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3), weights)


def test_label_names_must_be_as_many_as_labels():
    with pytest.raises(UserError, match="label_names: must be 3 different names"):
        GPT2Config(num_labels=3, label_names=["a", "b"])


def test_another_number_of_labels_is_refused_when_weights_are_loaded(folders):
    with pytest.raises(UserError, match=r"wrong shape: score.weight is \[3, 48\] in the file and \[5, 48\]"):
        GPT2ForSequenceClassification.from_pretrained(folders[1] / "hf", num_labels=5)
