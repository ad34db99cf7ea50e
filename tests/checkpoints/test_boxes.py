"""Boxes of tensors: equal to the same part of the whole tensor in every format and under every naming, and no other
bytes are read."""

import itertools
import json
import os
import tracemalloc

import numpy as np
import pytest
import torch

from mindgpt.checkpoints import mindspore_format, tensor_source
from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_ml_views import GPT2MLView, ToGPT2MLView
from mindgpt.checkpoints.gpt2_views import MindFormersView, UntiedHead
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.safetensors_format import SafetensorsFile, write_safetensors
from mindgpt.checkpoints.tensor_source import BFLOAT16_BITS, TensorInfo, equal_bits, read_box, tensors
from mindgpt.checkpoints.torch_format import TorchFile, write_torch
from mindgpt.checkpoints.uer_views import ToUERView, UERView
from mindgpt.models.gpt2.gpt2_tensor_parallel import ShardOfWeights
from tests.checkpoints import tiny_gpt2

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.standard_normal((12, 20)).astype(np.float32),
    "vector": RNG.standard_normal(24).astype(np.float16),
    "cube": RNG.integers(0, 99, (4, 6, 8)),
    "scalar": np.array(3.0),
}


def boxes(shape):
    """All that halves and thirds of each axis make."""
    sides = [
        [slice(0, size), slice(0, size // 2), slice(size // 2, size), slice(size // 3, 2 * size // 3)] for size in shape
    ]
    return list(itertools.product(*sides))


def assert_boxes(source):
    for name in source.entries:
        whole = source.read(name)
        for box in [None, *boxes(whole.shape)]:
            part, expected = read_box(source, name, box), whole[box] if box else whole
            assert part.dtype == whole.dtype and part.flags.c_contiguous
            assert part.shape == expected.shape and np.array_equal(part, expected), (name, box)


@pytest.fixture(params=[tensor_source._PAGE, 1], ids=["rows", "runs"])
def page(request, monkeypatch):
    """Runs of bytes shorter than a page are read with the rows they lie in; of toy tensors all or none are."""
    monkeypatch.setattr(tensor_source, "_PAGE", request.param)
    monkeypatch.setattr(tensor_source, "_BUFFER", 300)  # a few rows


@pytest.mark.parametrize("slice_bytes", [mindspore_format.SLICE_BYTES, 48])
def test_boxes_of_a_ckpt(tmp_path, monkeypatch, page, slice_bytes):
    monkeypatch.setattr(mindspore_format, "SLICE_BYTES", slice_bytes)
    bits = RNG.integers(0, 2**14, (6, 10)).astype(np.uint16).view(BFLOAT16_BITS)
    write_checkpoint(tmp_path / "x.ckpt", [*ARRAYS.items(), ("half", bits)])
    assert_boxes(CheckpointFile(tmp_path / "x.ckpt"))


def test_boxes_of_safetensors_and_of_their_index(tmp_path, page):
    parts = [{name: array for name, array in ARRAYS.items() if (name == "cube") == last} for last in (False, True)]
    for number, held in enumerate(parts):
        entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in held.items()}
        write_safetensors(tmp_path / f"{number}.safetensors", entries, held.items())
        assert_boxes(SafetensorsFile(tmp_path / f"{number}.safetensors"))
    names = {name: f"{number}.safetensors" for number, held in enumerate(parts) for name in held}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert_boxes(open_source(tmp_path / "x.safetensors.index.json"))


@pytest.mark.parametrize("zipped", [True, False])
def test_boxes_of_a_torch_file(tmp_path, zipped):
    """Twice: pages of a mapped file are given back after they are read."""
    large = RNG.standard_normal((300, 100)).astype(np.float32)
    write_torch(tmp_path / "x.bin", [*ARRAYS.items(), ("large", large)])
    if not zipped:
        state = torch.load(tmp_path / "x.bin", weights_only=True) | {"half": torch.randn(6, 8).bfloat16()}
        torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    file = TorchFile(tmp_path / "x.bin")
    assert_boxes(file)
    assert_boxes(file)
    assert np.array_equal(file.read("large"), large)


def test_boxes_under_every_naming(tmp_path):
    """Query, key and value are one transposed tensor under Hugging Face's names, and matrices are under UER-py's."""
    theirs = SafetensorsFile(tiny_gpt2.write(tmp_path / "hf.safetensors", tiny_gpt2.tensors()))
    ours = MindFormersView(theirs)
    write_checkpoint(tmp_path / "x.ckpt", tensors(ours))
    held = CheckpointFile(tmp_path / "x.ckpt")
    uer = ToUERView(held)
    write_safetensors(tmp_path / "uer.safetensors", uer.entries, tensors(uer))
    for source in (ours, UntiedHead(ours), UERView(SafetensorsFile(tmp_path / "uer.safetensors"))):
        assert_boxes(source)


@pytest.mark.parametrize("naming", ["torch_port", "tensorflow"])
def test_boxes_of_a_gpt2_ml(tmp_path, naming):
    first = MindFormersView(SafetensorsFile(tiny_gpt2.write(tmp_path / "hf.safetensors", tiny_gpt2.tensors())))
    norm = {f"backbone.embedding.layernorm.{part}": np.ones(tiny_gpt2.H, np.float32) for part in ("gamma", "beta")}
    kept = [(name, array) for name, array in tensors(first) if not name.startswith("backbone.layernorm.")]
    write_checkpoint(tmp_path / "x.ckpt", [*kept, *norm.items()])
    theirs = ToGPT2MLView(CheckpointFile(tmp_path / "x.ckpt"), naming)
    write_safetensors(tmp_path / "ml.safetensors", theirs.entries, tensors(theirs))
    assert_boxes(GPT2MLView(SafetensorsFile(tmp_path / "ml.safetensors")))


@pytest.fixture
def counts(monkeypatch):
    """The bytes of each read."""
    found, preadv = [], os.preadv

    def counting(*arguments):
        found.append(preadv(*arguments))
        return found[-1]

    monkeypatch.setattr(os, "preadv", counting)
    return found


def test_a_box_is_read_without_the_rest(tmp_path, counts):
    """Rows, and columns of a page or more: the bytes of the box. Narrower columns: the rows, a few at a time."""
    wide, rows = np.zeros((64, 4096), np.float32), 16
    write_checkpoint(tmp_path / "x.ckpt", [("wide", wide), ("narrow", np.zeros((100_000, 64), np.float32))])
    file = CheckpointFile(tmp_path / "x.ckpt")
    file.read_box("wide", (slice(8, 8 + rows), slice(0, 4096)))
    assert counts == [rows * 4096 * 4]
    counts.clear()
    file.read_box("wide", (slice(0, 64), slice(2048, 3072)))
    assert counts == [1024 * 4] * 64
    counts.clear()
    tracemalloc.start()
    file.read_box("narrow", (slice(50_000, 100_000), slice(0, 8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts) == 50_000 * 64 * 4 and max(counts) <= tensor_source._BUFFER
    assert peak < 50_000 * 8 * 4 + 1.5 * tensor_source._BUFFER


def test_a_tensor_parallel_rank_reads_its_shard(tmp_path, counts):
    matrix = np.arange(8 * 4096, dtype=np.float32).reshape(8, 4096)
    write_checkpoint(tmp_path / "x.ckpt", [("rows", matrix), ("columns", matrix), ("whole", matrix)])
    file = CheckpointFile(tmp_path / "x.ckpt")
    shard = ShardOfWeights(file, {"rows": 0, "columns": 1}, 4, 2)
    assert np.array_equal(shard.read("rows"), matrix[4:6])
    assert np.array_equal(shard.read("columns"), matrix[:, 2048:3072])
    assert sum(counts) == 2 * matrix.nbytes // 4
    assert np.array_equal(shard.read("whole"), matrix)


def test_tensors_are_compared_by_pieces(tmp_path, monkeypatch, counts):
    monkeypatch.setattr(tensor_source, "_BUFFER", 400)
    one = RNG.standard_normal((50, 10)).astype(np.float32)
    last = one.copy()
    last[-1, -1] += 1
    write_checkpoint(tmp_path / "x.ckpt", [("one", one), ("same", one), ("last", last), ("short", one[:-1])])
    file = CheckpointFile(tmp_path / "x.ckpt")
    assert equal_bits(file, "one", "same")
    assert max(counts) <= 400
    assert not equal_bits(file, "one", "last")
    assert not equal_bits(file, "one", "short")
