"""`.ckpt` and `.safetensors` files: ours are read by the real libraries, theirs by us, and broken ones are refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import mindspore as ms
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from mindgpt.checkpoints import mindspore_format
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.safetensors_format import SafetensorsFile, write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo, cast
from mindgpt.config.errors import UserError


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = ("float32", "float16", "float64", "int8", "int32", "int64", "uint8", "bool")
    held = {f"x.{kind}": (rng.standard_normal((3, 5)) * 9).astype(kind) for kind in kinds}
    return held | {"scalar": np.array(-3, np.int64), "transposed": held["x.float32"].T, "long": np.arange(700.0)}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("slice_bytes", [mindspore_format.SLICE_BYTES, 48])
def test_mindspore_reads_what_we_write(tmp_path, monkeypatch, slice_bytes):
    """Also tensors that are cut into slices, as those above 512 MiB are."""
    monkeypatch.setattr(mindspore_format, "SLICE_BYTES", slice_bytes)
    write_checkpoint(tmp_path / "x.ckpt", [*arrays().items(), ("note", "é, 字")])
    loaded = ms.load_checkpoint(str(tmp_path / "x.ckpt"))
    assert loaded.pop("note") == "é, 字"
    assert list(loaded) == list(arrays())
    assert all(same(loaded[name].asnumpy(), array) for name, array in arrays().items())


@pytest.mark.parametrize("crc_check", [False, True])
def test_we_read_what_mindspore_writes(tmp_path, monkeypatch, crc_check):
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)  # KiB, so that "long" is written in slices
    items = [{"name": name, "data": Tensor(array)} for name, array in arrays().items()]
    half = np.array([[1.0, -2.5], [3.140625, 1e30]], np.float32)
    items.append({"name": "half", "data": Tensor(half, ms.bfloat16)})
    extra = {"epoch_num": 3, "rate": 0.5, "note": "é, 字"}
    ms.save_checkpoint(items, str(tmp_path / "x.ckpt"), append_dict=extra, crc_check=crc_check)

    file = CheckpointFile(tmp_path / "x.ckpt")
    assert file.texts == {"note": "é, 字"}
    assert list(file.entries) == [*arrays(), "half", "epoch_num", "rate"]
    assert all(same(file.read(name), array) for name, array in arrays().items())
    assert all(
        info == (file.read(name).shape, file.read(name).dtype) for name, info in file.entries.items() if name != "half"
    )
    assert file.entries["half"] == ((2, 2), "bfloat16")
    # bfloat16 keeps 8 bits of the mantissa; the values but the last are exact in it
    expected = half.copy()
    expected[1, 1] = torch.tensor(1e30).bfloat16().float().item()
    assert same(file.read("half"), expected)
    assert file.read("epoch_num") == 3 and file.read("rate") == 0.5


def test_checksum_finds_a_flipped_bit(tmp_path):
    path = tmp_path / "x.ckpt"
    ms.save_checkpoint([{"name": "x", "data": Tensor(np.arange(6.0))}], str(path), crc_check=True)
    content = bytearray(path.read_bytes())
    content[-30] ^= 1  # inside the data, where the structure does not tell
    path.chmod(0o600)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ckpt: .*checksum"):
        CheckpointFile(path)


@pytest.mark.parametrize("slice_bytes", [mindspore_format.SLICE_BYTES, 8])
def test_a_truncated_checkpoint_never_gives_a_partial_tensor(tmp_path, monkeypatch, slice_bytes):
    """A cut between tensors leaves a valid file of fewer names, which strict loading finds; any other is an error."""
    monkeypatch.setattr(mindspore_format, "SLICE_BYTES", slice_bytes)
    path = tmp_path / "x.ckpt"
    held = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16), "c": np.zeros((2, 2))}
    write_checkpoint(path, held.items())
    content = path.read_bytes()
    whole = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            file = CheckpointFile(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            whole.append(list(file.entries))
            assert all(same(file.read(name), held[name]) for name in file.entries)
    assert whole == [["a"], ["a", "b"]]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=60), safetensors_length=st.booleans())
def test_garbage_is_a_user_error(tmp_path, data, safetensors_length):
    path = tmp_path / "x"
    path.write_bytes(len(data).to_bytes(8, "little") + data if safetensors_length else data)
    for reader in (CheckpointFile, SafetensorsFile):
        with pytest.raises(UserError, match="x:"):
            reader(path)


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path):
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, [("a", np.ones(100, np.float32))])
    file = CheckpointFile(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="ends inside a"):
        file.read("a")


def test_kill_during_a_write_leaves_the_earlier_file(tmp_path, repo):
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, [("a", np.arange(5.0))])
    before = path.read_bytes()
    script = textwrap.dedent("""
        import sys, time
        import numpy as np
        from mindgpt.checkpoints.mindspore_format import write_checkpoint
        def items():
            yield "a", np.zeros(1_000_000, np.float32)
            print("half", flush=True)
            time.sleep(60)
        write_checkpoint(sys.argv[1], items())
    """)
    process = subprocess.Popen([sys.executable, "-c", script, path], cwd=repo, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == before
    assert same(CheckpointFile(path).read("a"), np.arange(5.0))


def test_an_error_during_a_write_leaves_the_earlier_file_and_no_other(tmp_path):
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, [("a", np.arange(5.0))])
    before = path.read_bytes()

    def items():
        yield "a", np.zeros(5)
        raise RuntimeError("disk pulled out")

    with pytest.raises(RuntimeError):
        write_checkpoint(path, items())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.ckpt"]


def torch_tensors() -> dict[str, torch.Tensor]:
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays().items()}
    return tensors | {"half": torch.tensor([[1.0, -2.5, 1e30]]).bfloat16(), "empty": torch.zeros(0, 3)}


def test_we_read_what_safetensors_writes(tmp_path):
    safetensors.torch.save_file(torch_tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert set(file.entries) == set(torch_tensors())
    for name, tensor in torch_tensors().items():
        assert file.entries[name] == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert same(file.read(name), wide.numpy())


def test_safetensors_reads_what_we_write(tmp_path):
    entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays().items()}
    write_safetensors(tmp_path / "x.safetensors", entries, arrays().items())
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == arrays().keys()
    assert all(same(loaded[name].numpy(), array) for name, array in arrays().items())


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.arange(6.0), "b": torch.ones(3).half()}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"x\.safetensors"):
            SafetensorsFile(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}, "F8_E4M3"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"cannot lie at bytes 0\.\.4"),
        ({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "cannot lie"),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "should have"),
        ({"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]}, "not a whole safetensors file"),
        (["F32"], "not a whole safetensors file"),
    ],
)
def test_inconsistent_safetensors_headers_are_refused(tmp_path, entry, reason):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=reason):
        SafetensorsFile(path)


def test_cast_refuses_overflow_but_keeps_infinities():
    assert same(cast(np.array([1.0, np.inf], np.float32), "float16", "a"), np.array([1.0, np.inf], np.float16))
    with pytest.raises(UserError, match=r"a: 2 of its values are too large for float16 \(largest: 100000\)"):
        cast(np.array([1.0, -1e5, 7e4, np.nan], np.float32), "float16", "a")
    with pytest.raises(UserError, match="int64"):
        cast(np.arange(3), "float32", "a")
