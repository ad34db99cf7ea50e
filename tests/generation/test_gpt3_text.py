"""Texts of ModelScope's GPT-3: the pipeline, `run_mode: predict` and `generate` against its rules on a reference
network.

Source of the rules: `models/nlp/gpt3/distributed_gpt3.py`, whose loop and filters are Megatron-LM's.
"""

import json
import re
import sys

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models

import mindgpt
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings
from mindgpt.generation.requests import random_streams
from mindgpt.generation.rules import warp
from mindgpt.generation.text_generation import check_tokenizer_fits
from mindgpt.tasks.main import main
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests.checkpoints.megatron_models import (
    BASE,
    EPS,
    HEADS,
    PARALLEL,
    F,
    H,
    L,
    P,
    V,
    convert,
    logits,
    ranks_of,
    state,
    write_base,
    write_ranks,
)

pytest.importorskip("jieba")
pytestmark = pytest.mark.usefixtures("cpu", "unfused")

CHARACTERS = list("天地人日月山水风云雨雪花草木鸟鱼虫春夏秋冬东西南北上下左右")
SEP, EOD, SEED = 31, 32, 3
PROMPTS = ["天 地", "日", "山", "水 风", "鸟", "雪", "上 下", "左"]
SETTINGS = [
    {}, {"top_k": 5}, {"top_k": 1, "top_p": 0.0}, {"top_p": 0.4}, {"top_p": 0.0, "temperature": 0.7},
    {"top_k": 0, "max_length": 7}, {"top_k": 8, "temperature": 2.0, "max_new_tokens": 5},
]  # fmt: skip


def leaning(layout, token, by):
    """Weights whose last layer norm leans towards a token, so that some texts end with it and some do not."""
    held = state(layout)
    table = next(tensor for name, tensor in held.items() if name.endswith("word_embeddings.weight"))
    norm = next(name for name in held if name.endswith("final_layernorm.bias"))
    held[norm] += by * table[token] / table[token].norm()
    return held


@pytest.fixture(scope="module")
def held():
    return leaning("parallel", SEP, -1.0)  # without, all texts end with it


@pytest.fixture(scope="module")
def folder(held, tmp_path_factory):
    """ModelScope's, of two ranks: 64 rows, 35 tokens."""
    words = ["[UNK]", " ", *CHARACTERS]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.add_special_tokens(["<sep>", "<|endoftext|>"])
    backend.add_tokens([AddedToken("\n", normalized=False)])
    backend.decoder = decoders.Fuse()
    assert (backend.token_to_id("<sep>"), backend.token_to_id("<|endoftext|>")) == (SEP, EOD)
    folder = write_ranks(tmp_path_factory.mktemp("gpt3") / "x", ranks_of(held, 2), PARALLEL | {"eod_id": EOD})
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def generate(folder):
    return mindgpt.pipeline("text-generation", model=folder)


def filtered(scores, top_k=0, top_p=0.9):
    """ModelScope's filter of (V,) float32; it takes one of the two."""
    assert not (top_k and top_p)
    if top_k:
        return np.where(scores < np.sort(scores)[-top_k], -np.inf, scores)
    if top_p:
        order = np.argsort(-scores, kind="stable")
        exponentials = np.exp(scores[order].astype(np.float64) - scores.max())
        removed = np.cumsum(exponentials / exponentials.sum()) > top_p
        removed[1:] = removed[:-1].copy()  # the token that crosses top_p stays
        removed[0] = False
        scores = scores.copy()
        scores[order[removed]] = -np.inf
    return scores


def sampled(next_scores, prompt, stream, limit, top_k=0, top_p=0.9, temperature=1.0):
    """All ids that ModelScope's loop makes, which no `<sep>` ends."""
    ids = list(prompt)
    while len(ids) < limit and (len(ids) == len(prompt) or ids[-1] != EOD):
        scores, uniform = next_scores(ids), stream.random()
        if top_k == 1:
            ids.append(int(scores.argmax()))
            continue
        scores = filtered(scores / np.float32(temperature), top_k, top_p)
        cumulative = np.cumsum(np.exp(scores.astype(np.float64) - scores.max()))
        ids.append(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")))
    return ids


def scores_of(held):
    return lambda ids: logits([held], torch.tensor([ids]))[0, -1].numpy()


def expected(held, tokenizer, given):
    """For each prompt the new ids up to the end that ModelScope shows, and its answer."""
    known = {name: given[name] for name in ("top_k", "top_p", "temperature") if name in given}
    if known.get("top_k"):
        known.setdefault("top_p", 0.0)  # or ModelScope fails
    done = []
    for prompt, stream in zip(PROMPTS, random_streams(SEED, None, len(PROMPTS), 1), strict=True):
        ids = tokenizer.encode(prompt)
        limit = given.get("max_length", len(ids) + given.get("max_new_tokens", 100))
        new = sampled(scores_of(held), ids, stream, min(limit, P), **known)[len(ids) :]
        if SEP in new:
            new = new[: new.index(SEP) + 1]
        text = "".join(tokenizer.convert_ids_to_tokens(number) or "" for number in new if number not in (SEP, EOD))
        done.append((new, prompt + text))
    return done


# ---- 1.3B and up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_texts_are_those_of_modelscope(held, generate, given):
    wanted = expected(held, generate.tokenizer, given)
    found = generate(PROMPTS, seed=SEED, **given)
    assert [one["generated_text"] for (one,) in found] == [text for _, text in wanted]
    ids = [generate.tokenizer.encode(prompt) for prompt in PROMPTS]
    found = generate.model.generate(ids, seed=SEED, **given)
    assert found == [own + new for own, (new, _) in zip(ids, wanted, strict=True)]
    assert "".join(generate.stream(PROMPTS[0], seed=SEED, **given)) == wanted[0][1].removeprefix(PROMPTS[0])


def test_texts_end_in_every_way(held, generate):
    ends = [new[-1] for given in SETTINGS for new, _ in expected(held, generate.tokenizer, given)]
    others = [end for end in ends if end not in (SEP, EOD)]
    assert min(ends.count(SEP), ends.count(EOD), len(others)) > 4


@pytest.mark.parametrize(
    ("made", "options", "given"),
    [
        ("folder", ["top_k=5"], {"top_k": 5}),
        ("ckpt", [], {}),
        ("huggingface", ["max_length=7", "top_p=0.4"], {"max_length": 7, "top_p": 0.4}),
    ],
)
def test_predict_has_the_defaults_of_config_json(
    held, folder, generate, tmp_path, monkeypatch, capsys, made, options, given
):
    """Of ModelScope's folder, and of what it is converted to."""
    weights = folder
    if made != "folder":
        weights = tmp_path / "out" / ("x.ckpt" if made == "ckpt" else "")
        weights.parent.mkdir(exist_ok=True)
        convert(folder, weights)
    sizes = {"vocab_size": V, "seq_length": P, "hidden_size": H, "num_layers": L, "num_heads": HEADS}
    sizes |= {"ffn_hidden_size": F, "layernorm_epsilon": EPS}
    (tmp_path / "x.yaml").write_text(
        json.dumps({"run_mode": "predict", "seed": SEED, "model": {"model_config": sizes}})
    )
    monkeypatch.chdir(tmp_path)
    words = ["--config", "x.yaml", "--load_checkpoint", weights, "--predict_data", *PROMPTS]
    more = ["--options", *(f"model.model_config.{option}" for option in options)] if options else []
    monkeypatch.setattr(sys, "argv", ["run_mindformer.py", *map(str, [*words, *more])])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    records = [json.loads(line) for line in (tmp_path / "output/predictions.jsonl").read_text("utf-8").splitlines()]
    assert [one["generated_text"] for one in records] == [text for _, text in expected(held, generate.tokenizer, given)]
    assert "<sep>" not in capsys.readouterr().out.split(">>>", 1)[1]


def test_an_end_of_the_caller_replaces_both_and_the_tokenizer_adds_its_own(generate):
    config = generate.model.config
    assert config.eos_token_id == (EOD, SEP)
    (alone,) = generate("天 地", seed=SEED, eos_token_id=2, suppress_tokens=[n for n in range(V) if n != SEP])
    assert alone["generated_text"] == "天 地" + "<sep>" * (P - 3)
    for ends in (EOD, None):  # as of weights without a tokenizer.json, and of a model that was trained here
        (one,) = generate("天 地", seed=SEED, eos_token_id=ends, suppress_tokens=[n for n in range(V) if n != SEP])
        assert one["generated_text"] == "天 地"


def test_lengths_and_filters_that_cannot_be(generate):
    with pytest.raises(UserError, match="has 3 tokens, and max_length, 3, counts them"):
        generate("天 地", max_length=3)
    with pytest.raises(UserError, match="top_p: 0.9: exclusive_filters allows one of top_k and top_p, and top_k is 5"):
        generate("天 地", top_k=5, top_p=0.9)
    with pytest.raises(UserError, match="tokens_to_generate: .* the name is max_new_tokens"):
        generate("天 地", tokens_to_generate=5)


@pytest.mark.parametrize("given", [{"top_k": 5}, {"top_p": 0.5}, {"top_p": 0.03}, {"top_k": 0, "top_p": 0.9}], ids=str)
def test_filters_on_fixed_logits(given):
    scores = np.random.default_rng(0).normal(0, 3, (200, 50)).astype(np.float32)
    before = GenerationSettings(do_sample=True, exclusive_filters=True, temperature=0.6, top_p=0.9)
    of_modelscope = given | ({"top_p": 0.0} if given.get("top_k") else {})
    wanted = np.stack([filtered(row / np.float32(0.6), **of_modelscope) for row in scores])
    np.testing.assert_array_equal(warp(scores, before.changed(**given)), wanted)


def test_a_filter_replaces_the_other_and_both_ways():
    settings = GenerationSettings(do_sample=True, exclusive_filters=True, top_p=0.9)
    assert (settings.changed(top_k=5).top_k, settings.changed(top_k=5).top_p) == (5, 1.0)
    assert (settings.changed(top_k=5).changed(top_p=0.5).top_k, settings.changed(top_k=0).top_p) == (None, 0.9)
    assert settings.changed(top_p=0.0).top_p == 1.0
    greedy = settings.changed(do_sample=False)  # the config's top_p is not the caller's
    assert not greedy.unused_sampling_settings() and not greedy.samples
    assert [*settings.changed(do_sample=False, top_p=0.5).unused_sampling_settings().values()] == [["top_p"]]
    assert not settings.changed(top_k=1).samples and settings.changed(top_k=2).samples
    plain = GenerationSettings(do_sample=True, top_p=0.9).changed(top_k=1)
    assert (plain.top_p, plain.samples) == (0.9, True)  # transformers applies both
    with pytest.raises(UserError, match="top_k: must be 1 or more"):
        plain.changed(top_k=0)


# ---- base and large --------------------------------------------------------------------------------------------------


def without_spaces(text):
    """ModelScope's clean-up of base and large: no space between words of Chinese and punctuation alone."""
    words = text.split(" ")
    joined = words[0]
    for before, word in zip(words, words[1:], strict=False):
        chinese = all(re.fullmatch(r"[\u4e00-\u9fff，。！？、!-/:-@]+", one) for one in (before, word))
        joined += word if chinese else f" {word}"
    return joined


def test_base_and_large(tmp_path):
    vocabulary = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "，", "。", *CHARACTERS]
    sep, special = 4, [0, 1, 2, 3, 5, *range(len(vocabulary), V)]
    held = leaning("base", sep, 1.5)
    folder = write_base(tmp_path / "x", held, BASE)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    generate = mindgpt.pipeline("text-generation", model=folder)
    assert (generate.model.config.max_new_tokens, generate.model.config.exclusive_filters) == (100, True)
    found = generate(["天地", "日月，山"], seed=SEED, suppress_tokens=special)
    ended = []
    for number, (prompt, stream) in enumerate(zip(["天地", "日月，山"], random_streams(SEED, None, 2, 1), strict=True)):

        def next_scores(ids):
            scores = logits([held], torch.tensor([ids]), gelu="none")[0, -1].numpy()
            scores[special] = -np.inf
            return scores

        ids = sampled(next_scores, [3, *map(vocabulary.index, prompt)], stream, P)[1:]
        ended.append(sep in ids)
        ids = ids[: ids.index(sep)] if sep in ids else ids
        assert found[number][0]["generated_text"] == without_spaces(" ".join(vocabulary[i] for i in ids))
    assert any(ended)


def test_padded_tables(tmp_path, generate):
    (tmp_path / "vocab.txt").write_text(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "".join(f"t{n}\n" for n in range(7995))
    )
    tokenizer = WordPieceTokenizer.from_pretrained(tmp_path)
    for rows in (8000, 9024, 9984):  # 9984 = 78 * 128
        check_tokenizer_fits(tokenizer, rows)
    for rows in (7999, 9025, 9983, 10112):
        with pytest.raises(UserError, match="they do not belong together"):
            check_tokenizer_fits(tokenizer, rows)
    check_tokenizer_fits(generate.tokenizer, 25600)
    with pytest.raises(UserError, match="they do not belong together"):
        check_tokenizer_fits(generate.tokenizer, 33)


def test_the_separator_is_read_where_the_tokenizer_is(folder, tmp_path):
    copy = write_ranks(tmp_path / "x", ranks_of(state(), 2), PARALLEL | {"eod_id": EOD})
    assert open_weights(copy).config.eos_token_id == EOD
    (copy / "tokenizer.json").write_text("{broken")
    assert open_weights(copy).config.eos_token_id == EOD
    (copy / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert open_weights(copy).config.eos_token_id == (EOD, SEP)
