"""An output head that is not the token embedding: Hugging Face folders in and out, against transformers."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from mindspore import Tensor

from mindgpt.checkpoints.conversion import convert_to_hugging_face, convert_to_mindspore
from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification

SIZES = {"n_embd": 12, "n_layer": 2, "n_head": 3, "vocab_size": 61, "n_positions": 16}
IDS = np.random.default_rng(0).integers(0, 61, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def reference() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def folder(reference, tmp_path):
    reference.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def changed_config(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(IDS).long()).logits.numpy()


def test_a_folder_of_transformers_comes_in_and_goes_out_bit_for_bit(reference, folder, tmp_path):
    convert_to_mindspore(folder, tmp_path / "x.ckpt")
    assert GPT2Config.from_pretrained(tmp_path).tie_word_embeddings is False
    assert open_weights(folder).notes == open_weights(tmp_path / "x.ckpt").notes == ()
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "x.ckpt")
    np.testing.assert_array_equal(model.head.weight.asnumpy(), reference.lm_head.weight.detach().numpy())
    np.testing.assert_allclose(model(Tensor(IDS)).asnumpy(), logits_of(reference), atol=1e-4)
    convert_to_hugging_face(tmp_path / "x.ckpt", tmp_path / "back")
    held = safetensors.torch.load_file(tmp_path / "back/model.safetensors")
    assert held.keys() == reference.state_dict().keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in reference.state_dict().items())
    again, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    np.testing.assert_array_equal(logits_of(again.eval()), logits_of(reference))


@pytest.mark.parametrize("said", [True, None])
def test_tensors_that_differ_are_an_untied_head_whatever_the_config_says(reference, folder, said):
    changed_config(folder, tie_word_embeddings=said)
    weights = open_weights(folder)
    assert "the output head differs from the token embedding, though no config says so" in weights.notes[0]
    assert weights.config.tie_word_embeddings is False
    logits = GPT2LMHeadModel.from_pretrained(folder)(Tensor(IDS)).asnumpy()
    np.testing.assert_allclose(logits, logits_of(reference), atol=1e-4)


@pytest.mark.parametrize("untied", [True, False])
def test_a_head_that_equals_the_embedding_is_what_the_config_says(folder, tmp_path, untied):
    held = safetensors.torch.load_file(folder / "model.safetensors")
    held["lm_head.weight"] = held["transformer.wte.weight"].clone()
    safetensors.torch.save_file(held, folder / "model.safetensors")
    changed_config(folder, tie_word_embeddings=not untied)
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert (model.head.weight is not None) == untied
    convert_to_mindspore(folder, tmp_path / "x.ckpt")
    convert_to_hugging_face(tmp_path / "x.ckpt", tmp_path / "back")
    assert ("lm_head.weight" in safetensors.torch.load_file(tmp_path / "back/model.safetensors")) == untied
    assert json.loads((tmp_path / "back/config.json").read_text())["tie_word_embeddings"] == (not untied)


def test_an_untied_head_that_is_missing_is_not_made_up(folder, tmp_path):
    held = safetensors.torch.load_file(folder / "model.safetensors")
    del held["lm_head.weight"]
    safetensors.torch.save_file(held, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing in the file: head\.weight \[61, 12\]"):
        GPT2LMHeadModel.from_pretrained(folder)
    with pytest.raises(UserError, match="tie_word_embeddings is False, the weights have True"):
        convert_to_mindspore(folder, tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_a_classifier_leaves_the_head_out(folder, tmp_path):
    classifier = GPT2ForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert [name for name in classifier.parameters_dict() if "backbone" not in name] == ["score.weight"]
    classifier.save_pretrained(tmp_path / "classifier")
    again = GPT2ForSequenceClassification.from_pretrained(tmp_path / "classifier")
    np.testing.assert_array_equal(again(Tensor(IDS)).asnumpy(), classifier(Tensor(IDS)).asnumpy())


def test_counts_and_saved_folders(reference, folder, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(folder)
    count = sum(parameter.numel() for parameter in reference.parameters())
    assert model.num_parameters() == model.config.num_parameters() == count
    model.save_pretrained(tmp_path / "ours")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(again(Tensor(IDS)).asnumpy(), model(Tensor(IDS)).asnumpy())


def test_both_tables_are_resized(reference, folder):
    model = GPT2LMHeadModel.from_pretrained(folder, vocab_size=64, resize_embeddings=True)
    ours = model(Tensor(IDS)).asnumpy()
    np.testing.assert_allclose(ours[..., :61], logits_of(reference), atol=1e-4)
    mean = logits_of(reference).mean(-1, keepdims=True)
    np.testing.assert_allclose(ours[..., 61:], np.broadcast_to(mean, ours[..., 61:].shape), atol=0.1)


def test_a_new_model_draws_two_tables():
    model = GPT2LMHeadModel(GPT2Config(**SIZES, tie_word_embeddings=False, initializer_range=0.1))
    head, table = (
        model.parameters_dict()[name].asnumpy()
        for name in ("head.weight", "backbone.embedding.word_embedding.embedding_table")
    )
    assert head.std() == pytest.approx(0.1, rel=0.1) and np.abs(np.corrcoef(head.ravel(), table.ravel())[0, 1]) < 0.1
