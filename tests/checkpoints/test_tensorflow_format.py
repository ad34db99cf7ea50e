"""TensorFlow's checkpoints against files written from the description of the format, and real indexes of GPT2_ML."""

import re
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from mindgpt.checkpoints.crc32c import crc32c, masked_crc32c
from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_ml_names import tensorflow_table
from mindgpt.checkpoints.locations import find_weights, is_model_name
from mindgpt.checkpoints.protobuf_wire import Malformed
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.snappy_block import decompress
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.config.errors import UserError
from tests.checkpoints.tensorflow_files import (
    BIG_ENDIAN,
    CODES,
    Stored,
    compress,
    crc,
    entry,
    header,
    masked,
    write_bundle,
    write_table,
)

RANDOM = np.random.default_rng(3)
TENSORS = {
    "global_step": np.array(100000, np.int64),
    "half": RANDOM.standard_normal((3, 5)).astype(np.float16),
    "scope/a/kernel": RANDOM.standard_normal((4, 6)).astype(np.float32),
    "scope/a/kernel/Adam": RANDOM.standard_normal((4, 6)).astype(np.float32),
    "scope/a/kernel/Adam_1": np.zeros((4, 6), np.float32),
    "scope/b": np.zeros((0, 3), np.float32),
    "scope/flags": np.array([True, False, True]),
    "wide": RANDOM.standard_normal(7),
}


def assert_holds(source, tensors) -> None:
    assert list(source.entries) == sorted(tensors)
    for name, array in tensors.items():
        assert source.entries[name] == TensorInfo(array.shape, array.dtype.name)
        read = source.read(name)
        assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes(), name


@pytest.mark.parametrize("snappy", [False, True], ids=["plain", "snappy"])
@pytest.mark.parametrize(("shards", "per_block"), [(1, 1000), (3, 2)])
def test_arrays_are_identical(tmp_path, snappy, shards, per_block):
    prefix = write_bundle(tmp_path / "model.ckpt-7", TENSORS, shards, snappy=snappy, per_block=per_block)
    assert_holds(open_source(prefix), TENSORS)


def test_bfloat16_is_read_as_float32(tmp_path):
    bits = np.array([[0x3F80, 0xC040], [0x7F80, 0x0001]], np.uint16)  # 1, -3, infinity, the smallest
    prefix = write_bundle(tmp_path / "x", {"w": Stored(CODES["bfloat16"], (2, 2), bits.tobytes())})
    source = open_source(prefix)
    assert source.entries["w"] == TensorInfo((2, 2), "bfloat16")
    assert source.read("w").tolist() == [[1, -3], [np.inf, 2.0**-133]]


def test_every_way_to_name_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "run" / "model.ckpt-5", {"old": np.ones(2, np.float32)})
    write_bundle(tmp_path / "run" / "model.ckpt-10", TENSORS)
    (tmp_path / "run" / "checkpoint").write_text(
        'model_checkpoint_path: "/elsewhere/model.ckpt-10"\nall_model_checkpoint_paths: "/elsewhere/model.ckpt-5"\n'
    )
    write_bundle(tmp_path / "only" / "model.ckpt", TENSORS)
    write_bundle(tmp_path / "model.ckpt-10", TENSORS)
    for named in (
        "run", "run/model.ckpt-10", "run/model.ckpt-10.index", "run/model.ckpt-10.data-00000-of-00001", "only",
        "only/model.ckpt", "model.ckpt-10", tmp_path / "run" / "model.ckpt-10",
    ):  # fmt: skip
        found = find_weights(named)
        assert found.exists()
        for path in (found, named):
            source = open_source(path)
            assert_holds(source, TENSORS)
            assert source.path.name == f"model.ckpt{'' if 'only' in str(named) else '-10'}.index"


def test_prefixes_are_no_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "mega", TENSORS)
    assert not any(map(is_model_name, ("model.ckpt-850000", "mega", "mega.index", "mega.data-00000-of-00001")))
    assert is_model_name("gpt2")
    assert find_weights("mega").name == "mega.index"
    with pytest.raises(UserError, match="there is no file or folder model.ckpt-850000"):
        find_weights("model.ckpt-850000")


def refused(path) -> str:
    with pytest.raises(UserError) as raised:
        open_source(path)
    assert str(raised.value).count("\n") == 0
    return str(raised.value)


def test_a_flipped_bit_is_found(tmp_path):
    """Wherever it is: in a tensor, or in the index, but for the zeros in the footer that nothing uses."""
    tensors = {name: TENSORS[name] for name in ("global_step", "half", "scope/a/kernel")}
    prefix = write_bundle(tmp_path / "x", tensors, snappy=True, per_block=3)
    index, data = tmp_path / "x.index", tmp_path / "x.data-00000-of-00001"
    whole, entries = index.read_bytes(), open_source(prefix).entries
    for position in range(len(whole)):
        index.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            assert open_source(prefix).entries == entries and whole[position] == 0 and position > len(whole) - 48
        except UserError as error:
            assert str(error).startswith(f"{index}: not a whole index of a TensorFlow checkpoint")
    index.write_bytes(whole)
    damaged = bytearray(data.read_bytes())
    damaged[8 + 30 + 17] ^= 4
    data.write_bytes(damaged)
    source = open_source(prefix)
    with pytest.raises(UserError, match=r"data-00000-of-00001: scope/a/kernel does not match its checksum"):
        source.read("scope/a/kernel")
    assert source.read("half").tobytes() == TENSORS["half"].tobytes()


def test_a_file_that_is_cut_short(tmp_path):
    prefix = write_bundle(tmp_path / "x", TENSORS, snappy=True)
    index, data = tmp_path / "x.index", tmp_path / "x.data-00000-of-00001"
    whole = index.read_bytes()
    for length in range(1, len(whole), 3):
        index.write_bytes(whole[:length])
        assert "It is damaged, cut short, or another kind of file" in refused(prefix)
    index.write_bytes(b"")
    assert "x.index: the file is empty" in refused(prefix)
    index.write_bytes(whole)
    source = open_source(prefix)
    data.write_bytes(content := data.read_bytes()[:-1])
    assert f"has {len(content)} bytes, and by its index {len(content) + 1}" in refused(prefix)
    with pytest.raises(UserError, match="ends inside wide: the file is cut short"):
        source.read("wide")


def test_a_file_that_is_missing(tmp_path):
    prefix = write_bundle(tmp_path / "x", TENSORS, shards=3)
    (tmp_path / "x.data-00001-of-00003").unlink()
    assert "x.index: the data is missing: x.data-00001-of-00003. Copy all files" in refused(prefix)
    (tmp_path / "x.index").unlink()
    for path in (prefix, tmp_path / "x.index", tmp_path / "x.data-00000-of-00003"):
        assert "its index, x.index, is missing" in refused(path)
    for name in ("y", "y.index"):
        assert f"{name}: no such file" in refused(tmp_path / name)
    for name in ("y", "x.index"):
        with pytest.raises(UserError, match="there is no file or folder"):
            find_weights(tmp_path / name)


ONES = Stored(CODES["float32"], (2,), np.ones(2, np.float32).tobytes())
REFUSED = {
    "partitioned": ({"w": ONES._replace(slices=2), b"\0\1w\0\1": ONES}, "w is a partitioned variable"),
    "object-based": (
        {"_CHECKPOINTABLE_OBJECT_GRAPH": ONES._replace(code=7), "model/w/.ATTRIBUTES/VARIABLE_VALUE": ONES},
        "an object-based checkpoint of TensorFlow 2",
    ),
    "object-based without its graph": ({"model/w/.ATTRIBUTES/VARIABLE_VALUE": ONES}, "an object-based checkpoint"),
    "text": ({"note": ONES._replace(code=7)}, "note is text, which is no weight"),
    "complex numbers": ({"w": ONES._replace(code=8)}, "w is TensorFlow's data type number 8"),
    "wrong size": ({"w": ONES._replace(shape=(3,))}, r"w [3] float32 cannot have 8 bytes"),
    "nothing": ({}, "it lists no tensors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_checkpoints_of_other_kinds(tmp_path, kind):
    tensors, says = REFUSED[kind]
    assert says in refused(write_bundle(tmp_path / "x", tensors))


def test_big_endian(tmp_path):
    assert "big-endian" in refused(write_bundle(tmp_path / "x", TENSORS, endianness=BIG_ENDIAN))


def test_tables_that_are_no_index(tmp_path):
    write_table(tmp_path / "x.index", [(b"w", entry(ONES, 0, 0))])
    assert "it has no header" in refused(tmp_path / "x")
    write_table(tmp_path / "x.index", [header(shards=10**9)])
    assert "it has 1000000000 data files" in refused(tmp_path / "x")
    write_table(tmp_path / "x.index", [header(), (b"w", entry(ONES, 3, 0))])
    assert "w is in data file 3, and there are 1" in refused(tmp_path / "x")


def test_folders_that_do_not_say_which(tmp_path):
    for step in (5, 10):
        write_bundle(tmp_path / f"model.ckpt-{step}", TENSORS)
    assert "several TensorFlow checkpoints (model.ckpt-10.index, model.ckpt-5.index)" in refused(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "C:\\\\runs\\\\model.ckpt-15"\n')
    assert "names model.ckpt-15.index, which is not there. Found model.ckpt-10.index, model" in refused(tmp_path)


def test_files_of_keras(tmp_path):
    for name in ("best_model.weights", "tf_model.h5"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        assert "an HDF5 file of Keras" in refused(tmp_path / name)


@pytest.mark.parametrize(("step", "vocabulary"), [(100000, 21130), (220000, 8021)])
def test_the_real_indexes(tmp_path, shared_data, step, vocabulary):
    """1836 entries: the header, the step, 772 weights and 1062 slots of AdaFactor. The data is a file of the right size
    that takes no room on the disk."""
    name = f"model.ckpt-{step}"
    (tmp_path / f"{name}.index").write_bytes((shared_data / "gpt2_ml" / f"{name}.index").read_bytes())
    size = 5_585_033_776 if vocabulary == 21130 else 5_504_439_644
    with open(tmp_path / f"{name}.data-00000-of-00001", "wb") as file:
        file.truncate(size)
    source = open_source(tmp_path / name)
    rules = Counter(skip_rule(name) for name in source.entries)
    assert rules == {"optimizer state": 1062, "training counter": 1, None: 772}
    sizes = {"V": vocabulary, "P": 1024, "H": 1536, "F": 6144}
    shapes = {row.name: tuple(sizes[letter] for letter in row.shape) for row in tensorflow_table(48)}
    assert {name: info.shape for name, info in source.entries.items() if not skip_rule(name)} == shapes
    assert sum(info.nbytes for info in source.entries.values()) == size
    assert {info.dtype for name, info in source.entries.items() if name != "global_step"} == {"float32"}
    with pytest.raises(UserError, match="does not match its checksum"):
        source.read("newslm/layer00/query_layer/bias")


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """256 MB, whose bytes take no room on the disk."""
    size, count = 1 << 23, 8
    checksum = masked_crc32c(np.zeros(4 * size, np.uint8))
    pairs, offset = [header()], 0
    for number in range(count):
        tensor = Stored(CODES["float32"], (size,), b"", checksum=checksum)
        pairs.append((f"w{number}".encode(), entry(tensor, 0, offset, 4 * size)))
        offset += 4 * size
    write_table(tmp_path / "x.index", pairs)
    with open(tmp_path / "x.data-00000-of-00001", "wb") as file:
        file.truncate(offset)
    tracemalloc.start()
    source = open_source(tmp_path / "x")
    for name in source.entries:
        assert source.read(name).shape == (size,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * size < peak < 4 * size + (4 << 20)


RFC_3720 = {  # appendix B.4
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
}


def test_crc32c():
    for data, wanted in RFC_3720.items():
        assert crc32c(data) == crc(data) == wanted
    for length in (0, 1, 3, 4, 5, 1000, 65535, 65536, 65537, 131085):  # a row is 65536 bytes
        data = RANDOM.integers(0, 256, length, np.uint8)
        assert crc32c(data) == crc(data.tobytes()), length
    assert masked_crc32c(b"abc") == masked(b"abc")


def test_snappy():
    kinds, random = Counter(), np.random.default_rng(5)
    words = random.integers(0, 6, 3000, np.uint8).tobytes()
    noise = random.integers(0, 256, 70000, np.uint8).tobytes()
    for data in (
        b"",
        b"a",
        b"a" * 1000,
        b"abc" * 50,
        b"ab" * 9,
        b"abcd" * 20,
        noise[:200],
        words,
        noise,
        words + noise + words,
    ):
        assert decompress(compress(data, kinds)) == data
    assert all(kinds[kind] > 2 for kind in ("copy 1", "copy 2", "copy 3", "overlapping"))
    assert kinds["literal of 1 length bytes"] and kinds["literal of 2 length bytes"]
    assert decompress(b"\x07\x08xab\x01\x02") == b"xababab"
    assert decompress(b"\x04\xfc\x03\x00\x00\x00wxyz") == b"wxyz"  # four bytes of length


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x05\x00a", "decompresses to 1 bytes"),
        (b"\x01\x04ab", "decompresses to 2 bytes"),
        (b"\x05\x00a\x01\x02", "reaches 2 bytes back, where there are 1"),
        (b"\x05\x00a\x01\x00", "reaches 0 bytes back"),
        (b"\x05\x10ab", "ends too early"),
        (b"\x05\xf0", "ends too early"),
        (b"\x05\x00a\x02\x01", "ends too early"),
        (b"\x80", "it ends inside a number"),
    ],
)
def test_snappy_that_is_damaged(data, says):
    with pytest.raises(Malformed, match=re.escape(says)):
        decompress(data)


@pytest.mark.slow
def test_files_that_tensorflow_wrote(tmp_path):
    """With TensorFlow 2.21 its blocks are plain; those of GPT2_ML's two published files are snappy."""
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow-cpu")
    v1 = tensorflow.compat.v1

    def session():
        return v1.Session(config=v1.ConfigProto(device_count={"CPU": 3}))

    values = np.array([[1, -3.5], [0.125, 1e-3]], np.float32)
    with v1.Graph().as_default(), session() as running:
        made = {}
        for number, (name, array) in enumerate(TENSORS.items()):
            with tensorflow.device(f"/cpu:{number % 3}"):
                made[name] = v1.Variable(array, name=name)
        running.run(v1.global_variables_initializer())
        for folder, sharded, shards in (("one", False, 1), ("three", True, 3)):
            (tmp_path / folder).mkdir()
            prefix = v1.train.Saver(made, sharded=sharded).save(
                running, str(tmp_path / folder / "model.ckpt"), global_step=7
            )
            assert prefix.endswith("model.ckpt-7")
            assert len(list((tmp_path / folder).glob("*.data-*"))) == shards
            for path in (prefix, tmp_path / folder):
                assert_holds(open_source(path), TENSORS)
    with v1.Graph().as_default(), session() as running:
        narrow = v1.Variable(tensorflow.cast(values, tensorflow.bfloat16), name="narrow")
        running.run(v1.global_variables_initializer())
        source = open_source(v1.train.Saver().save(running, str(tmp_path / "narrow.ckpt")))
        assert source.entries == {"narrow": TensorInfo((2, 2), "bfloat16")}
        np.testing.assert_array_equal(source.read("narrow"), running.run(tensorflow.cast(narrow, tensorflow.float32)))
    objects = tensorflow.train.Checkpoint(w=tensorflow.Variable(np.ones(3, np.float32)))
    assert "an object-based checkpoint of TensorFlow 2" in refused(objects.save(str(tmp_path / "v2" / "ckpt")))
    with v1.Graph().as_default(), session() as running:
        v1.get_variable("w", (4, 2), partitioner=v1.fixed_size_partitioner(2))
        running.run(v1.global_variables_initializer())
        prefix = v1.train.Saver().save(running, str(tmp_path / "parts.ckpt"))
    assert "w is a partitioned variable" in refused(prefix)
