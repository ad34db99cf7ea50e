"""A small network of transformers that was trained, and ours with its weights."""

import functools
import pydoc_data.topics

import numpy as np
import pytest

VOCAB, WINDOW = 256, 96
PAD = 255  # no byte of English text


@pytest.fixture(scope="session")
def corpus():
    """English text as bytes, which are its token ids: the help pages that come with Python."""
    pages = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    return np.frombuffer("\n".join(pages).encode()[:20_000], np.uint8).astype(np.int64)


@pytest.fixture(scope="session")
def peer(corpus):
    """GPT-2 of transformers, two layers, trained on `corpus` for some seconds: it has words and some grammar."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so small a network more of them only get in MindSpore's way
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "n_positions": WINDOW, "n_embd": 64, "n_layer": 2, "n_head": 4}
    rates = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    network = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, **rates, bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, betas=(0.9, 0.98))
    random = np.random.default_rng(0)
    steps = 500
    for step in range(steps):
        starts = random.integers(0, len(corpus) - WINDOW, 8)
        rows = torch.from_numpy(np.stack([corpus[start : start + WINDOW] for start in starts]))
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = network(rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 2.3, "the network has not learned enough for its texts to prove anything"
    yield network.eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(peer, tmp_path_factory):
    """Ours, with the weights of `peer`."""
    from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("trained")
    peer.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


@pytest.fixture(scope="session")
def generator(model):
    """The one that is kept for `model`, so that the tests share what it compiles."""
    from mindgpt.generation.engine import generator_of

    return generator_of(model)


@pytest.fixture
def operators(monkeypatch):
    """Generators that are built now use MindSpore's operators, as on Ascend."""
    monkeypatch.setattr("mindgpt.models.acceleration.USE_KERNELS", False)


@pytest.fixture
def kernels():
    """Generators that are built now use the C++ kernels."""
    from tests.models.kernel_support import skip_without_kernels

    skip_without_kernels()


@pytest.fixture(params=["operators", "kernels"])
def each_generator(request, model, generator):
    """With MindSpore's operators and with the C++ kernels."""
    request.getfixturevalue(request.param)
    return generator if request.param == "kernels" else by_operators(model)


@functools.cache
def by_operators(model):
    """A generator with MindSpore's operators: all tests share it, and what it compiles."""
    from mindgpt.generation.engine import Generator

    return Generator(model)


@pytest.fixture(scope="session")
def prompts(corpus):
    """50 pieces of text that the network was not trained to say next, 1 to 60 tokens long."""
    random = np.random.default_rng(1)
    lengths = [1, 2, 60, 59, *random.integers(3, 60, 46).tolist()]
    starts = random.integers(0, len(corpus) - 100, len(lengths)).tolist()
    return [corpus[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="session")
def continued_by_transformers(peer):
    """(prompt, **settings) -> the new tokens of transformers' `generate`, a list for each returned sequence."""
    import torch

    def run(prompt, **settings):
        ids = torch.tensor([prompt])
        settings = {"eos_token_id": None, "do_sample": False, "pad_token_id": PAD} | settings
        with torch.no_grad():
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return [[token for token in row[len(prompt) :].tolist() if token != PAD] for row in out]

    return run


@pytest.fixture(scope="session")
def fits():
    """(counts, probabilities), arrays of one shape -> whether the counts pass a chi-square test at four sigma."""

    def test(counts, probabilities):
        if counts[probabilities == 0].any():
            return False
        expected = probabilities * counts.sum()
        rare = expected < 5  # too few for the test: they make up one cell
        cells = [counts[~rare], [counts[rare].sum()]], [expected[~rare], [expected[rare].sum()]]
        observed, expected = (np.concatenate(parts)[: None if rare.any() else -1] for parts in cells)
        if rare.any() and expected[-1] < 5:
            observed, expected = observed[:-1], expected[:-1]
        freedom = len(expected) - 1
        assert freedom > 0
        # Wilson and Hilferty 1931: the cube root of chi-square / freedom is nearly normal
        bar = freedom * (1 - 2 / (9 * freedom) + 4 * np.sqrt(2 / (9 * freedom))) ** 3
        return ((observed - expected) ** 2 / expected).sum() < bar

    return test
