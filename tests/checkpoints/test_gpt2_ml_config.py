"""The config and the vocabulary of a GPT2_ML: every form, every place, and what does not belong to the weights."""

import json

import numpy as np
import pytest

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.gpt2_ml_config import config_of_gpt2_ml, port_json, read_ml_config
from mindgpt.checkpoints.gpt2_ml_names import tensorflow_table
from mindgpt.checkpoints.gpt2_ml_views import GPT2MLView
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.config.errors import UserError
from tests.checkpoints.gpt2_ml_files import (
    CONFIG,
    JSON,
    PORT_JSON,
    TOKENS,
    WEIGHTS,
    convert,
    refused,
    write_model,
    write_vocabulary,
)


class Shapes:
    """A source of the sizes that are given, none of whose tensors is read."""

    def __init__(self, path, **sizes):
        self.path = path
        sizes = {"V": 60, "P": 24, "H": 32, "F": 128, "L": 2, **sizes}
        self.entries = {
            row.name: TensorInfo(tuple(sizes[letter] for letter in row.shape), "float32")
            for row in tensorflow_table(sizes["L"])
        }


def found(folder, *arguments, **sizes):
    return config_of_gpt2_ml(GPT2MLView(Shapes(folder / "model.ckpt-7.index", **sizes)), *arguments)


def write(file, content):
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("name", ["mega.json", "large.json", "config.json", "model.ckpt-7.config.json"])
def test_a_config_beside_the_weights(tmp_path, name):
    write(tmp_path / name, JSON)
    write(tmp_path / "tokenizer_config.json", {"do_lower_case": True})
    (tmp_path / "broken.json").write_text("{")
    config, notes, assumed, *_ = found(tmp_path)
    expected = CONFIG.replaced(
        {"hidden_dropout_rate": 0.1, "initializer_range": 0.014142135623731, "prompt_special_tokens": "none"}
    )
    assert config == expected and config.attention_dropout_rate == config.embedding_dropout_rate == 0
    assert config.hidden_act == "gelu_erf" and config.num_heads == 4 and assumed == ()
    (note,) = notes
    assert name in note and "attention_probs_dropout_prob 0.1 is left out" in note


def test_which_config_is_taken(tmp_path):
    """The weights' own, then config.json, then the only other."""
    for heads, name in ((2, "mega.json"), (8, "config.json"), (16, "model.ckpt-7.config.json")):
        write(tmp_path / name, JSON | {"num_attention_heads": heads})
        assert found(tmp_path).config.num_heads == heads
    assert found(tmp_path, str(tmp_path / "mega.json")).config.num_heads == 2
    assert found(tmp_path, str(tmp_path)).config.num_heads == 8


def test_several_that_may_be_it(tmp_path):
    for name in ("mega.json", "large.json"):
        write(tmp_path / name, JSON)
    with pytest.raises(UserError, match=r"holds several configs \(large.json, mega.json\). Rename the one"):
        found(tmp_path)
    assert found(tmp_path, str(tmp_path / "mega.json")).config.num_layers == 2


def test_other_keys_are_named_and_left_out(tmp_path):
    write(tmp_path / "config.json", JSON | {"type_vocab_size": 2, "attention_probs_dropout_prob": 0.0})
    assert found(tmp_path).notes == [f"{tmp_path / 'config.json'}: mindgpt has no type_vocab_size: left out"]


def test_keys_that_the_weights_tell_may_be_missing(tmp_path):
    """bert4keras's config.json may have fewer; heads and activation have no other source."""
    few = {key: JSON[key] for key in ("num_attention_heads", "num_hidden_layers", "hidden_act", "hidden_size")}
    write(tmp_path / "config.json", few)
    config = found(tmp_path, F=96).config
    assert (config.vocab_size, config.ffn_hidden_size, config.max_position_embeddings) == (60, 96, 24)
    assert (config.hidden_dropout_rate, config.initializer_range) == (0.1, 0.02)


def test_the_form_of_the_port(tmp_path):
    """The port drops embeddings and attention weights, as its config says."""
    write(tmp_path / "mega.json", PORT_JSON)
    config, notes, *_ = found(tmp_path)
    rates = (config.embedding_dropout_rate, config.hidden_dropout_rate, config.attention_dropout_rate)
    assert rates == (0.1, 0.1, 0.1) and config.hidden_act == "gelu_erf" and notes == []
    assert (config.variant, config.num_heads, config.initializer_range) == ("gpt2_ml", 4, 0.014142135623731)
    write(tmp_path / "config.json", {**PORT_JSON, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    assert found(tmp_path).config == config
    assert port_json(config, tmp_path).items() >= PORT_JSON.items()
    write(tmp_path / "config.json", port_json(config, tmp_path))
    assert found(tmp_path).config == config


def test_our_form(tmp_path):
    ours = CONFIG.replaced({"num_heads": 8, "attention_dropout_rate": 0.2, "max_new_tokens": 7})
    ours.save_pretrained(tmp_path)
    config, notes, *_ = found(tmp_path)
    assert config == ours and notes == []
    assert read_ml_config(tmp_path)[0] == ours and read_ml_config(tmp_path, num_heads=2)[0].num_heads == 2


def test_a_config_of_ours_for_a_gpt2(tmp_path):
    CONFIG.replaced({"variant": "gpt2"}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="variant is gpt2, the weights are those of a GPT2_ML"):
        found(tmp_path)


def test_without_config(tmp_path):
    config, (note,), assumed, _, _ = found(tmp_path, H=128, F=512)
    assert (config.num_heads, assumed) == (2, ("num_heads",))
    assert "2 heads are assumed, of 64 values as in all published sizes" in note
    assert (config.hidden_dropout_rate, config.attention_dropout_rate, config.embedding_dropout_rate) == (0.1, 0, 0)
    assert config.variant == "gpt2_ml" and config.prompt_special_tokens == "none"
    assert found(tmp_path, None, None, 8).config.num_heads == 8
    unknown = found(tmp_path)  # 32 is no multiple of 64
    assert unknown.config is None and unknown.without_heads.num_layers == 2


def test_the_number_of_heads_is_asked_for(tmp_path):
    prefix = write_model(tmp_path / "tf", None)
    assert "Pass --num_heads" in refused(prefix, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"from_pretrained\(.*num_heads=\.\.\.\)"):
        GPT2LMHeadModel.from_pretrained(prefix)
    convert(prefix, tmp_path / "x.ckpt", "--num_heads", 4)
    assert read_ml_config(tmp_path)[0].num_heads == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 50}, "vocab_size is 50, the weights have 60"),
        ({"vocab_size": 70}, "vocab_size is 70, the weights have 60"),
        ({"num_hidden_layers": 24}, "num_layers is 24, the weights have 2"),
        ({"intermediate_size": 64}, "ffn_hidden_size is 64, the weights have 128"),
        ({"max_position_embeddings": 512}, "max_position_embeddings is 512, the weights have 24"),
        ({"num_attention_heads": 5}, "hidden_size: 32 must be divisible by num_heads, which is 5"),
        ({"hidden_act": "tanh"}, "activation_function: must be one of"),
        ({"model_type": "bert"}, "model_type: must be 'gpt2' or 'gpt2_ml', not 'bert'"),
    ],
)
def test_configs_of_other_weights(tmp_path, change, says):
    file = write(tmp_path / "mega.json", JSON | change)
    with pytest.raises(UserError) as raised:
        found(tmp_path)
    assert says in str(raised.value) and str(file) in str(raised.value)


def test_configs_that_cannot_be_read(tmp_path):
    for content, says in (("{", "not valid JSON"), ("[1]", "must hold a JSON object"), ("{}", "num_layers is 12")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=says):
            found(tmp_path)
    with pytest.raises(UserError, match="is neither a file, nor a folder, nor the name of a preset"):
        found(tmp_path, "no/such.json")
    with pytest.raises(UserError, match="num_heads is 4, and --num_heads 8"):
        write(tmp_path / "config.json", JSON)
        found(tmp_path, None, None, 8)


@pytest.mark.parametrize(("lines", "fits"), [(58, True), (60, True), (61, False), (30, False)])
def test_a_vocabulary_and_the_rows_of_the_table(tmp_path, monkeypatch, lines, fits):
    """Rows after the vocabulary, but no more than padding needs, and no fewer than it has tokens."""
    monkeypatch.setattr("mindgpt.checkpoints.gpt2_ml_config.MOST_PADDING", 8)
    write(tmp_path / "mega.json", JSON)
    tokens = [*TOKENS, "more", "and more", "most"][:lines]
    for named in (None, write_vocabulary(tmp_path, tokens), tmp_path):
        if fits:
            assert found(tmp_path, None, named).vocabulary == tmp_path / "vocab.txt"
        else:
            with pytest.raises(UserError, match=f"vocab.txt: has {lines} tokens, and .*model.ckpt-7.index has 60"):
                found(tmp_path, None, named)


@pytest.mark.parametrize(
    ("vocabulary", "rows", "config", "parameters"),
    [
        ("google_zh_vocab.txt", 21130, "mega-bert-tok.json", 1_393_944_576),
        ("clue-vocab.txt", 8021, "mega.json", 1_373_809_152),
        ("clue-vocab.txt", 21130, "mega-bert-tok.json", None),
        ("google_zh_vocab.txt", 8021, "mega.json", None),
        ("google_zh_vocab.txt", 21130, "mega.json", None),
    ],
)
def test_the_published_models(tmp_path, shared_data, vocabulary, rows, config, parameters):
    """The model of 15 GB has 21130 rows for 21128 tokens, that of 30 GB 8021 of both. GPT2_ML's mega.json is of the
    second."""
    folder = shared_data / ("zh" if "google" in vocabulary else "gpt2_ml")
    arguments = (str(shared_data / "gpt2_ml" / config), folder / vocabulary)
    sizes = {"V": rows, "P": 1024, "H": 1536, "F": 6144, "L": 48}
    if parameters is not None:
        assert found(tmp_path, *arguments, **sizes).config.num_parameters() == parameters
        assert found(tmp_path, **sizes).config.num_heads == 24  # from the width alone
        return
    with pytest.raises(UserError) as raised:
        found(tmp_path, *arguments, **sizes)
    lines = 21128 if "google" in vocabulary else 8021
    wrong_vocabulary = f"{vocabulary}: has {lines} tokens, and {tmp_path}/model.ckpt-7.index has {rows}"
    fits = lines <= rows <= lines + 1024
    says = "mega.json does not describe these weights: vocab_size is 8021, the weights have 21130"
    assert (says if fits else wrong_vocabulary) in str(raised.value)


def test_the_form_of_gpt2_ml_without_weights_is_no_gpt2(tmp_path):
    file = write(tmp_path / "mega.json", JSON)
    with pytest.raises(UserError, match=r"mega.json: is a config in the form of GPT2_ML .*variant='gpt2_ml'"):
        GPT2Config.from_pretrained(file)
    write(file, {key: value for key, value in JSON.items() if key != "intermediate_size"} | {"n_inner": 128})
    assert GPT2Config.from_pretrained(file).num_layers == 2  # names that transformers takes for a GPT-2, too


def test_a_file_of_uers_is_refused(tmp_path):
    write(tmp_path / "config.json", {"layers_num": 2, "heads_num": 4, "feedforward_size": 128})
    with pytest.raises(UserError, match="is a config of UER-py or TencentPretrain"):
        found(tmp_path)


def test_all_names_that_do_not_fit_are_listed(tmp_path):
    weights = {name: array for name, array in WEIGHTS.items() if name != "newslm/layer01/output/bias"}
    weights["newslm/layer01/attention/kernel"] = np.ones((2, 2), np.float32)
    message = refused(write_model(tmp_path / "tf", weights=weights), tmp_path / "x.ckpt")
    assert message.splitlines() == [
        f"{tmp_path}/tf/model.ckpt-100000.index: not the weights of a GPT2_ML:",
        "  missing: newslm/layer01/output/bias",
        "  unknown: newslm/layer01/attention/kernel [2, 2]",
    ]
