"""Padding of a vocabulary: the padded model is the one without padding, in loss, gradients and texts; rows are added
and removed by one flag, and only padding is removed."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.padded_vocabulary import TOKENS, VocabularyRows, with_vocabulary
from mindgpt.checkpoints.transform import transform
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.models.gpt2.convert_weight import main as convert

pytestmark = pytest.mark.usefixtures("cpu", "unfused")

TOKEN_COUNT, ROWS = 41, 48
SIZES = {"vocab_size": TOKEN_COUNT, "hidden_size": 32, "num_layers": 1, "num_heads": 4, "seq_length": 16}
PADDED = {"vocab_size": ROWS, "unpadded_vocab_size": TOKEN_COUNT}
IDS = np.array([[1, 5, 40, 0, 7, 7, 20, 3], [9, 8, 7, 6, 5, 4, 3, 2]], np.int32)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    """A model whose logits are all far below 0, as GPT-2's are: a logit of 0 would take all of the probability."""
    path = tmp_path_factory.mktemp("model")
    tied = request.param
    model = GPT2LMHeadModel(
        GPT2Config(**SIZES, tie_word_embeddings=tied, hidden_dropout_rate=0.0, attention_dropout_rate=0.0)
    )
    draw = np.random.default_rng(1)
    for name, parameter in model.parameters_dict().items():
        values = 0.3 * draw.standard_normal(parameter.shape)
        if name in (TOKENS, "head.weight"):
            values += 1
        if name == "backbone.layernorm.beta":
            values -= 2
        parameter.set_data(Tensor(values.astype(np.float32)))
    model.save_pretrained(path)
    assert model.set_train(False)(Tensor(IDS)).asnumpy().max() < -20
    return path


@pytest.fixture(scope="module")
def models(folder):
    """The model, and the same with padding."""
    return GPT2LMHeadModel.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(folder, **PADDED)


def test_loss_and_gradients_are_those_without_padding(models):
    found = []
    for model in models:
        model.set_train(True)
        loss, gradients = ms.value_and_grad(model, None, model.trainable_params())(Tensor(IDS))
        named = zip(model.trainable_params(), gradients, strict=True)
        found.append((loss.asnumpy(), {parameter.name: value.asnumpy() for parameter, value in named}))
        model.set_train(False)
    (loss, gradients), (padded_loss, of_padded) = found
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
    assert gradients.keys() == of_padded.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(of_padded[name][: len(gradient)], gradient, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not of_padded[name][len(gradient) :].any(), f"{name}: padding has a gradient"


def test_padding_is_never_generated_and_changes_no_text(models):
    plain, padded = models
    np.testing.assert_allclose(
        padded(Tensor(IDS)).asnumpy()[..., :TOKEN_COUNT], plain(Tensor(IDS)).asnumpy(), rtol=1e-5
    )
    assert padded(Tensor(IDS)).asnumpy()[..., TOKEN_COUNT:].max() < -1e8
    for settings in (
        {},
        {"do_sample": True, "seed": 1, "temperature": 50.0, "top_k": None},
    ):
        texts = [model.generate(IDS[:, :4], max_new_tokens=8, **settings) for model in models]
        np.testing.assert_array_equal(texts[1].asnumpy(), texts[0].asnumpy())


def test_rows_are_added_and_removed_bit_for_bit(folder, tmp_path):
    source, config = open_weights(folder).source, open_weights(folder).config
    wider = with_vocabulary(source, config, ROWS)
    tables = [name for name in source.entries if name in (TOKENS, "head.weight")]
    assert wider.changed == tables
    for name in source.entries:
        array = wider.read(name)
        assert array.shape == wider.entries[name].shape
        assert array[: source.entries[name].shape[0]].tobytes() == source.read(name).tobytes()
        assert not array[source.entries[name].shape[0] :].any()
    back = VocabularyRows(wider, TOKEN_COUNT)
    assert back.entries == dict(source.entries)
    assert back.read(TOKENS).tobytes() == source.read(TOKENS).tobytes()


def test_the_converter_adds_and_removes_padding(folder, tmp_path):
    convert(["--reversed", "--mindspore_path", str(folder), "--torch_path", str(tmp_path / "hf"), "--vocab_size", "48"])
    content = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (content["vocab_size"], content["mindgpt"]["unpadded_vocab_size"]) == (ROWS, TOKEN_COUNT)
    padded = GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    assert padded.config.token_count == TOKEN_COUNT
    np.testing.assert_allclose(
        padded(Tensor(IDS)).asnumpy()[..., :TOKEN_COUNT],
        GPT2LMHeadModel.from_pretrained(folder)(Tensor(IDS)).asnumpy(),
        rtol=1e-5,
    )
    convert(
        ["--torch_path", str(tmp_path / "hf"), "--mindspore_path", str(tmp_path / "back.ckpt"), "--vocab_size", "41"]
    )
    back = CheckpointFile(tmp_path / "back.ckpt")
    source = open_weights(folder)
    assert GPT2Config.from_pretrained(tmp_path / "config.json") == source.config
    for name in source.source.entries:
        assert back.read(name).tobytes() == source.source.read(name).tobytes()


def checkpoint_with_state(folder, path, rows, state):
    """A run's checkpoint of the model with `rows` rows, and an entry of optimizer state for each weight."""
    source = VocabularyRows(open_weights(folder).source, rows)
    content = {name: source.read(name) for name in source.entries}
    for prefix in state:
        of = {name: np.abs(value) + (prefix == "adam_v.") for name, value in content.items() if "." in name}
        if "exp" in prefix:
            of = {name: value.mean(axis=0 if "col" in prefix else 1) for name, value in of.items() if value.ndim == 2}
        content |= {prefix + name: value for name, value in of.items() if skipless(name)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, content.items())
    GPT2Config(**{**open_weights(folder).config.model_dump(), "vocab_size": rows}).save_pretrained(path.parent)
    return path


def skipless(name):
    return not name.startswith(("adam", "exp"))


def test_a_checkpoint_loses_its_padding_with_its_optimizer_state(folder, tmp_path):
    states = ["adam_m.", "adam_v.", "exp_avg_sq_row_", "exp_avg_sq_col_"]
    whole = CheckpointFile(checkpoint_with_state(folder, tmp_path / "run" / "a.ckpt", ROWS, states))
    (file,) = transform(whole.path, tmp_path / "out", training_state=True, vocab_size=TOKEN_COUNT)
    result = CheckpointFile(file)
    assert result.entries.keys() == whole.entries.keys()
    for name in whole.entries:
        has_rows = name.endswith((TOKENS, "head.weight")) and "col" not in name
        expected = whole.read(name)[:TOKEN_COUNT] if has_rows else whole.read(name)
        np.testing.assert_array_equal(result.read(name), expected, err_msg=name)
    config = GPT2Config.from_pretrained(file.parent)
    assert (config.vocab_size, config.unpadded_vocab_size) == (TOKEN_COUNT, None)

    with pytest.raises(UserError, match="no means in the state of AdaFactor.*--no-training_state"):
        transform(file, tmp_path / "wider", training_state=True, vocab_size=ROWS)
    (file,) = transform(file, tmp_path / "wider", training_state=False, vocab_size=ROWS)
    assert CheckpointFile(file).read(TOKENS).tobytes() == whole.read(TOKENS).tobytes()
    config = GPT2Config.from_pretrained(file.parent)
    assert (config.vocab_size, config.unpadded_vocab_size) == (ROWS, TOKEN_COUNT)


def test_only_padding_is_removed(folder, tmp_path):
    with pytest.raises(UserError, match="--vocab_size 40: row 40 of .* is not zero.*Give at least 41"):
        transform(folder / "model.ckpt", tmp_path / "out", vocab_size=40)
    GPT2LMHeadModel.from_pretrained(folder, **PADDED).save_pretrained(tmp_path / "padded")
    with pytest.raises(UserError, match="its config has 41 tokens .*Give 41, or more"):
        transform(tmp_path / "padded" / "model.ckpt", tmp_path / "out", vocab_size=40)
    with pytest.raises(UserError, match="--vocab_size 0: must be at least 1"):
        transform(folder / "model.ckpt", tmp_path / "out", vocab_size=0)
    assert not (tmp_path / "out").exists()


def test_the_tokenizers_tokens_keep_their_rows(folder, tmp_path, gpt2_tokenizer_dir):
    model = GPT2LMHeadModel.from_pretrained(folder, **PADDED)
    model.save_pretrained(tmp_path)
    for file in gpt2_tokenizer_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="--vocab_size 41: the tokenizer in .* has 50257 tokens"):
        transform(tmp_path / "model.ckpt", tmp_path / "out", vocab_size=41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unpadded_vocab_size": 49, "vocab_size": 48}, "unpadded_vocab_size: 49 tokens need as many rows.* is 48"),
        ({"vocab_size": 48, "unpadded_vocab_size": 41, "eos_token_id": 44}, r"44 is outside .*\(unpadded_vocab_size\)"),
    ],
)
def test_a_config_has_a_row_for_every_token(changes, message):
    with pytest.raises(UserError, match=message):
        GPT2Config(**{**SIZES, **changes})
