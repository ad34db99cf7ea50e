"""GPT2Config: sizes against Hugging Face's own count, config.json both ways, and what it refuses."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.checkpoints.gpt2_config import GPT2Config, read_config
from mindgpt.config import UserError
from mindgpt.config.model_sections import GPT2Section

OPENAI_PARAMETERS = {"gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080}
OPENAI_PARAMETERS |= {"gpt2_small": 124_439_808, "gpt2_xl": 1_557_611_200}


def hugging_face_count(config: transformers.GPT2Config) -> int:
    """Parameters of transformers' model, the tied head once; on the meta device nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in transformers.GPT2LMHeadModel(config).parameters())


@pytest.mark.parametrize(("name", "count"), OPENAI_PARAMETERS.items())
def test_openai_sizes(name, count):
    assert GPT2Config.from_pretrained(name).num_parameters() == count


@pytest.mark.parametrize("name", ["gpt2_13b", "gpt2_52b"])
def test_large_presets_count_as_transformers_counts(name, tmp_path):
    config = GPT2Config.from_pretrained(name)
    config.save_pretrained(tmp_path)
    assert config.num_parameters() == hugging_face_count(transformers.GPT2Config.from_pretrained(tmp_path))
    assert (config.num_layers, config.hidden_size, config.max_position_embeddings) == {
        "gpt2_13b": (40, 5120, 2048),
        "gpt2_52b": (64, 8192, 1024),
    }[name]


sizes = st.fixed_dictionaries(
    {
        "num_heads": st.integers(1, 4),
        "head_size": st.integers(1, 9),
        "num_layers": st.integers(1, 3),
        "vocab_size": st.integers(2, 60_000),
        "max_position_embeddings": st.integers(1, 40),
        "ffn_hidden_size": st.none() | st.integers(1, 50),
        "hidden_act": st.sampled_from(["gelu", "gelu_erf", "fast_gelu", "relu", "silu"]),
        "layernorm_epsilon": st.floats(1e-12, 1e-3),
        "hidden_dropout_rate": st.floats(0, 0.9),
        "embedding_dropout_rate": st.none() | st.floats(0, 0.9),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_labels": st.integers(1, 5),
        "eos_token_id": st.none() | st.integers(0, 1),
        "compute_dtype": st.sampled_from(["float32", "float16", "bfloat16"]),
        "temperature": st.floats(0.1, 3),
        "pet_config": st.none() | st.just({"lora_rank": 3}),
    }
)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_config_json_is_read_back_here_and_by_transformers(tmp_path_factory, values):
    head_size = values.pop("head_size")
    config = GPT2Config(hidden_size=values["num_heads"] * head_size, **values)
    folder = tmp_path_factory.mktemp("config")
    assert config.save_pretrained(folder) == folder / "config.json"
    assert GPT2Config.from_pretrained(folder) == config
    assert GPT2Config.from_pretrained(folder / "config.json") == config
    theirs = transformers.GPT2Config.from_pretrained(folder)
    assert hugging_face_count(theirs) == config.num_parameters()
    assert (theirs.n_embd, theirs.n_layer, theirs.n_head) == (config.hidden_size, config.num_layers, config.num_heads)
    assert (theirs.n_positions, theirs.vocab_size) == (config.max_position_embeddings, config.vocab_size)
    assert (theirs.resid_pdrop, theirs.embd_pdrop) == (config.hidden_dropout_rate, config.embedding_dropout_rate)
    assert (theirs.layer_norm_epsilon, theirs.num_labels) == (config.layernorm_epsilon, config.num_labels)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (config.eos_token_id, None)
    assert theirs.tie_word_embeddings == config.tie_word_embeddings
    assert config.head_size == head_size


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"])
def test_activation_computes_the_same_there_and_back(tmp_path, name):
    """The name may change on the way through GPT2Config, the function may not."""
    (tmp_path / "in").mkdir()
    transformers.GPT2Config(activation_function=name).save_pretrained(tmp_path / "in")
    GPT2Config.from_pretrained(tmp_path / "in").save_pretrained(tmp_path / "out")
    back = transformers.GPT2Config.from_pretrained(tmp_path / "out").activation_function
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(transformers.activations.ACT2FN[back](x), transformers.activations.ACT2FN[name](x))


def test_config_saved_by_transformers(tmp_path):
    transformers.GPT2Config(
        vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=3, n_inner=40, num_labels=3, attn_pdrop=0.25
    ).save_pretrained(tmp_path)
    config = GPT2Config.from_pretrained(tmp_path)
    assert (config.vocab_size, config.seq_length, config.hidden_size, config.num_layers) == (96, 32, 24, 2)
    assert (config.num_heads, config.ffn_hidden_size, config.num_labels) == (3, 40, 3)
    assert (config.attention_dropout_rate, config.eos_token_id, config.hidden_act) == (0.25, None, "gelu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "model_type: must be 'gpt2' or 'gpt2_ml', not 'bert'"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be True or False, not 'no'"),
        ({"add_cross_attention": True}, "add_cross_attention: must be False, not True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: the weights are quantised"),
        ({"n_head": 5}, "n_embd: 24 must be divisible by num_heads, which is 5"),
        ({"vocab_size": "96"}, "vocab_size: must be a whole number, not '96'"),
        ({"activation_function": "mish"}, "activation_function: must be one of gelu, "),
        ({"num_attention_heads": 4}, "num_attention_heads: "),
        ({"position_embedding_type": "rotary"}, "position_embedding_type: 'rotary' asks for another network"),
        ({"rope_theta": 10000.0}, "rope_theta: 10000.0 asks for another network than GPT-2"),
        ({"num_key_value_heads": 1}, "num_key_value_heads: 1 asks"),
        ({"multi_query": True}, "multi_query: True asks"),
        ({"num_local_experts": 8}, "num_local_experts: 8 asks"),
        ({"alibi": True}, "alibi: True asks"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 asks"),
        ({"use_parallel_residual": True}, "use_parallel_residual: True asks"),
        ({"mindgpt": 3}, "mindgpt: must be an object, not 3"),
    ],
)
def test_config_json_of_another_network_is_refused(tmp_path, change, words):
    content = {"model_type": "gpt2", "vocab_size": 96, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content | change))
    with pytest.raises(UserError) as caught:
        GPT2Config.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{file}: {words}")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"model_type": "gpt2",}'])
def test_broken_config_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'gpt2_xl'"):
        GPT2Config.from_pretrained("gpt2-xl")
    with pytest.raises(UserError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)


def test_unknown_keywords_are_refused_with_the_nearest():
    with pytest.raises(UserError) as caught:
        GPT2Config(embed_size=32, n_layers=2)
    assert str(caught.value).splitlines()[0].startswith("GPT2Config: embed_size: unknown key; ")
    assert str(caught.value).splitlines()[1] == "GPT2Config: n_layers: unknown key; did you mean 'num_layers'?"


def test_changes_replace_what_is_found_in_either_spelling(tmp_path):
    assert GPT2Config.from_pretrained("gpt2_medium", n_layer=2).num_layers == 2
    GPT2Config(hidden_size=24, num_heads=2).save_pretrained(tmp_path)
    changed = GPT2Config.from_pretrained(tmp_path, hidden_size=48, compute_dtype="float16")
    assert (changed.hidden_size, changed.ffn_hidden_size, changed.compute_dtype) == (48, 192, "float16")


def test_from_section():
    section = GPT2Section(n_embd=24, num_heads=2, ffn_hidden_size=50, pet_config={"lora_rank": 2})
    config = GPT2Config.from_section(section)
    assert isinstance(config, GPT2Config)
    assert config.model_dump() == section.model_dump()


def test_saving_to_an_invalid_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        GPT2Config().save_pretrained(tmp_path / "file")


SMALL = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"eos_token_id": [5, 6], "max_length": 33}, {"eos_token_id": (5, 6), "max_decode_length": 33}),
        ({"do_sample": True, "temperature": 0.7, "top_p": None}, {"do_sample": True, "temperature": 0.7, "top_p": 1.0}),
        ({"top_k": 0, "length_penalty": 0.5, "num_beams": 1}, {"top_k": None, "length_penalty": 1.0}),
        ({"length_penalty": 0.5, "num_beams": 2}, {"num_beams": 2, "length_penalty": 0.5}),
        ({"eos_token_id": 50256, "pad_token_id": 7}, {"eos_token_id": 3, "pad_token_id": 7}),  # outside: transformers'
        ({"guidance_scale": 2.0, "transformers_version": "5"}, {"eos_token_id": 3}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_precedence_of_generation_config_and_changes(tmp_path, asked, expected):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"eos_token_id": 3, "mindgpt": {"top_k": None}}))
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    config = GPT2Config.from_pretrained(tmp_path)
    assert {key: getattr(config, key) for key in expected} == expected
    assert GPT2Config.from_pretrained(tmp_path / "config.json") == config
    assert GPT2Config.from_pretrained(tmp_path, eos_token_id=4, max_decode_length=9).eos_token_id == 4
    config.save_pretrained(tmp_path / "again")
    assert GPT2Config.from_pretrained(tmp_path / "again") == config


# What is found in downloaded folders (field reports R2, R3, R16 to R18): opened if the numbers are unambiguous.
FOUND = [
    ({"_attn_implementation_autoset": True, "auto_map": {"AutoModel": "x.Y"}, "n_inner": None}, {}, {}, []),
    ({"n_haed": 4, "new_of_v6": "x"}, {}, {"num_heads": 2}, ["mindgpt has no n_haed, new_of_v6: left out"]),
    ({"hidden_act": "relu", "layernorm_epsilon": 0.5}, {}, {"hidden_act": "gelu", "layernorm_epsilon": 1e-5},
     ["hidden_act, layernorm_epsilon: left out, as transformers does it"]),
    ({"activation_function": "gelu_python", "n_layer": 1.0, "pruned_heads": [], "mindgpt": None, "eos_token_id": []},
     {}, {"hidden_act": "gelu_erf", "num_layers": 1, "eos_token_id": None}, []),
    ({"_sliding_window_pattern": 3, "_experts_implementation": "eager"}, {}, {}, []),
    ({"use_new": False, "new_size": 0}, {}, {}, []),
    ({"position_embedding_type": "absolute", "num_key_value_heads": 2, "multi_query": False, "rope_theta": None,
      "num_experts": 1, "sliding_window": None, "num_attention_heads": 2}, {}, {"num_heads": 2}, []),
    ({"n_head": None, "num_attention_heads": 4}, {}, {"num_heads": 4}, []),
    ({"eos_token_id": [3, 96]}, {}, {"eos_token_id": (3,)}, ["eos_token_id [3, 96] is no id of the 96 tokens"]),
    ({"bos_token_id": "<s>"}, {}, {"bos_token_id": None}, ["bos_token_id '<s>' is no id of the 96 tokens"]),
    ({"initializer_range": 0.0}, {}, {"initializer_range": 0.02}, ["initializer_range 0 would make"]),
    ({"id2label": {"0": "a", "1": "a", "2": "b"}}, {}, {"num_labels": 3, "label_names": None}, ["the names are left"]),
    ({"id2label": {"1": "a", "2": "b"}}, {}, {"num_labels": 2}, ["does not give each number from 0 a name"]),
    ({"n_ctx": 64}, {}, {"seq_length": 32}, ["n_ctx 64 is longer than n_positions 32, and left out"]),
    ({"n_ctx": 16}, {}, {"seq_length": 16, "max_position_embeddings": 32}, []),
    ({"pad_token_id": 96}, {}, {"pad_token_id": None}, ["pad_token_id 96 is no id of the 96 tokens, and left out"]),
    ({"pad_token_id": -1}, {}, {"pad_token_id": None}, ["pad_token_id -1 is no id of the 96 tokens"]),
    ({"eos_token_id": 96}, {}, {"eos_token_id": None}, ["eos_token_id 96 is no id of the 96 tokens"]),
    ({"eos_token_id": 50256, "bos_token_id": 50256}, {}, {"eos_token_id": None, "bos_token_id": None},
     ["bos_token_id and eos_token_id 50256, transformers' default, is no id of the 96 tokens, and left out"]),
    ({}, {"eos_token_id": 50256, "bos_token_id": 50256}, {"eos_token_id": None},
     ["generation_config.json: eos_token_id 50256, transformers' default, is no id"]),
    ({}, {"pad_token_id": 95, "eos_token_id": 95}, {"pad_token_id": 95, "eos_token_id": 95}, []),
    ({}, {"pad_token_id": -1}, {"pad_token_id": None}, ["generation_config.json: pad_token_id: must be"]),
    ({}, {"eos_token_id": 96}, {"eos_token_id": None}, ["eos_token_id: 96 is outside the vocabulary, whose size"]),
    ({}, {"temperature": 0.0, "do_sample": False}, {"temperature": 1.0}, ["temperature: must be above 0"]),
    ({}, {"top_p": 3, "top_k": 7}, {"top_p": 1.0, "top_k": 7}, ["top_p: must be at most 1, not 3: left out"]),
    ({}, {"num_return_sequences": 3}, {"num_return_sequences": 1}, ["num_return_sequences: the likeliest"]),
    ({"eos_token_id": 3}, {"eos_token_id": [5, 99], "bad_words_ids": [[6], [99]]}, {"eos_token_id": (5,)},
     ["eos_token_id: [5, 99] holds ids", "bad_words_ids: [[6], [99]] holds ids"]),
    ({}, {"max_length": -3}, {"max_decode_length": None}, ["generation_config.json: max_length: must be"]),
    ({}, {"min_length": 50, "max_length": 20}, {"min_length": 0, "max_decode_length": 20}, ["min_length: 50 is more"]),
    ({}, {"watermarking_config": {"a": 1}}, {}, ["mindgpt has no watermarking_config: left out"]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "generation", "expected", "notes"), FOUND)
def test_downloaded_configs_are_opened_with_notes(tmp_path, config, generation, expected, notes):
    sizes = {"vocab_size": 96, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes | config))
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found, said = read_config(tmp_path)
    assert {key: getattr(found, key) for key in expected} == expected
    assert len(said) == len(notes), said
    assert all(note in line for note, line in zip(notes, said, strict=True)), said


def test_a_vocabulary_that_was_extended_keeps_its_new_ids(tmp_path):
    """`[PAD]` was added to GPT-2: 50257 is an id of its 50258 tokens, in both files."""
    ids = {"pad_token_id": 50257, "eos_token_id": 50257, "bos_token_id": 50256}
    sizes = {"vocab_size": 50258, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes | ids))
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    found, said = read_config(tmp_path)
    assert said == []
    assert {key: getattr(found, key) for key in ids} == ids


def test_a_users_own_values_are_checked_strictly():
    for wrong in ({"pad_token_id": 50257}, {"n_ctx": 64, "n_positions": 32}, {"temperature": 0.0}, {"n_haed": 4}):
        with pytest.raises(UserError):
            GPT2Config(**wrong)
