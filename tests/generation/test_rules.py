"""Every rule against the logits processor of the same name in transformers, and their order against its own list.

Both get float32 logits, as in use. What both leave of them is the same to 1e-6, and so is what they rule out. There are
two exceptions, which tests below pin down token by token:
- top-p and typical compare a sum of probabilities with a bar. That of transformers is a float32 softmax, off by up to
  1e-6, over 50,257 tokens 1e-5; where the exact sum is no further from the bar, its rounding decides (`undecided`).
- Of equally likely tokens of which top-p needs only some, transformers keeps those which `torch.sort`, that is not
  stable, has put last. Ours keeps all of them.
"""

import itertools
import warnings
from collections import Counter

import numpy as np
import pytest

from mindgpt.generation import rules
from mindgpt.generation.sampling import sample
from mindgpt.generation.settings import GenerationSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB_OF_GPT2 = 50257


def some_logits(kind, rows=5, vocab=1000, seed=0):
    """float32, without equals but for the kind "ties", and a few that are chance in the kind "far"."""
    random = np.random.default_rng([seed, vocab])
    logits = random.standard_normal((rows, vocab))
    if kind == "flat":
        logits *= 0.02
    elif kind == "peaked":
        logits[np.arange(rows), random.integers(0, vocab, rows)] += 15
    elif kind == "steep":
        logits *= 5
    elif kind == "far":  # from 0, as those of GPT-2 are
        logits = 3 * logits - 80
    elif kind == "ties":
        logits = np.round(logits * 2) / 2
    elif kind == "ruled out":
        logits[random.random((rows, vocab)) < 0.7] = -np.inf
    return logits.astype(np.float32)


KINDS = ("plain", "flat", "peaked", "steep", "far", "ruled out")
SHAPES = ((1, 7), (5, 130), (5, 1000), (3, 2500))


def cases(*kinds):
    """(kind, logits) of several shapes."""
    for seed, (shape, kind) in enumerate(itertools.product(SHAPES, kinds or KINDS)):
        logits = some_logits(kind, *shape, seed)
        if (logits > -np.inf).any(axis=-1).all():
            yield kind, logits


def some_texts(rows, vocab, length, seed=0):
    """(rows, length) ids of a small part of the vocabulary, so that they repeat."""
    return np.random.default_rng(seed).integers(0, min(vocab, 6), (rows, length))


def processed(processor, logits, texts=None, dtype=np.float32):
    ids = torch.zeros((len(logits), 1), dtype=torch.long) if texts is None else torch.tensor(texts)
    return processor(ids, torch.tensor(logits.astype(dtype))).numpy()


def assert_same(ours, theirs, undecided=None):
    """The same tokens ruled out, but for those of `undecided`, and what is left within 1e-6 * max(1, |logit|)."""
    assert ours.dtype == np.float32
    differing = np.isneginf(ours) != np.isneginf(theirs)
    assert not (differing if undecided is None else differing & ~undecided).any()
    left = ~np.isneginf(ours) & ~np.isneginf(theirs)
    assert (np.abs(ours[left].astype(np.float64) - theirs[left]) <= 1e-6 * np.maximum(1, np.abs(theirs[left]))).all()


def probabilities_of(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def before(keys, probabilities, margin=0.0):
    """For each token, the probability of those whose key is lower than its own, by more than `margin`."""
    sums = np.empty_like(probabilities)
    for row, key, probability in zip(sums, keys, probabilities, strict=True):
        order = np.argsort(key)
        gathered = np.concatenate([[0], np.cumsum(probability[order])])
        row[:] = gathered[np.searchsorted(key[order], key - margin)]
    return sums


def undecided_by_top_p(logits, p, rounding=1e-6):
    """(rows, V) bool: tokens that are in or out by less than `rounding`, or by the order in which equals are sorted."""
    probabilities = probabilities_of(logits)
    likelier = before(-logits.astype(np.float64), probabilities)
    likelier_or_equal = 1 - before(logits.astype(np.float64), probabilities) - probabilities  # itself aside
    return (likelier_or_equal >= p - rounding) & (likelier < p + rounding)


def undecided_by_typical(logits, mass, rounding=1e-6):
    """The same for typical; here the distances from the entropy, too, are off by a few `rounding`."""
    probabilities = probabilities_of(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(probabilities)
        entropy = np.where(probabilities > 0, probabilities * information, 0).sum(axis=-1, keepdims=True)
    distances = np.where(probabilities > 0, np.abs(information - entropy), 1e9)
    equals = before(distances, probabilities, -1e-12) - before(distances, probabilities)
    nearer_or_so = before(distances, probabilities, -4 * rounding) - equals
    return (nearer_or_so >= mass - rounding) & (before(distances, probabilities, 4 * rounding) < mass + rounding)


def assert_pure(rule, logits, *arguments):
    """The rule leaves its argument alone, and treats each row as if it were alone. `arguments` are not per row."""
    before = logits.copy()
    together = rule(logits, *arguments)
    np.testing.assert_array_equal(logits, before)
    for row in range(len(logits)):
        np.testing.assert_array_equal(rule(logits[row : row + 1], *arguments)[0], together[row])


@pytest.mark.parametrize("k", [1, 2, 5, 50, 999, 1000, 3000])
@pytest.mark.parametrize("least", [1, 3])
def test_top_k_equals_transformers(k, least):
    for _, logits in cases(*KINDS, "ties"):
        processor = transformers.TopKLogitsWarper(k, min_tokens_to_keep=least)
        assert_same(rules.keep_top_k(logits, max(k, least)), processed(processor, logits))
    assert_pure(rules.keep_top_k, logits, k)


def test_top_k_keeps_all_that_equal_the_kth():
    logits = np.array([[1, 3, 2, 2, 2, 0]], np.float32)
    assert np.isfinite(rules.keep_top_k(logits, 2)).tolist() == [[False, True, True, True, True, False]]


@pytest.mark.parametrize("p", [1e-5, 0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("least", [1, 3])
def test_top_p_equals_transformers(p, least):
    rows_with_undecided = []
    for _, logits in cases():
        undecided = undecided_by_top_p(logits, p)
        rows_with_undecided += undecided.any(axis=-1).tolist()
        processor = transformers.TopPLogitsWarper(p, min_tokens_to_keep=least)
        assert_same(rules.keep_top_p(logits, p, least), processed(processor, logits), undecided)
    assert np.mean(rows_with_undecided) < 0.15
    assert_pure(rules.keep_top_p, logits, p, least)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.95])
def test_of_equals_top_p_keeps_all_where_transformers_keeps_some(p):
    """It keeps all that transformers keeps, and beyond these only such as are equal to its last."""
    for _, logits in cases("ties"):
        ours = rules.keep_top_p(logits, p)
        theirs = processed(transformers.TopPLogitsWarper(p), logits)
        assert_same(ours, theirs, undecided_by_top_p(logits, p))
        assert not (np.isfinite(theirs) & ~np.isfinite(ours)).any()
        lowest = np.where(np.isfinite(theirs), logits, np.inf).min(axis=-1, keepdims=True)
        np.testing.assert_array_equal(np.isfinite(ours), logits >= lowest)


def test_which_equals_transformers_keeps_is_no_rule():
    """Neither the first nor the last of them, so there is nothing to follow. If this fails, `torch.sort` has become
    stable, and `keep_top_p` can keep the same ones."""
    logits = some_logits("ties")
    theirs = processed(transformers.TopPLogitsWarper(0.5), logits)
    for row, left in zip(logits, theirs, strict=True):
        equals = np.flatnonzero(row == left[np.isfinite(left)].min())
        kept = np.flatnonzero(np.isfinite(left[equals])).tolist()
        assert 0 < len(kept) < len(equals)
        assert kept not in (list(range(len(kept))), list(range(len(equals) - len(kept), len(equals))))


def test_top_p_keeps_the_token_that_crosses_p():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    kept = [int(np.isfinite(rules.keep_top_p(logits, p)).sum()) for p in (0.4, 0.6, 0.79, 0.81, 0.94, 0.96, 1.0)]
    assert kept == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("min_p", [0.0, 1e-4, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("least", [1, 3])
def test_min_p_equals_transformers(min_p, least):
    for _, logits in cases():
        processor = transformers.MinPLogitsWarper(min_p, min_tokens_to_keep=least)
        assert_same(rules.keep_min_p(logits, min_p, least), processed(processor, logits))
    assert_pure(rules.keep_min_p, logits, min_p, least)


@pytest.mark.parametrize("min_p", [1e-4, 0.01, 0.05, 0.3, 0.7])
def test_min_p_next_to_its_bar(min_p):
    """Logits around -80 come in steps of 7.6e-6, which is a difference in probability that transformers can tell."""
    bar = np.array(np.log(min_p) - 80, np.float32)
    steps = (bar.view(np.int32) + np.arange(-3, 4, dtype=np.int32)).view(np.float32)
    logits = np.concatenate([steps, [-80, -90]]).astype(np.float32)[None]
    ours = rules.keep_min_p(logits, min_p)
    assert_same(ours, processed(transformers.MinPLogitsWarper(min_p), logits))
    assert 1 < np.isfinite(ours).sum() < 8


def test_min_p_keeps_all_equals():
    for _, logits in cases("ties"):
        assert_same(rules.keep_min_p(logits, 0.21), processed(transformers.MinPLogitsWarper(0.21), logits))


@pytest.mark.parametrize("mass", [0.01, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("least", [1, 3])
def test_typical_equals_transformers(mass, least):
    rows_with_undecided = []
    processor = transformers.TypicalLogitsWarper(mass, min_tokens_to_keep=least)
    for _, logits in cases(*KINDS, *["ties"] * (least == 1)):  # of equals it may take any to fill up the least number
        undecided = undecided_by_typical(logits, mass)
        rows_with_undecided += undecided.any(axis=-1).tolist()
        ours = rules.keep_typical(logits, mass, least)
        assert_same(ours, processed(processor, logits), undecided)
        assert_same(ours, processed(processor, logits, dtype=np.float64))  # whose roundings are too small to be met
    assert np.mean(rows_with_undecided) < 0.15
    assert_pure(rules.keep_typical, logits, mass, least)


@pytest.mark.parametrize("kind", ["plain", "peaked", "steep", "far"])
def test_a_vocabulary_of_50257(kind):
    logits = some_logits(kind, 3, VOCAB_OF_GPT2)
    nothing = np.zeros_like(logits, np.bool_)
    triples = [
        (rules.keep_top_k(logits, 50), transformers.TopKLogitsWarper(50), nothing),
        (rules.keep_top_k(logits, 20000), transformers.TopKLogitsWarper(20000), nothing),
        (rules.keep_min_p(logits, 0.05), transformers.MinPLogitsWarper(0.05), nothing),
        (rules.keep_top_p(logits, 0.9), transformers.TopPLogitsWarper(0.9), undecided_by_top_p(logits, 0.9, 1e-5)),
        (
            rules.keep_typical(logits, 0.9),
            transformers.TypicalLogitsWarper(0.9),
            undecided_by_typical(logits, 0.9, 1e-5),
        ),
    ]
    for ours, processor, undecided in triples:
        assert_same(ours, processed(processor, logits), undecided)
        assert undecided.sum(axis=-1).max() <= 20  # tokens, of 50,257
    for ours, processor, _ in triples if kind != "far" else []:  # in which there are equals
        assert_same(ours, processed(processor, logits, dtype=np.float64))


@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_temperature_equals_transformers(temperature):
    settings = GenerationSettings(temperature=temperature)
    for _, logits in cases():
        assert_same(rules.warp(logits, settings), processed(transformers.TemperatureLogitsWarper(temperature), logits))


@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    for _, logits in cases():
        texts = some_texts(*logits.shape, 30)  # tokens that occur many times are penalised once
        before = logits.copy()
        assert_same(rules.penalise_repetition(logits, texts.tolist(), penalty), processed(processor, logits, texts))
        np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.3), (1.5, 0.25), (-0.5, -0.1)])
def test_presence_and_frequency_penalty_follow_openais_formula(presence, frequency):
    for _, logits in cases():
        texts = some_texts(*logits.shape, 12).tolist()
        settings = GenerationSettings(presence_penalty=presence, frequency_penalty=frequency)
        expected = logits.astype(np.float64)
        for row, text in enumerate(texts):
            for token, count in Counter(text[4:]).items():  # the prompt, four tokens, does not count
                expected[row, token] += -count * frequency - float(count > 0) * presence
        rows = len(logits)
        assert_same(rules.process(logits, texts, [4] * rows, [99] * rows, settings), expected)
        np.testing.assert_array_equal(rules.process(logits, texts, [12] * rows, [99] * rows, settings), logits)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_repeat_ngram_equals_transformers(size):
    processor = transformers.NoRepeatNGramLogitsProcessor(size)
    found = 0
    for (_, logits), length in itertools.product(cases(), (1, size - 1 or 1, size, 20, 500)):
        texts = some_texts(*logits.shape, length, seed=length)
        ours = rules.ban_repeated_ngrams(logits, texts.tolist(), size)
        assert_same(ours, processed(processor, logits, texts))
        found += (np.isneginf(ours) & ~np.isneginf(logits)).sum()
    assert found


@pytest.mark.parametrize(
    "words",
    [
        [[3]],
        [[0], [5], [1, 2]],
        [[1, 2], [1, 3], [2, 3], [1, 2, 3], [4, 4, 4, 0], [0, 1], [2, 2], [5, 0]],
        [list(pair) for pair in itertools.product(range(6), range(6))],
    ],
)
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_bad_words_equal_transformers(words, length):
    found = 0
    for _, logits in cases():
        processor = transformers.NoBadWordsLogitsProcessor(words, eos_token_id=6)
        texts = some_texts(*logits.shape, length, seed=length)
        settings = GenerationSettings(bad_words_ids=words, eos_token_id=6)
        ours = rules.process(logits, texts.tolist(), [0] * len(logits), [99] * len(logits), settings)
        assert_same(ours, processed(processor, logits, texts))
        found += (np.isneginf(ours) & ~np.isneginf(logits)).sum()
    assert found


@pytest.mark.parametrize("ids", [3, [3, 5]])
@pytest.mark.parametrize("length", [6, 7, 8])
def test_least_lengths_equal_transformers(ids, length):
    logits, texts = some_logits("plain"), some_texts(5, 1000, length)
    pairs = [
        ({"min_length": 8}, transformers.MinLengthLogitsProcessor(8, ids)),
        ({"min_new_tokens": 3}, transformers.MinNewTokensLengthLogitsProcessor(5, 3, ids)),
    ]
    for changes, processor in pairs:
        settings = GenerationSettings(eos_token_id=ids, **changes)
        ours = rules.process(logits, texts.tolist(), [5] * 5, [99] * 5, settings)
        assert_same(ours, processed(processor, logits, texts))
        assert np.isneginf(ours).any() == (length < 8)


@pytest.mark.parametrize("ids", [3, [3, 5]])
@pytest.mark.parametrize("length", [1, 2, 8, 9])
def test_forced_and_suppressed_tokens_equal_transformers(ids, length):
    logits, texts = some_logits("plain"), some_texts(5, 1000, length)
    listed = ids if isinstance(ids, list) else [ids]
    pairs = [
        ({"forced_bos_token_id": listed[0]}, transformers.ForcedBOSTokenLogitsProcessor(listed[0])),
        ({"forced_eos_token_id": ids}, transformers.ForcedEOSTokenLogitsProcessor(9, ids)),
        ({"suppress_tokens": listed}, transformers.generation.logits_process.SuppressTokensLogitsProcessor(listed)),
    ]
    for changes, processor in pairs:
        ours = rules.process(logits, texts.tolist(), [1] * 5, [9] * 5, GenerationSettings(**changes))
        assert_same(ours, processed(processor, logits, texts))


ALL_RULES = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[1], [2, 3]],
    "min_length": 12,
    "min_new_tokens": 9,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": [8, 9],
    "suppress_tokens": [4, 8, 30],
    "eos_token_id": [9, 10],
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.02,
    "typical_p": 0.8,
}


@pytest.fixture(scope="module")
def peer():
    config = transformers.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("length", [1, 5, 11, 13, 15])
def test_order_of_all_rules_equals_that_of_transformers(peer, beams, length):
    """Each pair of rules, and all of them at once, against the list that transformers itself makes of the settings."""
    limit, prompt = 16, 5 if length > 5 else length
    whole = [*itertools.combinations(ALL_RULES, 2), tuple(ALL_RULES)]
    for number, names in enumerate(whole):
        chosen = {name: ALL_RULES[name] for name in (*names, "do_sample", "eos_token_id")}
        logits, texts = some_logits("steep", 4, 40, number), some_texts(4, 40, length, number)
        config = transformers.GenerationConfig(max_length=limit, num_beams=beams, **chosen)
        config._eos_token_tensor = torch.tensor(chosen["eos_token_id"])
        theirs = processed(peer._get_logits_processor(config, prompt), logits, texts)
        settings = GenerationSettings(num_beams=beams, **chosen)
        ours = rules.process(logits, texts.tolist(), [prompt] * 4, [limit] * 4, settings)
        assert_same(rules.warp(ours, settings), theirs)


def test_beam_sampling_leaves_two_tokens_where_no_token_ends_a_text(peer):
    for changes in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}, {"typical_p": 0.01}):
        config = transformers.GenerationConfig(num_beams=2, do_sample=True, **{"top_k": 0, **changes})
        config._eos_token_tensor = None
        logits = some_logits("steep", 4, 40)
        theirs = processed(peer._get_logits_processor(config, 1), logits)
        ours = rules.warp(logits, GenerationSettings(num_beams=2, do_sample=True, **changes))
        assert_same(ours, theirs)
        assert (np.isfinite(ours).sum(axis=-1) == 2).all()


def test_rows_of_unequal_lengths_get_what_each_gets_alone():
    random = np.random.default_rng(5)
    lengths, prompts, limits = [1, 3, 11, 15, 20], [1, 2, 5, 15, 4], [2, 16, 30, 16, 21]
    texts = [random.integers(0, 12, length).tolist() for length in lengths]
    logits = some_logits("steep", 5, 40)
    settings = GenerationSettings(**ALL_RULES, presence_penalty=0.4, frequency_penalty=0.2)
    together = rules.warp(rules.process(logits, texts, prompts, limits, settings), settings)
    for row in range(5):
        one = slice(row, row + 1)
        alone = rules.process(logits[one], texts[one], prompts[one], limits[one], settings)
        np.testing.assert_array_equal(rules.warp(alone, settings)[0], together[row])
    assert len({tuple(np.flatnonzero(np.isfinite(row))) for row in together}) > 2


def test_without_rules_the_logits_are_handed_on():
    logits = some_logits("plain")
    settings = GenerationSettings(do_sample=True)
    assert rules.warp(rules.process(logits, [[1]] * 5, [1] * 5, [9] * 5, settings), settings) is logits


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-45, 1e-60, 5e-324])
def test_a_temperature_next_to_zero_draws_the_likeliest(temperature):
    logits = np.array([[1, 5, 4.999, -np.inf], [-3, -2, -7, -8], [0, -1, -np.inf, -2], [3, 3, 1, 0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warped = rules.warp(logits, GenerationSettings(do_sample=True, temperature=temperature, top_p=0.9))
        drawn = [sample(warped, np.full(4, uniform)).tolist() for uniform in (0.0, 0.49, 0.51, 0.999)]
    assert drawn == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 0, 1]]
