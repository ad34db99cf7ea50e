"""The engine against transformers' `generate`, and batches against single rows."""

import gc
import weakref

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings, Generator, generate
from mindgpt.generation import engine as engine_module
from mindgpt.generation.engine import bucket
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_config import GPT2Config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, WINDOW = 97, 64
SHAPE = {"vocab_size": VOCAB, "n_positions": WINDOW, "n_embd": 32, "n_layer": 3, "n_head": 4}


@pytest.fixture(scope="module")
def peer():
    """A random network of transformers with logits far enough apart for argmax to be the same on both sides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so small a network more of them only get in MindSpore's way
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SHAPE, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    yield transformers.GPT2LMHeadModel(config).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    peer.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model)


def some_prompts(number=20, seed=1):
    """Unequal lengths, from one token to one less than the context window."""
    random = np.random.default_rng(seed)
    lengths = [1, 2, WINDOW - 1, WINDOW - 2, *random.integers(3, WINDOW - 10, number - 4)]
    return [random.integers(1, VOCAB, length).tolist() for length in lengths]


def continued_by_transformers(peer, prompt, **settings):
    ids = torch.tensor([prompt])
    settings.setdefault("eos_token_id", None)
    settings.setdefault("max_length", WINDOW)
    with torch.no_grad():
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **settings)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers_up_to_the_context_window(generator, peer, penalty):
    prompts = some_prompts()
    ours = generator.generate(prompts, GenerationSettings(repetition_penalty=penalty))
    theirs = [continued_by_transformers(peer, prompt, repetition_penalty=penalty) for prompt in prompts]
    assert ours == theirs
    assert {len(prompt) + len(row) for prompt, row in zip(prompts, ours, strict=True)} == {WINDOW}
    assert len({token for row in ours for token in row}) > 10  # a network that always says the same proves nothing


@pytest.mark.parametrize("settings", [{"max_new_tokens": 7}, {"max_length": 63}])
def test_limits_equal_transformers(generator, peer, settings):
    prompts = [prompt for prompt in some_prompts() if len(prompt) < 56]
    ours = generator.generate(prompts, GenerationSettings(**settings))
    assert ours == [continued_by_transformers(peer, p, **{"max_length": None, **settings}) for p in prompts]


def test_end_of_text_ends_its_row_alone(generator, peer):
    prompts = [prompt for prompt in some_prompts() if len(prompt) < 40]
    free = generator.generate(prompts, GenerationSettings(max_new_tokens=20))
    eos = free[0][4]  # some token that row 0 says early
    heard = []
    settings = GenerationSettings(max_new_tokens=20, eos_token_id=eos)
    ours = generator.generate(prompts, settings, on_token=lambda row, token: heard.append((row, token)))
    assert ours == [
        continued_by_transformers(peer, p, max_length=None, max_new_tokens=20, eos_token_id=eos) for p in prompts
    ]
    assert ours == [row[: row.index(eos) + 1] if eos in row else row for row in free]
    assert len(ours[0]) <= 5 and max(map(len, ours)) == 20
    assert [[token for row, token in heard if row == number] for number in range(len(prompts))] == ours


def test_end_of_text_inside_a_prompt_is_a_token_like_any_other(generator, peer):
    prompt = [5, 0, 0, 9, 0]
    theirs = continued_by_transformers(peer, prompt, max_length=None, max_new_tokens=8, eos_token_id=0)
    assert generator.generate([prompt], GenerationSettings(max_new_tokens=8, eos_token_id=0)) == [theirs]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_batch_gives_what_each_row_gives_alone(generator, do_sample):
    prompts = some_prompts()[:7]
    settings = GenerationSettings(max_new_tokens=12, do_sample=do_sample, seed=3, top_k=20, repetition_penalty=1.2)
    alone = [generator.generate([prompt], settings, row_numbers=[row])[0] for row, prompt in enumerate(prompts)]
    assert generator.generate(prompts, settings) == alone


def test_seeds(generator):
    prompts = some_prompts()[4:8]

    def drawn(seed, rows=prompts):
        return generator.generate(
            rows, GenerationSettings(max_new_tokens=15, do_sample=True, temperature=3.0, seed=seed)
        )

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)
    same_prompt = drawn(1, [prompts[0]] * 4)
    assert len(set(map(tuple, same_prompt))) == 4  # each row has a stream of its own


def test_drawn_tokens_follow_the_model(generator, peer):
    """The first token of 4,000 drawn continuations against the exact probabilities."""
    prompt, draws = some_prompts()[5], 4000
    settings = GenerationSettings(max_new_tokens=1, do_sample=True, temperature=0.7, top_k=5, seed=0)
    counts = np.zeros(VOCAB)
    for start in range(0, draws, 500):
        rows = generator.generate([prompt] * 500, settings, row_numbers=range(start, start + 500))
        counts += np.bincount(np.array(rows)[:, 0], minlength=VOCAB)
    with torch.no_grad():
        logits = peer(torch.tensor([prompt])).logits[0, -1].double()
    kept = logits.topk(5).indices.numpy()
    expected = (logits[kept] / 0.7).softmax(-1).numpy() * draws
    assert counts.sum() == counts[kept].sum()
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 4 + 4 * np.sqrt(8)


def test_generation_follows_the_weights_and_leaves_training_mode_alone():
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, initializer_range=0.3))
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
    ids = [1, 2, 3]
    for token in after[0]:
        assert int(model(Tensor([ids], ms.int32)).asnumpy()[0, -1].argmax()) == token
        ids.append(token)


def test_new_lengths_of_the_same_bucket_do_not_recompile(monkeypatch, model):
    built = []
    for name in ("Prefill", "Decode"):
        cell = getattr(engine_module, name)
        monkeypatch.setattr(engine_module, name, lambda *args, cell=cell, name=name: built.append(name) or cell(*args))
    generator = Generator(model)
    for length in (3, 4, 17, 32):
        generator.generate([[1] * length] * 3, GenerationSettings(max_new_tokens=2))
    assert sorted(built) == ["Decode", "Prefill"]
    generator.generate([[1] * 33] * 4, GenerationSettings(max_new_tokens=2))
    assert sorted(built) == ["Decode", "Prefill", "Prefill"]


def test_a_cache_that_grows_changes_no_text(monkeypatch, generator, model):
    prompts = some_prompts()[:6] + [[7], [8, 9]]
    settings = GenerationSettings(max_new_tokens=50)
    expected = generator.generate(prompts, settings)  # with room for the whole window from the start
    monkeypatch.setattr(engine_module, "SMALLEST_CACHE", 4)
    monkeypatch.setattr(engine_module, "SMALLEST_PROMPT", 4)
    monkeypatch.setattr(engine_module, "KEPT_SHAPES", 3)  # of 4, 8, 16, 32, 64 slots: some are dropped on the way
    growing = Generator(model)
    for _ in range(2):
        assert growing.generate(prompts[-2:], settings) == expected[-2:]
    assert [capacity for _, capacity in growing._shapes] == [16, 32, 64]
    assert growing.generate(prompts, settings) == expected


def test_a_broken_model_is_told_and_leaves_nothing_behind():
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, initializer_range=0.3))
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
    model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    generate(model, [[1]], GenerationSettings(max_new_tokens=1))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_buckets():
    assert [bucket(size, 32, 100) for size in (1, 32, 33, 64, 65, 99)] == [32, 32, 64, 64, 100, 100]
    assert [bucket(rows, 1) for rows in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "There are no prompts"),
        ([[1], []], {}, "Prompt 1 is empty"),
        ([[1] * WINDOW], {}, f"Prompt 0 has {WINDOW} tokens and fills the context window of {WINDOW}"),
        ([[1] * 9], {"max_length": 9}, "Prompt 0 has 9 tokens, and max_length, 9, counts them"),
        ([[VOCAB]], {}, f"Prompt 0 holds the id {VOCAB}, outside"),
        ([[1, -1]], {}, "Prompt 0 holds the id -1, outside"),
        ([[1.5]], {}, "Prompt 0 must be a row of token ids"),
        (["text"], {}, "Prompt 0 must be a row of token ids"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(generator, prompts, settings, message):
    with pytest.raises(UserError, match=message):
        generator.generate(prompts, GenerationSettings(**settings))
