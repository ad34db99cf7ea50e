"""What settings are allowed, what is said about refused ones, and that all three ways to give them agree."""

import json
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import GenerationSection
from mindgpt.config.model_sections import GPT2Section
from mindgpt.generation.settings import GenerationSettings
from tests import programs

NAN, INFINITE = float("nan"), float("inf")

OF_ONE_VALUE = {
    "max_new_tokens": (0, -1, 2.5, True, "7"),
    "max_length": (0, 2.5),
    "min_length": (-1, 0.5),
    "min_new_tokens": (-1, "2"),
    "eos_token_id": (-1, [], [3, -1], [[3]], 2.0, True),
    "stop_strings": ("", ["a", ""], [3], 3),
    "end_token": (-1, "", 2.0, True, [3]),
    "min_ends": (0, 1.5),
    "context_overflow": ("slid", True),
    "do_sample": ("yes", 1),
    "temperature": (0, 0.0, -1.0, INFINITE, NAN),
    "top_k": (0, -1, 2.5, True),
    "top_p": (0.0, -0.1, 1.1, NAN),
    "min_p": (-0.1, 1.1, NAN),
    "typical_p": (0.0, 1.1, NAN),
    "exclusive_filters": ("yes", 1),
    "seed": (-1, 0.5),
    "num_return_sequences": (0, 1.5),
    "num_beams": (0, -2),
    "length_penalty": (INFINITE, "1"),
    "early_stopping": ("always", 1, 2),
    "repetition_penalty": (0.0, -1.0, INFINITE),
    "presence_penalty": (NAN, "1"),
    "frequency_penalty": (INFINITE,),
    "no_repeat_ngram_size": (-1, 1.5),
    "bad_words_ids": ([3], [[]], [[3], [-1]], "bad", 3),
    "suppress_tokens": (3, [-1], [[3]]),
    "forced_bos_token_id": (-1, [3]),
    "forced_eos_token_id": (-1, []),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OF_ONE_VALUE for value in OF_ONE_VALUE[name]])
def test_values_that_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^generation: {name}(\.\d+)*: must be [^\n]*, not [^\n]*$"):
        GenerationSettings(**{name: value})


def test_every_setting_has_values_that_are_refused():
    assert set(OF_ONE_VALUE) == set(GenerationSettings.model_fields)


@pytest.mark.parametrize(
    ("changes", "named", "way_out"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences", "raise that, or ask for fewer"),
        ({"num_return_sequences": 3}, "num_return_sequences", "do_sample: True .* or num_beams: 3"),
        (
            {"num_return_sequences": 2, "do_sample": True, "exclusive_filters": True, "top_k": 1},
            "num_return_sequences",
            "another top_k than 1 to sample them, or num_beams: 2",
        ),
        ({"length_penalty": 2.0}, "length_penalty", "set num_beams to 2 or more"),
        ({"early_stopping": "never"}, "early_stopping", "set num_beams to 2 or more"),
        ({"min_length": 9, "max_length": 8}, "min_length", "9 is more than the greatest length, 8"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens", "9 is more than there may be, 8"),
        ({"min_new_tokens": 9, "max_length": 8}, "min_new_tokens", "9 is more than there may be, 8"),
        ({"eos_token_id": [1, 3], "bad_words_ids": [[2], [3]]}, "bad_words_ids", "suppress_tokens rules it out"),
        ({"exclusive_filters": True, "top_k": 5, "top_p": 0.5}, "top_p", "one of top_k and top_p, and top_k is 5"),
        ({"suppress_tokens": [3], "forced_bos_token_id": 3}, "forced_bos_token_id", "give one of them"),
        ({"suppress_tokens": [3, 4], "forced_eos_token_id": [4, 3]}, "forced_eos_token_id", "give one of them"),
    ],
    ids=str,
)
def test_contradictions_are_refused_with_the_way_out(changes, named, way_out):
    with pytest.raises(UserError, match=rf"^generation: {named}: [^\n]*{way_out}[^\n]*$"):
        GenerationSettings(**changes)
    config = {{"max_length": "max_decode_length"}.get(name, name): value for name, value in changes.items()}
    with pytest.raises(UserError, match=rf"^GPT2Config: {named}: [^\n]*{way_out}"):
        GPT2Config(**config)


def test_neighbours_of_the_contradictions_are_allowed():
    for changes in (
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -1.0, "early_stopping": True},
        {"num_return_sequences": 3, "do_sample": True},
        {"min_length": 8, "max_length": 8},
        {"min_length": 9, "max_length": 8, "max_new_tokens": 5},  # max_new_tokens goes before
        {"min_new_tokens": 8, "max_new_tokens": 8, "max_length": 3},
        {"eos_token_id": 3, "bad_words_ids": [[3, 2]]},
        {"suppress_tokens": [3], "forced_eos_token_id": [3, 4], "eos_token_id": 3},
        {"top_k": 5, "top_p": 0.5, "temperature": 2.0},  # in greedy: YAML of MindFormers has them
    ):
        GenerationSettings(**changes)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError) as error:
        GenerationSettings(top_k=0, top_p=2, temperature=0, bad_words_ids=[3])
    lines = str(error.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["bad_words_ids", "temperature", "top_k", "top_p"]
    assert "generation: top_k: must be 1 or more (to sample among all tokens, leave top_k out), not 0" in lines
    with pytest.raises(UserError) as error:
        GenerationSettings(num_return_sequences=2, early_stopping=True, min_length=3, max_length=2)
    assert len(str(error.value).splitlines()) == 3


def test_unknown_settings_are_refused_with_the_nearest_name():
    with pytest.raises(UserError) as error:
        GenerationSettings().changed(top_kk=1, max_tokens=3, beams=2)
    assert str(error.value).splitlines() == [
        "generation: top_kk: unknown key; did you mean 'top_k'?",
        "generation: max_tokens: unknown key; did you mean 'max_new_tokens'?",
        "generation: beams: unknown key; did you mean 'num_beams'?",
    ]


def test_numpy_values_tuples_and_none_are_as_good_as_pythons_own():
    given = GenerationSettings(
        max_new_tokens=np.int64(5),
        temperature=np.float32(0.5),
        do_sample=np.bool_(True),
        top_p=None,
        num_beams=None,
        eos_token_id=np.array([3, 4]),
        bad_words_ids=(np.array([1, 2]), [5]),
        suppress_tokens=(7,),
        stop_strings="\n",
    )
    plain = GenerationSettings(
        max_new_tokens=5,
        temperature=0.5,
        do_sample=True,
        eos_token_id=[3, 4],
        bad_words_ids=[[1, 2], [5]],
        suppress_tokens=[7],
        stop_strings=["\n"],
    )
    assert given == plain
    assert hash(given) == hash(plain)
    assert (given.eos_token_ids, given.bad_words_ids, given.stop_strings) == ((3, 4), ((1, 2), (5,)), ("\n",))
    assert (given.top_p, given.num_beams, type(given.max_new_tokens)) == (1.0, 1, int)
    assert GenerationSettings(eos_token_id=0).eos_token_ids == (0,)
    assert GenerationSettings().eos_token_ids == GenerationSettings().forced_eos_token_ids == ()


def test_ids_outside_the_vocabulary_are_refused():
    settings = GenerationSettings(eos_token_id=[3, 90], bad_words_ids=[[1, 99], [2]], forced_bos_token_id=89)
    settings.check_vocabulary(100)
    with pytest.raises(UserError) as error:
        settings.check_vocabulary(90)
    assert [line.split(" is ")[0] for line in str(error.value).splitlines()] == [
        "generation: eos_token_id: 90",
        "generation: bad_words_ids: 99",
    ]
    with pytest.raises(UserError, match="GPT2Config: suppress_tokens: 50 is outside the vocabulary"):
        GPT2Config(vocab_size=50, suppress_tokens=[49, 50])


OTHERS = {
    "eos_token_id": [3, 4],
    "max_new_tokens": 20,
    "min_length": 3,
    "min_new_tokens": 2,
    "stop_strings": ["\n"],
    "context_overflow": "slide",
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.8,
    "num_return_sequences": 2,
    "num_beams": 3,
    "length_penalty": 0.5,
    "early_stopping": "never",
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5], [6, 7]],
    "forced_bos_token_id": 8,
    "forced_eos_token_id": [4, 9],
    "suppress_tokens": [11],
}
"""For each key of the config a value that is not its default; but for `WITH_END_TOKEN`, which these exclude."""
WITH_END_TOKEN = {"end_token": "。", "min_ends": 2, "exclusive_filters": True}


def test_the_config_has_every_setting_and_changes_go_before_it():
    assert {*OTHERS, *WITH_END_TOKEN} == set(GenerationSection.model_fields)
    assert {*OTHERS, *WITH_END_TOKEN, "max_length", "seed"} == set(GenerationSettings.model_fields)
    config = GPT2Config(max_decode_length=100, **OTHERS)
    settings = GenerationSettings.from_config(config, seed=5)
    assert settings == GenerationSettings(max_length=100, seed=5, **OTHERS)
    untouched = GenerationSettings()
    of_beams = {*OTHERS, "max_length", "seed"}
    assert all(getattr(settings, name) != getattr(untouched, name) for name in of_beams)
    ending = GenerationSettings.from_config(GPT2Config(max_decode_length=100, min_length=3, **WITH_END_TOKEN))
    assert ending == GenerationSettings(max_length=100, min_length=3, **WITH_END_TOKEN)
    changed = GenerationSettings.from_config(config, max_length=50, top_k=9)
    assert (changed.max_length, changed.max_new_tokens, changed.top_k) == (50, None, 9)
    assert GenerationSettings.from_config(GPT2Config()) == untouched


def test_the_config_keeps_its_settings_on_disk(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = GPT2Config(vocab_size=30, hidden_size=8, num_layers=1, num_heads=1, **OTHERS)
    config.save_pretrained(tmp_path)
    assert GPT2Config.from_pretrained(tmp_path) == config
    ending = GPT2Config(**WITH_END_TOKEN)
    ending.save_pretrained(tmp_path / "ending")
    assert GPT2Config.from_pretrained(tmp_path / "ending") == ending
    assert transformers.GPT2Config.from_pretrained(tmp_path).eos_token_id == [3, 4]


def test_a_config_of_an_earlier_version_means_by_top_k_of_zero_that_there_is_none(tmp_path):
    file = GPT2Config().save_pretrained(tmp_path)
    content = json.loads(file.read_text())
    content["mindgpt"]["top_k"] = 0
    file.write_text(json.dumps(content))
    assert GPT2Config.from_pretrained(tmp_path) == GPT2Config()


def test_the_section_of_the_yaml_takes_the_same_words():
    keys = {"repetition_penalty": 1, "top_k": 5, "top_p": 1, "eos_token_id": 50256, "stop_strings": "end"}
    settings = GenerationSettings.from_config(GPT2Section.model_validate(keys))
    assert settings == GenerationSettings(top_k=5, eos_token_id=50256, stop_strings=["end"])
    with pytest.raises(ValidationError, match=r"minlen\n.*the name is min_new_tokens"):
        GPT2Section.model_validate({"minlen": 5})


def test_a_command_with_bad_settings_ends_with_one_clear_message(repo, tmp_path):
    options = ["--top_k", "0", "--options", "model.model_config.top_p=1.5", "model.model_config.num_beems=2"]
    command = [sys.executable, "run_mindformer.py", "--config", "configs/gpt2/pretrain_gpt2_quickstart.yaml"]
    command += ["--run_mode", "predict", "--predict_data", "hello", "--output_dir", str(tmp_path), *options]
    done = programs.run(command, repo)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and lines[0].startswith("error: ")
    for words in ("top_k: must be 1 or more", "top_p: must be at most 1, not 1.5", "did you mean 'num_beams'?"):
        assert sum(words in line for line in lines) == 1
