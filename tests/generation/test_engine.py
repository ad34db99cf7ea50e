"""The engine against transformers' `generate`, and batches against single rows."""

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.generation import GenerationSettings, Generator, generate
from mindgpt.generation.engine import generator_of
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.pet.lora import add_lora
from mindgpt.pet.names import FACTOR_B

pytest.importorskip("torch")
pytest.importorskip("transformers")

VOCAB, WINDOW = 256, 96  # of the networks in conftest.py
BATCH = 16  # nearly all batches here are of 9 to 16 rows: one graph
TINY = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}


def in_batches(generator, prompts, settings, **options):
    """The rows of all prompts, in batches of `BATCH` rows."""
    step = BATCH // (settings.num_return_sequences * settings.num_beams)
    batches = [prompts[start : start + step] for start in range(0, len(prompts), step)]
    return [row for batch in batches for row in generator.generate(batch, settings, **options)]


@pytest.mark.parametrize(("penalty", "number"), [(1.0, 50), (1.3, 12)])
def test_greedy_equals_transformers_up_to_the_context_window(
    each_generator, continued_by_transformers, prompts, penalty, number
):
    prompts = [*prompts[:number], prompts[2] + prompts[3][: WINDOW - 1 - 60]]
    ours = in_batches(each_generator, prompts, GenerationSettings(repetition_penalty=penalty))
    settings = {"max_length": WINDOW, "repetition_penalty": penalty}
    assert ours == [continued_by_transformers(prompt, **settings)[0] for prompt in prompts]
    assert {len(prompt) + len(row) for prompt, row in zip(prompts, ours, strict=True)} == {WINDOW}
    assert len({token for row in ours for token in row}) > 20  # a network that always says the same proves nothing


@pytest.mark.parametrize("settings", [{"max_new_tokens": 7}, {"max_length": 63}])
def test_limits_equal_transformers(generator, continued_by_transformers, prompts, settings):
    ours = generator.generate(prompts[:BATCH], GenerationSettings(**settings))
    assert ours == [continued_by_transformers(prompt, **settings)[0] for prompt in prompts[:BATCH]]


def test_end_of_text_ends_its_row_alone(generator, continued_by_transformers, prompts):
    """Of several such tokens any ends it, at first only behind the least length."""
    prompts, ends = prompts[:BATCH], [ord(" "), ord("e")]
    rules = {"max_new_tokens": 20, "eos_token_id": ends, "min_new_tokens": 3}
    heard = []
    ours = generator.generate(
        prompts, GenerationSettings(**rules), on_token=lambda row, token: heard.append((row, token))
    )
    assert ours == [continued_by_transformers(prompt, **rules)[0] for prompt in prompts]
    lengths = [len(row) for row in ours]
    assert min(lengths) == 4 and len(set(lengths)) > 4 and {row[-1] for row in ours} >= set(ends)
    assert [[token for row, token in heard if row == number] for number in range(len(prompts))] == ours


def test_end_of_text_inside_a_prompt_is_a_token_like_any_other(generator, continued_by_transformers, prompts):
    prompt = [*prompts[2], 32, 0, 32]
    theirs = continued_by_transformers(prompt, max_new_tokens=8, eos_token_id=32)
    assert generator.generate([prompt], GenerationSettings(max_new_tokens=8, eos_token_id=32)) == theirs


def test_stop_ends_the_rows_it_names(generator, prompts):
    free = generator.generate(prompts[:BATCH], GenerationSettings(max_new_tokens=12))
    stopped = generator.generate(
        prompts[:BATCH],
        GenerationSettings(max_new_tokens=12),
        stop=lambda row, new: row % 2 == 1 and len(new) > row and new[-1] == free[row][len(new) - 1],
    )
    assert stopped == [tokens[: row + 1] if row % 2 else tokens for row, tokens in enumerate(free)]


LENGTHS = [5, 1, 64, 23, 63, 2, 65, 1, 84, 40, 32, 66, 3, 62, 33, 12]  # 64 are read at once; 84 + 12 fill the window


@pytest.fixture(scope="module")
def unequal(corpus):
    """16 prompts of `LENGTHS`."""
    starts = np.random.default_rng(2).integers(0, len(corpus) - WINDOW, len(LENGTHS))
    return [corpus[start : start + length].tolist() for start, length in zip(starts, LENGTHS, strict=True)]


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 16),
        ({"do_sample": True, "seed": 3, "top_k": 20, "repetition_penalty": 1.2}, 16),
        ({"do_sample": True, "seed": 3, "temperature": 0.9, "top_p": 0.95, "num_return_sequences": 2}, 8),
        ({"num_beams": 4, "num_return_sequences": 2, "eos_token_id": 32}, 4),
        ({"num_beams": 2, "do_sample": True, "seed": 3}, 8),
    ],
    ids=["greedy", "drawn", "several drawn", "beams", "drawn beams"],
)
def test_batches_of_every_size_give_what_each_prompt_gives_alone(each_generator, unequal, settings, most):
    settings = GenerationSettings(max_new_tokens=12, **settings)
    alone = [
        each_generator.generate([prompt], settings, row_numbers=[row]) for row, prompt in enumerate(unequal[:most])
    ]
    assert all(len(rows) == settings.num_return_sequences for rows in alone)
    assert len({tuple(row) for rows in alone for row in rows}) > most // 2  # or else equal texts prove nothing
    for number in range(1, most + 1):
        assert each_generator.generate(unequal[:number], settings) == sum(alone[:number], [])
    if most == 16:  # in another order, each with its own stream
        order = np.random.default_rng(0).permutation(most).tolist()
        shuffled = each_generator.generate([unequal[row] for row in order], settings, row_numbers=order)
        assert shuffled == [alone[row][0] for row in order]


def test_the_prompts_of_batches_lead_to_no_ties(generator, peer, unequal):
    """Where two tokens are equally likely, rounding chooses; here the best two are always much further apart."""
    import torch

    for prompt, new in zip(unequal, generator.generate(unequal, GenerationSettings(max_new_tokens=12)), strict=True):
        with torch.no_grad():
            best = peer(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 2e-3


def test_seeds(generator, prompts):
    def drawn(seed, rows=prompts[4:13], **settings):
        return generator.generate(rows, GenerationSettings(max_new_tokens=15, do_sample=True, seed=seed, **settings))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)
    for rows in (drawn(1, [prompts[4]] * 9), drawn(1, [prompts[4]], num_return_sequences=9)):
        assert len(set(map(tuple, rows))) == 9  # each row has a stream of its own
    several = drawn(1, prompts[4:7], num_return_sequences=4)
    assert several[4:8] == generator.generate(
        [prompts[5]],
        GenerationSettings(max_new_tokens=15, do_sample=True, seed=1, num_return_sequences=4),
        row_numbers=[1],
    )


DRAWN = (80, 10, 25)  # seeds, prompts, copies: 20,000 texts


def drawn_texts(generator, prompt, seeds=DRAWN[0], **settings):
    """Continuations of one prompt, each with a random stream of its own: (seeds, prompts, copies, new tokens)."""
    _, rows, copies = DRAWN
    texts = [
        generator.generate(
            [prompt] * rows,
            GenerationSettings(do_sample=True, seed=seed, num_return_sequences=copies, **settings),
        )
        for seed in range(seeds)
    ]
    return np.reshape(texts, (seeds, rows, copies, -1))


@pytest.fixture
def exact_probabilities(peer):
    """(prompt, temperature, top_k, top_p) -> (V,) float64, by the network and the processors of transformers."""
    import torch
    import transformers

    def run(prompt, temperature=1.0, top_k=VOCAB, top_p=1.0):
        with torch.no_grad():
            scores = peer(torch.tensor([prompt])).logits[:, -1].double()
        for processor in (
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(top_k),
            transformers.TopPLogitsWarper(top_p),
        ):
            scores = processor(None, scores)
        return scores.softmax(-1)[0].numpy()

    return run


def counts_of_pairs(first, second):
    return np.bincount((first * VOCAB + second).ravel(), minlength=VOCAB**2).reshape(VOCAB, VOCAB)


def test_drawn_tokens_follow_the_model(generator, exact_probabilities, prompts, fits):
    """The first token of 20,000 drawn texts against the exact distribution over the whole vocabulary."""
    prompt = prompts[5][:6]
    counts = np.bincount(drawn_texts(generator, prompt, max_new_tokens=1).ravel(), minlength=VOCAB)
    assert fits(counts, exact_probabilities(prompt))
    for wrong in ({"temperature": 1.1}, {"top_k": 20}, {"top_p": 0.999}):
        assert not fits(counts, exact_probabilities(prompt, **wrong))


WARPED = {"temperature": 0.8, "top_k": 8, "top_p": 0.85}


def test_drawn_tokens_follow_the_rules_and_no_other_text(generator, exact_probabilities, prompts, fits):
    """The same under three rules; and texts that are neighbours by seed, prompt or copy are independent."""
    prompt = prompts[5][:6]
    tokens = drawn_texts(generator, prompt, max_new_tokens=1, **WARPED)[..., 0]
    expected, counts = exact_probabilities(prompt, **WARPED), np.bincount(tokens.ravel(), minlength=VOCAB)
    assert (expected > 0).sum() > 3
    assert fits(counts, expected)
    for wrong in ({"temperature": 0.9}, {"top_k": 3}, {"top_p": 0.7}, {"top_p": 1.0}):
        assert not fits(counts, exact_probabilities(prompt, **WARPED | wrong))
    for axis, number in enumerate(DRAWN):
        here, there = (np.take(tokens, range(edge, number - 1 + edge, 2), axis) for edge in (0, 1))  # disjoint pairs
        assert fits(counts_of_pairs(here, there), np.outer(expected, expected))


def test_the_second_token_follows_the_first(generator, exact_probabilities, prompts, fits):
    """5,000 texts of two tokens against P(first) P(second | first): the draws of a text are independent."""
    prompt = prompts[5][:6]
    texts = drawn_texts(generator, prompt, seeds=20, max_new_tokens=2, **WARPED)
    counts = counts_of_pairs(texts[..., 0], texts[..., 1])

    def expected(**settings):
        pairs = np.zeros((VOCAB, VOCAB))
        first = exact_probabilities(prompt, **settings)
        for token in np.flatnonzero(first):
            pairs[token] = first[token] * exact_probabilities([*prompt, token], **settings)
        return pairs

    assert (expected(**WARPED) > 0).sum() > 12
    assert fits(counts, expected(**WARPED))
    for wrong in ({"temperature": 1.0}, {"top_k": 3}, {"top_p": 0.7}):
        assert not fits(counts, expected(**WARPED | wrong))


def test_generation_follows_the_weights_and_leaves_training_mode_alone():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    model.set_train(True)
    model.backbone.blocks[1].set_train(False)
    modes = [cell.training for _, cell in model.cells_and_names()]
    settings = GenerationSettings(max_new_tokens=10)
    before = generate(model, [[1, 2, 3]], settings)
    assert before == generate(model, [[1, 2, 3]], settings)  # no dropout inside
    assert [cell.training for _, cell in model.cells_and_names()] == modes
    weight = model.backbone.layernorm.gamma
    weight.set_data(Tensor(-weight.asnumpy()))
    after = generate(model, [[1, 2, 3]], settings)
    assert after != before
    model.set_train(False)
    logits = model(Tensor([[1, 2, 3, *after[0]]], ms.int32)).asnumpy()[0]
    assert logits[2:-1].argmax(-1).tolist() == after[0]


def test_a_broken_model_is_told_and_leaves_nothing_behind():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    generator, settings = Generator(model), GenerationSettings(max_new_tokens=5)
    sound = generator.generate([[1, 2]], settings)
    weight = model.backbone.blocks[0].attention.dense2.bias
    kept = weight.asnumpy().copy()
    weight.set_data(Tensor(np.full_like(kept, np.nan)))
    with pytest.raises(UserError, match="NaN"):
        generator.generate([[1, 2]], settings)
    weight.set_data(Tensor(kept))
    assert generator.generate([[1, 2]], settings) == sound


def test_a_generator_goes_with_its_model():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    generate(model, [[1]], GenerationSettings(max_new_tokens=1))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_full_window_slides(each_generator, peer, prompts, corpus, settings):
    """A text that is longer than the window goes on as its last three quarters of a window would from the start."""
    kept = WINDOW - WINDOW // 4
    long = [corpus[:length].tolist() for length in (WINDOW - 5, WINDOW, WINDOW + 1, 3 * WINDOW)]
    rules = GenerationSettings(context_overflow="slide", max_new_tokens=40, **settings)
    rows = each_generator.generate([*long, *prompts[:4]], rules)
    assert [len(row) for row in rows] == [40] * 8
    assert rows == [each_generator.generate([prompt], rules)[0] for prompt in [*long, *prompts[:4]]]
    if settings:  # the beams of one step are not known from outside
        return
    import torch

    for prompt, row in zip(long, rows, strict=False):
        read_from = 0
        for length in range(len(prompt), len(prompt) + 40):
            text = [*prompt, *row][:length]
            if length - read_from > WINDOW:
                read_from = length - kept
            with torch.no_grad():
                expected = peer(torch.tensor([text[read_from:]])).logits[0, -1].argmax()
            assert row[length - len(prompt)] == expected


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "There are no prompts"),
        ([[1], []], {}, "Prompt 1 is empty"),
        ([[1] * WINDOW], {}, f"Prompt 0 has {WINDOW} tokens and fills the context length of {WINDOW}"),
        ([[1] * 9], {"max_length": 9}, "Prompt 0 has 9 tokens, and max_length, 9, counts them"),
        ([[VOCAB]], {}, f"Prompt 0 holds the id {VOCAB}, outside"),
        ([[1, -1]], {}, "Prompt 0 holds the id -1, outside"),
        ([[1.5]], {}, "Prompt 0 must be a row of token ids"),
        (["text"], {}, "Prompt 0 must be a row of token ids"),
        ([[1]], {"context_overflow": "slide"}, "set max_new_tokens too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(generator, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        generator.generate(prompts, GenerationSettings(**settings))


def test_beams_cannot_be_heard(generator):
    with pytest.raises(UserError, match="num_beams"):
        generator.generate([[1]], GenerationSettings(num_beams=2), on_token=print)


def test_the_first_of_several_drawn_texts_is_the_one_drawn_alone(generator, prompts):
    alone = GenerationSettings(max_new_tokens=15, do_sample=True, seed=7)
    several = alone.changed(num_return_sequences=3)
    for seed in (7, 2**32 + 7):
        expected = generator.generate(prompts[4:7], alone.changed(seed=seed))
        assert generator.generate(prompts[4:7], several.changed(seed=seed))[::3] == expected


# ---- streams, threads ------------------------------------------------------------------------------------------------


def streamed(stream):
    return [token for new_tokens in stream for _, token in new_tokens]


def test_a_call_while_a_stream_is_open_is_refused_and_disturbs_nothing(generator, prompts):
    settings = GenerationSettings(max_new_tokens=12)
    (expected,) = generator.generate(prompts[:1], settings)
    stream = generator.stream(prompts[:1], settings)
    begun = next(stream)
    beams = settings.changed(num_beams=2)
    for call in (
        lambda: generator.generate(prompts[1:2], settings),
        lambda: generator.generate(prompts[1:2], beams),
        lambda: next(generator.stream(prompts[1:2], settings)),
    ):
        with pytest.raises(UserError, match="A stream of this model is open"):
            call()
    assert [begun[0][1], *streamed(stream)] == expected
    assert generator.generate(prompts[:1], settings) == [expected]
    next(left := generator.stream(prompts[1:2], settings))
    left.close()
    assert generator.generate(prompts[:1], settings) == [expected]
    next(dropped := generator.stream(prompts[1:2], settings))
    del dropped
    assert generator.generate(prompts[:1], settings) == [expected]


def test_a_call_from_within_a_call_is_refused_and_an_error_there_leaves_the_model_free(generator, prompts):
    settings = GenerationSettings(max_new_tokens=5)
    with pytest.raises(UserError, match="called from within a call") as kept:
        generator.generate(prompts[:1], settings, on_token=lambda *_: generator.generate(prompts[:1], settings))
    assert kept.value.__traceback__  # holds the frames of that call
    assert len(generator.generate(prompts[:1], settings)[0]) == 5


def test_streams_of_two_models_side_by_side(generator, prompts):
    settings = GenerationSettings(max_new_tokens=8)
    other = Generator(GPT2LMHeadModel(GPT2Config(**TINY)))
    expected = generator.generate(prompts[:1], settings), other.generate([[1, 2, 3]], settings)
    streams = generator.stream(prompts[:1], settings), other.stream([[1, 2, 3]], settings)
    pairs = list(zip(*streams, strict=True))
    assert [[token for ((_, token),) in one] for one in zip(*pairs, strict=True)] == [rows[0] for rows in expected]


def test_the_reader_of_a_stream_works_in_its_own_mode_and_may_train(generator, model, prompts):
    settings = GenerationSettings(max_new_tokens=4)
    expected = generator.generate(prompts[:1], settings)
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model.set_train(True)
    try:
        tokens = []
        for ((_, token),) in generator.stream(prompts[:1], settings):
            tokens.append(token)
            assert ms.get_context("mode") == ms.PYNATIVE_MODE
            assert model.backbone.training
        assert [tokens] == expected
    finally:
        model.set_train(False)
        ms.set_context(mode=mode)


def test_threads_wait_for_one_another(generator, prompts):
    settings = GenerationSettings(max_new_tokens=12)
    expected = [generator.generate([prompt], settings) for prompt in prompts[:6]]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda prompt: generator.generate([prompt], settings), prompts[:6]))
        scores = list(threads.map(lambda prompt: score_of(generator, prompt), prompts[2:8]))
    assert found == expected
    for prompt, values in zip(prompts[2:8], scores, strict=True):
        np.testing.assert_array_equal(values, score_of(generator, prompt))


def score_of(generator, text):
    with generator.running(), generator.reserved():
        return generator.graphs.log_probs(text)


ENDS_IN_A_STREAM = f"""
from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.generation import GenerationSettings, Generator
stream = Generator(GPT2LMHeadModel(GPT2Config(**{TINY}))).stream([[1, 2]], GenerationSettings(max_new_tokens=9))
print(next(stream))
"""


def test_a_program_may_end_in_a_stream(repo):
    done = subprocess.run([sys.executable, "-c", ENDS_IN_A_STREAM], cwd=repo, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:5]) == (0, "[(0, "), done.stderr


# ---- models that change ----------------------------------------------------------------------------------------------


def test_generation_follows_lora_and_exchanged_parameters():
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    settings, prompt = GenerationSettings(max_new_tokens=10), [1, 2, 3]
    before = generate(model, [prompt], settings)
    kept = generator_of(model)
    assert generator_of(model) is kept
    graphs = kept.graphs
    generate(model, [prompt], settings)
    assert kept.graphs is graphs  # an unchanged model is not compiled anew

    paths = add_lora(model, PetSection(lora_rank=4, lora_alpha=64, target_modules="dense1|dense3|mapping"))
    random = np.random.default_rng(0)
    for path in paths:
        factor = model.parameters_dict()[f"{path}.{FACTOR_B}"]
        factor.set_data(Tensor(random.normal(0, 1, factor.shape).astype(np.float32)))
    with_lora = generate(model, [prompt], settings)
    assert with_lora != before
    assert kept.generate([prompt], settings) == with_lora

    norm = model.backbone.layernorm
    norm.gamma = Parameter(Tensor(-norm.gamma.asnumpy()), name=norm.gamma.name)
    exchanged = generate(model, [prompt], settings)
    assert exchanged != with_lora
    model.set_train(False)
    logits = model(Tensor([[*prompt, *exchanged[0]]], ms.int32)).asnumpy()[0]
    assert logits[2:-1].argmax(-1).tolist() == exchanged[0]
