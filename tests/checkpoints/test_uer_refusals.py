"""Configs, vocabularies and files beside or instead of UER-py's weights: what is accepted, and what is refused."""

import os

import pytest
import torch
import transformers

from mindgpt import GPT2LMHeadModel
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from tests.checkpoints.uer_models import JSON, TOKENS, H, P, V, convert, refused, state, write_model

BEFORE_2021 = {key: JSON[key] for key in list(JSON)[:8]}
IN_WORDS = JSON | {"embedding": "word_pos", "target": "lm"}


@pytest.mark.parametrize("config", [BEFORE_2021, IN_WORDS])
def test_older_configs(tmp_path, config):
    weights = open_weights(write_model(tmp_path / "a", state("old"), config))
    assert weights.config == open_weights(write_model(tmp_path / "b", state())).config
    notes = " ".join(weights.notes)
    assert ("does not say embedding, remove_embedding_layernorm, encoder, mask" in notes) == (config is BEFORE_2021)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask": "fully_visible"}, "mask is 'fully_visible', a GPT-2 has 'causal'"),
        ({"layernorm_positioning": "post"}, "layernorm_positioning is 'post'"),
        ({"embedding": ["word", "pos", "seg"]}, "embedding is"),
        ({"feed_forward": "gated"}, "feed_forward is 'gated', which makes another network"),
        ({"layers_num": 12}, "layers_num is 12, the weights have 2"),
        ({"max_seq_length": 512}, "max_seq_length is 512, the weights have 16"),
        ({"heads_num": 5}, "heads_num is 5, and must be a number that divides 12"),
        ({"hidden_act": "linear"}, "hidden_act is 'linear', and must be one of gelu, gelu_fast, relu, silu"),
    ],
)
def test_configs_of_other_models(tmp_path, change, says):
    file = write_model(tmp_path, state(), JSON | change)
    assert says in refused(tmp_path, file, tmp_path / "x.ckpt")


def test_the_number_of_heads_is_asked_for(tmp_path):
    file = write_model(tmp_path, state(), None)
    assert open_weights(file).config is None  # 12 / 64 is no number of heads
    assert "Pass --num_heads" in refused(tmp_path, file, tmp_path / "x.ckpt")
    assert "num_heads" in refused(tmp_path, file, tmp_path / "x.ckpt", "--num_heads", 0)
    with pytest.raises(UserError, match=r"from_pretrained\(.*num_heads=\.\.\.\)"):
        GPT2LMHeadModel.from_pretrained(file)
    assert GPT2LMHeadModel.from_pretrained(file, num_heads=3).config.num_heads == 3
    convert(file, tmp_path / "x.ckpt", "--num_heads", 3)
    assert open_weights(tmp_path / "x.ckpt").config.num_heads == 3


def test_a_vocabulary_of_another_size(tmp_path):
    file = write_model(tmp_path, state())
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert "has 2 tokens, and" in (message := refused(tmp_path, file, tmp_path / "x.ckpt"))
    assert message.count("\n") == 0
    with pytest.raises(UserError, match="has 2 tokens"):
        open_weights(file)
    (tmp_path / "vocab.txt").write_bytes("\n".join(["[PAD]", *("很" * V)]).encode("gbk"))
    assert "not UTF-8" in refused(tmp_path, file, tmp_path / "x.ckpt")
    (tmp_path / "gbk.txt").write_text("汉语词典的编码方式\n" * 8, encoding="gb18030")
    message = refused(tmp_path, file, tmp_path / "x.ckpt", "--vocab", tmp_path / "gbk.txt")
    assert "gbk.txt:1: not UTF-8" in message and "iconv -f GB18030" in message


OTHER_MODELS = {
    "BERT": {"embedding.segment_embedding.weight": (3, H), "target.mlm_linear_1.weight": (H, H)},
    "BERT of UER-py": {"embedding.seg.embedding.weight": (3, H), "target.mlm.linear_2.bias": (V,)},
    "T5": {"tgt_embedding.word.embedding.weight": (V, H), "decoder.layer_norm.weight": (H,)},
    "a T5": {"shared.weight": (V, H), "encoder.block.0.layer.0.SelfAttention.q.weight": (H, H)},
    "a BERT": {"bert.embeddings.word_embeddings.weight": (V, H)},
    "head has a bias": {"target.lm.output_layer.bias": (V,)},
    "layer norm after the embeddings": {"embedding.layer_norm.gamma": (H,)},
    "for classification": {"output_layer_1.weight": (H, H)},
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_are_named(tmp_path, name):
    own = {} if name in ("a T5", "a BERT") else state()
    file = write_model(tmp_path, own | {key: torch.ones(shape) for key, shape in OTHER_MODELS[name].items()})
    message = refused(tmp_path, file, tmp_path / "x.ckpt")
    assert name.removesuffix(" of UER-py") in message and message.count("\n") == 0
    assert "not the weights of a GPT-2, but of" in message


def test_all_problems_of_names_are_listed(tmp_path):
    held = state("old")
    del held["encoder.layer_norm.beta"]
    held["encoder.transformer.0.extra"] = torch.ones(2)
    held["encoder.transformer.1.feed_forward.linear_1.weight"] = torch.ones(H, 20)
    message = refused(tmp_path, write_model(tmp_path, held), tmp_path / "x.ckpt")
    assert sorted(message.splitlines()[1:]) == [
        "  missing: encoder.layer_norm.beta",
        "  unknown: encoder.transformer.0.extra [2]",
        "  wrong shape: encoder.transformer.1.feed_forward.linear_1.weight is [12, 20], expected [20, 12] "
        "from the other weights",
    ]


def test_a_named_vocabulary_replaces_the_tokenizer_beside_the_weights(tmp_path, capsys):
    """Files of another tokenizer would take precedence over the vocab.txt in the new folder."""
    file = write_model(tmp_path / "a", state())
    (tmp_path / "a" / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "a" / "merges.txt").write_text("#version: 0.2\n")
    vocabulary = (tmp_path / "a" / "vocab.txt").rename(tmp_path / "named.txt")
    convert(file, tmp_path / "hf", "--vocab", vocabulary)
    assert sorted(os.listdir(tmp_path / "hf")) == [
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"
    ]  # fmt: skip
    assert f"{vocabulary} is named as the vocabulary" in capsys.readouterr().out
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").convert_tokens_to_ids("[CLS]") == 2


@pytest.mark.parametrize(("lines", "fits"), [(V, True), (V - 1, True), (V + 1, False), (2, False)])
def test_a_vocabulary_beside_weights_of_hugging_face(tmp_path, monkeypatch, lines, fits):
    """Tables often have rows after the vocabulary, but no more than padding needs, and no fewer than it has tokens."""
    monkeypatch.setattr("mindgpt.checkpoints.conversion_files.MOST_PADDING", 4)
    sizes = {"n_embd": H, "n_layer": 1, "n_head": 3, "vocab_size": V, "n_positions": P}
    folder = tmp_path / "hf"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=2, eos_token_id=3)).save_pretrained(
        folder
    )
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in [*TOKENS, "more"][:lines]))
    if fits:
        convert(folder, tmp_path / "out" / "x.ckpt")
        assert (tmp_path / "out" / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    else:
        message = refused(tmp_path, folder, tmp_path / "x.ckpt")
        assert f"vocab.txt: has {lines} tokens" in message and f"{V} rows" in message and "\n" not in message
