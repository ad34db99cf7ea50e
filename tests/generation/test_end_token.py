"""Texts that end with `end_token`: bert4keras's rules against a reference, choice by choice, and on a network."""

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings, Generator, engine
from mindgpt.generation.ends import with_ends
from mindgpt.generation.requests import random_streams
from mindgpt.generation.rules import warp
from mindgpt.generation.sampling import next_tokens
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from tests.generation.bert4keras_decoder import AutoRegressiveDecoder, kept_probabilities
from tests.tokenizers.test_all_kinds import sentencepiece_tokenizer

DRAWS, VOCAB, END = 20_000, 7, 3


# ---- which tokens are kept -------------------------------------------------------------------------------------------

CHOICES = [
    {},
    {"temperature": 0.6},
    {"topk": 4},
    {"topp": 0.65},
    {"topk": 4, "topp": 0.65},
    {"topk": 3, "topp": 0.95, "temperature": 1.7},
    {"topk": 99, "topp": 0.02},
]


def softmaxed(logits, settings):
    kept = warp(logits, settings).astype(np.float64)
    weights = np.exp(kept - kept.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_probabilities_to_sample_from_are_those_of_bert4keras(choice):
    logits = (np.random.default_rng(0).standard_normal((300, 50)) * 2).astype(np.float32)
    ours = softmaxed(logits, GenerationSettings(do_sample=True, **choice))
    reference = np.stack([kept_probabilities(row, **choice) for row in logits])
    assert ((ours > 0) == (reference > 0)).all()
    np.testing.assert_allclose(ours, reference, rtol=2e-6)


def test_top_p_is_of_what_top_k_has_left():
    """The head whose sum reaches p, of probabilities among the k likeliest; not of all, which would keep one more."""
    logits = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32))
    together = softmaxed(logits, GenerationSettings(do_sample=True, top_k=4, top_p=0.65))
    np.testing.assert_allclose(together, [[0.57142857, 0.42857143, 0, 0, 0]], rtol=1e-6)
    alone = softmaxed(logits, GenerationSettings(do_sample=True, top_p=0.65))
    assert (alone > 0).tolist() == [[True, True, False, False, False]]
    assert (softmaxed(logits, GenerationSettings(do_sample=True, top_k=4, top_p=0.72)) > 0).sum() == 2
    assert (softmaxed(logits, GenerationSettings(do_sample=True, top_p=0.72)) > 0).sum() == 3


@pytest.mark.parametrize("choice", [CHOICES[1], *CHOICES[4:6]], ids=str)
def test_draws_follow_the_distribution_of_bert4keras(choice, fits):
    """20,000, each from a random stream of its own, as the engine has them."""
    logits = np.random.default_rng(3).permutation(np.linspace(-1, 2, 12, dtype=np.float32))[None]
    settings = GenerationSettings(do_sample=True, end_token=END, min_length=9, max_length=9, **choice)
    streams = random_streams(4, None, DRAWS // 10, 10)
    tokens = next_tokens(np.repeat(logits, DRAWS, 0), [[2, END]] * DRAWS, [1] * DRAWS, [10] * DRAWS, settings, streams)
    counts = np.bincount(tokens, minlength=12)
    assert fits(counts, kept_probabilities(logits[0], **choice))
    assert not fits(counts, kept_probabilities(logits[0], **choice | {"temperature": 3}))
    assert counts[END] > 0 or kept_probabilities(logits[0], **choice)[END] == 0  # below min_length it is not ruled out


# ---- what ends a text, how long texts get, their order ---------------------------------------------------------------

PROMPT = [2, 5, END]


TABLE = np.random.default_rng(0).standard_normal((VOCAB, VOCAB, VOCAB)).astype(np.float32)
TABLE[:, :, END] += 0.8


def logits_after(prompt, new):
    """(V,) of a text: a table of the last two tokens, in which the end is likely."""
    before, last = [*prompt, *new][-2:]
    return TABLE[before, last]


class TableBatch:
    """What the engine calls a batch of texts with a network, here with `logits_after`."""

    def __init__(self, graphs, longest):
        self.longest = longest

    def prefill(self, texts, copies=1):
        self.texts = [list(text) for text in texts for _ in range(copies)]
        return np.stack([logits_after(text, []) for text in self.texts])

    def decode(self, numbers, texts):
        for number, text in zip(numbers, texts, strict=True):
            assert self.texts[number] == list(text[:-1])  # what the cache would hold
            self.texts[number] = list(text)
        return np.stack([logits_after(text, []) for text in texts])

    def reorder(self, numbers, sources):
        texts = [self.texts[source] for source in sources]
        for number, text in zip(numbers, texts, strict=True):
            self.texts[number] = text


@pytest.fixture
def by_table(monkeypatch):
    """The engine without a network."""
    monkeypatch.setattr(engine, "Batch", TableBatch)
    generator = Generator.__new__(Generator)
    generator.config = SimpleNamespace(vocab_size=VOCAB, max_position_embeddings=64)
    generator.graphs = SimpleNamespace(cells=[], are_current=lambda: True)
    generator._reserved = False
    return generator


RULES = [
    {"maxlen": 8},
    {"maxlen": 9, "minlen": 4},
    {"maxlen": 6, "minlen": 6},
    {"maxlen": 12, "min_ends": 3},
    {"maxlen": 12, "minlen": 5, "min_ends": 2, "topk": 4},
    {"maxlen": 10, "minlen": 3, "topk": 5, "topp": 0.8, "temperature": 1.4},
    {"maxlen": 1},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_texts_ends_lengths_and_order_are_those_of_bert4keras(by_table, rules):
    """With equal random numbers, of 20 prompts with 6 texts each: identical ids in identical order."""
    prompts = [[number % VOCAB, *PROMPT] for number in range(20)]
    settings = GenerationSettings(do_sample=True, n=6, end_id=END, seed=1, **rules)
    ours = by_table.generate(prompts, settings)
    rules = dict(rules)
    lengths = {name: rules.pop(name) for name in ("maxlen", "minlen") if name in rules}
    streams = random_streams(1, None, 20, 6)
    expected = []
    for number, prompt in enumerate(prompts):
        decoder = AutoRegressiveDecoder(logits_after, prompt, END, **lengths)
        own = [stream.random for stream in streams[number * 6 : number * 6 + 6]]
        expected += decoder.random_sample(own, **rules)
    assert ours == expected
    if lengths["maxlen"] > lengths.get("minlen", 1):
        assert len({len(row) for row in ours}) > 3
        assert any(
            len(a) > len(b) for a, b in zip(ours, by_table.generate(prompts, settings.changed(n=1)), strict=False)
        )
    if "minlen" in lengths:
        assert any(END in row[: lengths["minlen"] - 1] for row in ours)  # it is not ruled out before
    assert all(row[-1] == END or len(row) == lengths["maxlen"] for row in ours)


def texts_and_probabilities(decoder, min_ends, ids=()):
    """Every text that may come, and how likely it is."""
    if ids and (decoder.is_finished(list(ids), min_ends) or len(ids) == decoder.maxlen):
        return {tuple(ids): 1.0}
    kept = kept_probabilities(decoder.logits_of(decoder.prompt, list(ids)), topk=3)
    found = {}
    for token in np.flatnonzero(kept):
        rest = texts_and_probabilities(decoder, min_ends, (*ids, int(token)))
        found |= {text: kept[token] * probability for text, probability in rest.items()}
    return found


def test_whole_texts_follow_their_distribution(by_table, fits):
    """20,000 texts of up to 5 tokens, of which every one is known with its probability."""
    settings = GenerationSettings(
        do_sample=True, num_return_sequences=20, end_token=END, min_length=2, max_length=5, min_ends=2, top_k=3, seed=2
    )
    ours = by_table.generate([PROMPT] * (DRAWS // 20), settings)
    likely = texts_and_probabilities(AutoRegressiveDecoder(logits_after, PROMPT, END, 5, 2), min_ends=2)
    places = {text: place for place, text in enumerate(likely)}
    counts = np.bincount([places[tuple(row)] for row in ours], minlength=len(places))
    assert len(ours) == DRAWS and len(places) > 50 and len({len(text) for text in places}) == 3
    assert fits(counts, np.array(list(likely.values())))
    others = texts_and_probabilities(AutoRegressiveDecoder(logits_after, PROMPT, END, 5, 2), min_ends=1)
    assert not fits(counts, np.array([others.get(text, 0) for text in places]))


@pytest.mark.parametrize("rules", [{"maxlen": 9}, {"maxlen": 9, "minlen": 5}, {"maxlen": 12, "min_ends": 2}], ids=str)
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beam_search_is_that_of_bert4keras(by_table, rules, beams):
    prompts = [[first, *PROMPT[:1], last] for first in range(VOCAB) for last in range(VOCAB)]
    ours = by_table.generate(prompts, GenerationSettings(num_beams=beams, end_token=END, **rules))
    rules = dict(rules)
    min_ends = rules.pop("min_ends", 1)
    decoders = [AutoRegressiveDecoder(logits_after, prompt, END, **rules) for prompt in prompts]
    assert ours == [decoder.beam_search(beams, min_ends) for decoder in decoders]
    assert len({len(row) for row in ours}) > 1


# ---- on a network ----------------------------------------------------------------------------------------------------

SPACE = 32


def ended(row, end, least=1, min_ends=1):
    """The row up to where it ends."""
    for count in range(1, len(row) + 1):
        if row[count - 1] == end and count >= least and row[:count].count(end) >= min_ends:
            return row[:count]
    return row


@pytest.mark.parametrize(
    "sampled", [{}, {"do_sample": True, "seed": 5, "top_k": 20, "top_p": 0.95}], ids=["greedy", "sampled"]
)
def test_a_text_is_the_free_one_up_to_its_end(each_generator, prompts, sampled):
    """With a cache, in a batch and alone; `[0]` as the config's end of text, which ends nothing now."""
    prompts = prompts[:16]
    free = each_generator.generate(prompts, GenerationSettings(max_new_tokens=24, **sampled))
    for rules in ({}, {"min_length": 9}, {"min_new_tokens": 5, "min_ends": 3}):
        settings = GenerationSettings(end_token=SPACE, max_length=24, eos_token_id=[0, ord("e")], **rules, **sampled)
        least = max(rules.get("min_length", 1), rules.get("min_new_tokens", 1))
        ours = each_generator.generate(prompts, settings)
        assert ours == [ended(row, SPACE, least, rules.get("min_ends", 1)) for row in free]
        assert len({len(row) for row in ours}) > 2
        with closing(each_generator.stream([prompts[5]], settings, row_numbers=[5])) as steps:
            assert [token for ((_, token),) in steps] == ours[5]


def test_several_texts_come_as_they_end_whatever_the_batch(generator, prompts):
    rules = {"do_sample": True, "seed": 5, "num_return_sequences": 4}
    free = generator.generate(prompts[:4], GenerationSettings(max_new_tokens=24, **rules))
    settings = GenerationSettings(end_token=SPACE, min_length=3, max_length=24, **rules)
    ours = generator.generate(prompts[:4], settings)
    for number in range(4):
        own = [ended(row, SPACE, 3) for row in free[number * 4 : number * 4 + 4]]
        own.sort(key=lambda row: (len(row), row[-1] != SPACE))  # stable
        assert ours[number * 4 : number * 4 + 4] == own
        assert generator.generate([prompts[number]], settings, row_numbers=[number]) == own
    assert ours != [ended(row, SPACE, 3) for row in free]
    with pytest.raises(UserError, match=r"come in the order in which they end.*num_return_sequences to 1"):
        generator.generate(prompts[:1], settings, on_token=lambda row, token: None)


def test_lengths_count_new_tokens_up_to_the_context_length(generator, prompts):
    long = next(prompt for prompt in prompts if len(prompt) == 60)
    (row,) = generator.generate([long], GenerationSettings(end_token=255, max_length=30))
    assert len(row) == 30
    (row,) = generator.generate([long], GenerationSettings(end_token=255, max_length=90))
    assert len(row) == 96 - 60
    (row,) = generator.generate([long], GenerationSettings(end_token=255, max_length=40, context_overflow="slide"))
    assert len(row) == 40


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_ends": 2}, "min_ends: counts the end_token of a text: set end_token"),
        ({"end_token": 3, "min_length": 9, "max_length": 8}, "min_length: 9 is more than there may be, 8"),
        ({"end_token": 3, "min_length": 9, "max_new_tokens": 8}, "min_length: 9 is more than there may be, 8"),
        ({"end_token": 3, "min_ends": 9, "max_length": 8}, "min_ends: 9 is more than there may be, 8"),
        ({"end_token": 3, "suppress_tokens": [4, 3]}, "suppress_tokens: rules out the end_token, 3"),
        ({"end_token": 3, "bad_words_ids": [[4, 3], [3]]}, "bad_words_ids: rule out the end_token, 3"),
        ({"end_token": 3, "num_beams": 2, "do_sample": True}, "do_sample: not with end_token, .*leave do_sample out"),
        ({"end_token": 3, "num_beams": 2, "num_return_sequences": 2}, "num_return_sequences: not with end_token"),
        ({"end_token": 3, "num_beams": 2, "length_penalty": 0.5}, "length_penalty: not with end_token"),
        ({"end_token": 3, "num_return_sequences": 2}, "num_return_sequences: the likeliest tokens make one text"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=rf"^generation: {message}"):
        GenerationSettings(**settings)


def test_names_of_bert4keras_mean_ours():
    ours = {"end_token": 511, "min_new_tokens": 128, "max_new_tokens": 256, "top_k": 5, "top_p": 0.9}
    theirs = {"end_id": 511, "minlen": 128, "maxlen": 256, "topk": 5, "topp": 0.9, "n": 3}
    settings = GenerationSettings(do_sample=True, **theirs)
    assert settings == GenerationSettings(do_sample=True, num_return_sequences=3, **ours)
    assert GenerationSettings(do_sample=True, num_return_sequences=3).changed(**theirs | {"n": None}) == (
        GenerationSettings(do_sample=True, **ours)
    )
    with pytest.raises(UserError, match="topk: means the same as top_k, and has another value"):
        settings.changed(top_k=4, topk=5)
    with pytest.raises(UserError, match="end_token: means the same as end_id, and has another value"):
        settings.changed(end_id=3, end_token="。")
    with pytest.raises(UserError, match="generation: start_id: unknown key; a text begins with its prompt"):
        settings.changed(start_id=1)


def test_what_is_said_last_counts():
    settings = GenerationSettings(end_token="。", min_length=9, min_ends=2, eos_token_id=0)
    assert (settings.eos_token_ids, settings.least_new_tokens) == ((), 9)
    assert settings.changed(min_new_tokens=4).least_new_tokens == 4
    assert settings.changed(minlen=4, min_length=5).least_new_tokens == 5
    other = settings.changed(eos_token_id=7)
    assert (other.end_token, other.min_ends, other.eos_token_ids, other.min_length) == (None, 1, (7,), 9)
    assert settings.changed(end_token=5).end_token == 5
    with pytest.raises(UserError, match="eos_token_id: end_token ends a text instead of it; give one of the two"):
        settings.changed(end_token=5, eos_token_id=7)
    with pytest.raises(UserError, match="end_token: 30 is outside the vocabulary"):
        settings.changed(end_token=30).check_vocabulary(30)
    with pytest.raises(UserError, match="end_token: give the tokenizer=, too"):
        settings.check_vocabulary(30)
    assert with_ends(settings.changed(end_token=5), None) == settings.changed(end_token=5)


def test_an_end_by_its_text_in_vocabularies_of_other_kinds():
    bpe = GPT2Tokenizer.train(["a rose. A violet."] * 3, 270)
    assert with_ends(GenerationSettings(end_token="."), bpe).end_token == bpe.encode(".")[0]
    assert with_ends(GenerationSettings(end_token=bpe.eos_token), bpe).end_token == bpe.eos_token_id
    with pytest.raises(UserError, match=r"'。' must be one token; the tokenizer makes 3 of it: '.', '.', '.'\. Give"):
        with_ends(GenerationSettings(end_token="。"), bpe)
    sentencepiece = sentencepiece_tokenizer()
    assert len(sentencepiece.encode("，", add_special_tokens=False)) == 2  # a space comes first
    comma = with_ends(GenerationSettings(end_token="，"), sentencepiece).end_token
    assert sentencepiece.decode([comma]) == "，"
