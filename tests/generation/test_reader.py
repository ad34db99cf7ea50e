"""What the reader of texts compiles and takes, and that no text hangs on it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.generation import GenerationSettings, Generator, generate
from mindgpt.generation import prefill as prefill_module
from mindgpt.generation import reader as reader_module
from mindgpt.generation.cached_model import KeyValueCache, Opening
from mindgpt.generation.engine import generator_of
from mindgpt.generation.prefill import ChunkedReading, KernelReading
from mindgpt.generation.reader import CompiledGraphs, bucket
from mindgpt.generation.scoring import score
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

pytest.importorskip("torch")
pytest.importorskip("transformers")

WINDOW = 96  # of the networks in conftest.py
TINY = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}


@pytest.fixture
def compiled(monkeypatch):
    """The cells that MindSpore compiles, by class, in order."""
    from mindspore.graph.api import _CellGraphExecutor

    compile_cell, names = _CellGraphExecutor.compile, []

    def counted(self, cell, *args, **options):
        phase, is_new = compile_cell(self, cell, *args, **options)
        if is_new:
            names.append(type(cell).__name__)
        return phase, is_new

    monkeypatch.setattr(_CellGraphExecutor, "compile", counted)
    return names


@pytest.mark.parametrize("by", ["operators", "kernels"])
def test_what_is_compiled_when(compiled, by, request):
    request.getfixturevalue(by)
    kind = "Kernel" if by == "kernels" else ""
    model = GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 512}))
    generator = generator_of(model)
    settings = GenerationSettings(max_new_tokens=3)
    generator.generate([[1, 2, 3]], settings)
    assert sorted(compiled) == [f"{kind}{cell}" for cell in ("CopyRow", "Decode", "LastLogits", "Prefill")]
    compiled.clear()
    for length in (1, 4, 17, 32, 33, 100):
        generator.generate([[1] * length], settings)
    assert compiled == []  # neither is there for a longer prompt that takes several chunks
    heard = []
    generator.generate([[1] * 300, [2], [3]], settings, on_token=lambda *_: heard.append(list(compiled)))
    assert heard[:3] == [[]] * 3  # the first tokens come at once, in any batch
    assert sorted(compiled) == [f"{kind}CopyRow", f"{kind}Decode"]
    compiled.clear()
    score(model, [[1] * 200, [1, 2]])
    assert compiled == [f"{kind}TargetLogProbs"]


def test_a_second_prompt_of_another_length_compiles_nothing_however_tokens_are_chosen(compiled):
    model = GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 128}))
    for choice in ({}, {"do_sample": True, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}, {"num_beams": 4}):
        generate(model, [[1, 2, 3]], GenerationSettings(max_new_tokens=20, **choice))
        compiled.clear()
        for length in (1, 7, 63, 64, 65, 108):
            generate(model, [[1] * length], GenerationSettings(max_new_tokens=20, **choice))
        assert compiled == []


def test_shapes_that_are_taken():
    """`choose` on a network where 1,000 slots are half as much to read as the weights."""
    graphs = CompiledGraphs(GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 1024})).backbone, None)
    graphs._weights = 2 * 2 * 2 * 32 * 1000
    assert graphs.choose(1, 10, 20) == (1, 128)
    assert graphs.choose(1, 200, 1024) == (1, 512)  # a fifth more to read than with 256, and it need not grow so soon
    assert graphs.choose(1, 10, 500) == (1, 512)  # which is there
    assert graphs.choose(1, 600, 700) == (1, 1024)
    assert graphs.choose(7, 10, 20) == (8, 128)
    assert graphs.choose(2, 30, 60, (8, 128)) == (8, 128)  # 30 steps do not pay for compiling
    assert graphs.choose(2, 30, 1000, (8, 128)) == (2, 256)  # many do
    assert graphs.choose(2, 30, 60, (8, 128)) == (2, 256)  # and now it is there
    assert graphs.choose(2, 59, 60, (8, 128)) == (8, 128)  # but one step does not pay for copying
    assert graphs.choose(2, 129, 130, (8, 128)) == (2, 256)


def test_what_a_text_is_read_by(monkeypatch):
    """The first text decides what is compiled; what would have suited better is compiled when it would have paid."""
    monkeypatch.setattr(prefill_module, "COMPILING_A_READER_COSTS", 1000)
    backbone = GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 1024})).backbone
    cache = KeyValueCache(2, 4, 8, ms.float32, 1, 1024)

    def read(reading, total):
        plan = reading._plan(total)
        for kind, _ in plan:
            reading._made(kind)
        return [(kind.__name__, first) for kind, first in plan]

    short_first, long_first = ChunkedReading(backbone, None, cache), ChunkedReading(backbone, None, cache)
    assert read(short_first, 20) == [("Prefill", 0)]
    for _ in range(4):  # each costs 8 * 96 where 544 would do
        assert read(short_first, 512) == [("Prefill", 64 * i) for i in range(8)]
    assert read(short_first, 512) == [("Opening", 0)]
    assert read(short_first, 600) == [("Opening", 0), ("Prefill", 512), ("Prefill", 576)]
    assert read(short_first, 1000)[-1] == ("Prefill", 960)
    assert read(long_first, 400) == [("Opening", 0)]
    assert read(long_first, 20) == read(long_first, 30) == [("Opening", 0)]
    assert read(long_first, 20) == [("Prefill", 0)]


@pytest.mark.parametrize(("by", "opening"), [("operators", 32), ("operators", 8), ("kernels", None)])
def test_texts_of_all_lengths_are_read_as_the_model_reads_them(monkeypatch, model, prompts, by, opening, request):
    """In chunks of 8, the first 32 tokens of longer ones at once or not; also several texts one behind the other."""
    request.getfixturevalue(by)
    monkeypatch.setattr(prefill_module, "CHUNK", 8)
    monkeypatch.setattr(prefill_module, "OPENING", opening)
    monkeypatch.setattr(prefill_module, "COMPILING_A_READER_COSTS", 0)
    text = [token for prompt in prompts for token in prompt][:WINDOW]
    expected = model.set_train(False)(Tensor(np.array([text], np.int32))).asnumpy()[0]
    generator = Generator(model)
    with generator.running():
        for length in (3, 31, 32, 33, 61, WINDOW):
            _, logits = generator.graphs.prefill([text[:length]])
            np.testing.assert_allclose(logits[0], expected[length - 1], atol=1e-4)
        starts, logits = generator.graphs.prefill([text[:20], text[:30], text[:13]])
        assert starts == [0, 20, 50]
        np.testing.assert_allclose(logits, expected[[19, 29, 12]], atol=1e-4)
    if by == "operators":
        assert (Opening in generator.graphs.reading._prefills) == (opening == 32)
    else:
        assert isinstance(generator.graphs.reading, KernelReading)


@pytest.mark.parametrize("by", ["operators", "kernels"])
@pytest.mark.long
def test_a_cache_that_moves_changes_no_text(monkeypatch, generator, model, prompts, by, request):
    """Grows, shrinks when rows have ended, and makes room for others: whatever happens, the texts stay."""
    prompts = prompts[:5]
    settings = GenerationSettings(max_new_tokens=30)

    def stop(row, new):
        return len(new) > 5 * row

    beams = GenerationSettings(max_new_tokens=30, eos_token_id=10, num_beams=3, num_return_sequences=3)
    expected = generator.generate(prompts, settings, stop=stop), generator.generate(prompts[:2], beams)
    assert [len(row) for row in expected[0]] == [1, 6, 11, 16, 21]
    request.getfixturevalue(by)
    monkeypatch.setattr(reader_module, "SMALLEST_CACHE", 16)
    monkeypatch.setattr(prefill_module, "CHUNK", 10)
    monkeypatch.setattr(reader_module, "KEPT_SHAPES", 3)
    monkeypatch.setattr(reader_module, "COMPILING_COSTS", 0)
    monkeypatch.setattr(reader_module, "NEARLY_AS_GOOD", 1.0)
    moving = Generator(model)
    taken, choose = [], moving.graphs.choose
    monkeypatch.setattr(moving.graphs, "choose", lambda *args: taken.append(choose(*args)) or taken[-1])
    assert moving.generate(prompts, settings, stop=stop) == expected[0]
    assert len({batch for batch, _ in taken}) > 1  # it shrank
    assert moving.generate(prompts[:2], beams) == expected[1]
    assert len({capacity for _, capacity in taken}) > 1  # it grew
    assert len(set(taken)) > 3  # and some were dropped on the way


def test_buckets():
    assert [bucket(size, 32, 100) for size in (1, 32, 33, 64, 65, 99)] == [32, 32, 64, 64, 100, 100]
    assert [bucket(rows, 1) for rows in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


@pytest.mark.parametrize(
    ("by", "dtype", "rows"), [("operators", "float32", 1), ("operators", "float16", 2), ("kernels", "float16", 2)]
)
def test_what_is_compiled_ahead_is_all_that_a_first_text_needs(compiled, by, dtype, rows, request):
    request.getfixturevalue(by)
    model = GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 128}, compute_dtype=dtype))
    generator = Generator(model)
    with generator.running():
        generator.graphs.compile(rows, 128)
    if by == "operators":
        assert sorted(compiled) == ["CopyRow", "Decode", "LastLogits", "LastLogits", "Opening", "Prefill"]
    else:
        assert sorted(compiled) == ["KernelCopyRow", "KernelDecode", "KernelLastLogits", "KernelPrefill"]
    compiled.clear()
    generator.generate([[1, 2, 3], [4]][:rows], GenerationSettings(max_new_tokens=3))
    generator.generate([[1] * 100, [5]][:rows], GenerationSettings(max_new_tokens=3))
    assert compiled == []
