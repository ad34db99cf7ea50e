"""Which graphs generation compiles and uses, and that no text depends on it."""

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.generation import GenerationSettings, Generator, engine, generate, inference_graphs
from mindgpt.generation.engine import Batch, generator_of
from mindgpt.generation.inference_graphs import InferenceGraphs, bucket
from mindgpt.generation.scoring import score
from mindgpt.models.gpt2 import gpt2
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("unfused")  # the graphs of test_engine.py are fused

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


def test_shapes():
    """What is compiled is used again if it is not much too large, else powers of two are."""
    graphs = InferenceGraphs(GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 1000})).backbone, None)
    assert graphs.shape_for(3, 200) == (4, 256)
    assert graphs.shape_for(1, 600) == (1, 1000)  # no more than the context
    assert not graphs.is_compiled((4, 256))
    for shape in ((4, 256), (4, 1000), (16, 128)):
        graphs._decoders[shape] = None
    assert graphs.shape_for(3, 200) == (4, 256)
    assert graphs.shape_for(2, 120) == (4, 256)
    assert graphs.shape_for(3, 300) == (4, 1000)
    assert graphs.shape_for(1, 300) == (1, 512)  # a cache of 8 times as many slots is too large
    assert graphs.shape_for(5, 100) == (16, 128)
    assert graphs.shape_for(5, 129) == (8, 256)


def test_a_batch_moves_to_a_smaller_graph_if_it_is_there_or_pays(monkeypatch):
    backbone = GPT2LMHeadModel(GPT2Config(**TINY | {"n_positions": 1024})).backbone
    batch, copied = Batch(InferenceGraphs(backbone, None), 700), []
    monkeypatch.setattr(batch.graphs, "copy", lambda *rows: copied.append(rows))
    batch.graphs._decoders[16, 1024] = None

    def shape_after(numbers, length):
        batch.shape, batch.rows = (16, 1024), list(range(16))
        batch._shrink(numbers, length)
        return batch.shape

    assert shape_after(range(4, 8), 300) == (16, 1024)  # 4 times as large as need be
    assert shape_after([5, 7], 501) == (16, 1024)  # a new graph would cost more than it saves
    assert not copied
    assert shape_after([5, 7], 500) == (2, 1024)
    assert copied == [((16, 1024), 5, (2, 1024), 0), ((16, 1024), 7, (2, 1024), 1)]
    assert [batch.rows[number] for number in (5, 7)] == [0, 1]
    batch.graphs._decoders[2, 1024] = None
    assert shape_after([5, 7], 699) == (2, 1024)


@pytest.mark.parametrize(("by", "chunk"), [("operators", 8), ("operators", 40), ("kernels", None)])
def test_texts_of_all_lengths_are_read_as_the_model_reads_them(monkeypatch, model, prompts, by, chunk, request):
    """In chunks, which the context is a multiple of or not; also several texts one after another."""
    request.getfixturevalue(by)
    monkeypatch.setattr(gpt2, "CHUNK", chunk)
    text = [token for prompt in prompts for token in prompt][:WINDOW]
    expected = model.set_train(False)(Tensor(np.array([text], np.int32))).asnumpy()[0]
    generator = Generator(model)
    assert generator.graphs.prefill_cell.tokens == (chunk or WINDOW)
    with generator.running():
        for length in (3, 31, 32, 33, 61, WINDOW):
            _, logits = engine.prefill(generator.graphs, [text[:length]])
            np.testing.assert_allclose(logits[0], expected[length - 1], atol=1e-4)
        starts, logits = engine.prefill(generator.graphs, [text[:20], text[:30], text[:13]])
        assert starts == [0, 20, 50]
        np.testing.assert_allclose(logits, expected[[19, 29, 12]], atol=1e-4)


@pytest.mark.parametrize("by", ["operators", "kernels"])
@pytest.mark.long
def test_a_cache_that_moves_changes_no_text(monkeypatch, generator, model, prompts, by, request):
    """A batch shrinks when rows have ended, and graphs make room for others: whatever happens, the texts stay."""
    prompts = prompts[:5]
    settings = GenerationSettings(max_new_tokens=30)

    def stop(row, new):
        return len(new) > 5 * row

    beams = GenerationSettings(max_new_tokens=30, eos_token_id=10, num_beams=3, num_return_sequences=3)
    short = GenerationSettings(max_new_tokens=3)
    expected = generator.generate(prompts, settings, stop=stop), generator.generate(prompts[:2], beams)
    expected_short = generator.generate(prompts[:1], short)
    assert [len(row) for row in expected[0]] == [1, 6, 11, 16, 21]
    request.getfixturevalue(by)
    monkeypatch.setattr(inference_graphs, "SMALLEST_CACHE", 16)
    monkeypatch.setattr(inference_graphs, "ROOMY", 1)
    monkeypatch.setattr(inference_graphs, "KEPT_SHAPES", 3)
    monkeypatch.setattr(engine, "WORTH_COMPILING", 0)
    monkeypatch.setattr(gpt2, "CHUNK", 10)
    moving = Generator(model)
    taken, decoder = [], moving.graphs.decoder
    monkeypatch.setattr(moving.graphs, "decoder", lambda shape: taken.append(shape) or decoder(shape))
    assert moving.generate(prompts, settings, stop=stop) == expected[0]
    assert len({batch for batch, _ in taken}) > 2  # it shrank
    assert moving.generate(prompts[:2], beams) == expected[1]
    assert moving.generate(prompts[:1], short) == expected_short
    assert len({capacity for _, capacity in taken}) > 1
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
        assert sorted(compiled) == ["CopyRow", "Decode", "LastLogits", "Prefill"]
    else:
        assert sorted(compiled) == ["KernelCopyRow", "KernelDecode", "KernelLastLogits", "KernelPrefill"]
    compiled.clear()
    generator.generate([[1, 2, 3], [4]][:rows], GenerationSettings(max_new_tokens=3))
    generator.generate([[1] * 100, [5]][:rows], GenerationSettings(max_new_tokens=3))
    assert compiled == []
