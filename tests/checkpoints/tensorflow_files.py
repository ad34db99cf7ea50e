"""Writes TensorFlow checkpoints from the description of their format, as an oracle of `tensorflow_format`.

Nothing of the program is used; checksums are computed bit by bit, so keep the tensors small.
"""

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

CODES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "bfloat16": 14, "float16": 19}
LITTLE_ENDIAN, BIG_ENDIAN = 0, 1


class Stored(NamedTuple):
    """A tensor as it is stored, for types that NumPy does not have."""

    code: int
    shape: tuple[int, ...]
    content: bytes
    slices: int = 0  # of a partitioned variable
    checksum: int | None = None  # None: computed


def crc(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    value = crc(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def compress(data: bytes, kinds: Counter | None = None) -> bytes:
    """Snappy with literals of all lengths and copies of all three kinds, which `kinds` counts."""
    kinds = Counter() if kinds is None else kinds
    out, seen, literal, position = varint(len(data)), {}, b"", 0

    def flush() -> None:
        nonlocal out, literal
        for start in range(0, len(literal), 1 << 16):
            piece = literal[start : start + (1 << 16)]
            count = len(piece) - 1
            if count < 60:
                out += bytes([count << 2])
            else:
                size = 1 if count < 256 else 2
                out += bytes([(59 + size) << 2]) + count.to_bytes(size, "little")
                kinds[f"literal of {size} length bytes"] += 1
            out += piece
        literal = b""

    while position < len(data):
        start = seen.get(data[position : position + 4])
        seen[data[position : position + 4]] = position
        length = 0
        while start is not None and length < 64 and position + length < len(data):
            if data[start + length] != data[position + length]:
                break
            length += 1
        if length < 4:
            literal += data[position : position + 1]
            position += 1
            continue
        flush()
        distance = position - start
        kinds["overlapping"] += distance < length
        if length < 12 and distance < 2048:
            out += bytes([distance >> 8 << 5 | (length - 4) << 2 | 1, distance & 255])
            kinds["copy 1"] += 1
        elif distance < 65536 and kinds["copy 2"] <= 3 * kinds["copy 3"]:
            out += bytes([(length - 1) << 2 | 2]) + struct.pack("<H", distance)
            kinds["copy 2"] += 1
        else:
            out += bytes([(length - 1) << 2 | 3]) + struct.pack("<I", distance)
            kinds["copy 3"] += 1
        position += length
    flush()
    return out


def block_of(pairs: Sequence[tuple[bytes, bytes]], restart_interval: int = 16) -> bytes:
    out, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_table(path: Path, pairs: Sequence[tuple[bytes, bytes]], snappy: bool = False, per_block: int = 1000) -> None:
    """A LevelDB table; its index block and the empty one are plain, as in the files of GPT2_ML."""
    table = b""

    def add(content: bytes, compressed: bool) -> bytes:
        nonlocal table
        content = (compress(content) if compressed else content) + bytes([compressed])
        handle = varint(len(table)) + varint(len(content) - 1)
        table += content + struct.pack("<I", masked(content))
        return handle

    groups = [pairs[start : start + per_block] for start in range(0, len(pairs), per_block)]
    handles = [(group[-1][0], add(block_of(group), snappy)) for group in groups]
    footer = add(block_of([]), False) + add(block_of(handles, 1), False)
    path.write_bytes(table + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"))


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message; zeros and empty ones are left out."""
    if not value:
        return b""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def header(shards: int = 1, endianness: int = LITTLE_ENDIAN) -> tuple[bytes, bytes]:
    return b"", field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def entry(stored: Stored, shard: int, offset: int, size: int | None = None) -> bytes:
    """`size`: in bytes, of content that is written elsewhere."""
    dimensions = b"".join(varint(2 << 3 | 2) + varint(len(inside)) + inside for inside in
                          (field(1, size) for size in stored.shape))  # fmt: skip
    shape = varint(2 << 3 | 2) + varint(len(dimensions)) + dimensions
    checksum = masked(stored.content) if stored.checksum is None else stored.checksum
    size = len(stored.content) if size is None else size
    return (
        field(1, stored.code) + shape + field(3, shard) + field(4, offset) + field(5, size)
        + varint(6 << 3 | 5) + struct.pack("<I", checksum) + field(7, b"\x0a\x02\x08\x02") * stored.slices
    )  # fmt: skip


def stored(array: "np.ndarray | Stored") -> Stored:
    if isinstance(array, Stored):
        return array
    return Stored(CODES[array.dtype.name], array.shape, array.tobytes())


def write_bundle(
    prefix: Path,
    tensors: "Mapping[str | bytes, np.ndarray | Stored]",
    shards: int = 1,
    endianness: int = LITTLE_ENDIAN,
    **options: "bool | int",
) -> Path:
    """Write a checkpoint, its tensors in turn to each data file; returns the prefix. `options` are of `write_table`."""
    prefix.parent.mkdir(exist_ok=True)
    data, pairs = [b""] * shards, [header(shards, endianness)]
    named = {name.encode() if isinstance(name, str) else name: stored(array) for name, array in tensors.items()}
    for number, (name, tensor) in enumerate(sorted(named.items())):
        shard = number % shards
        pairs.append((name, entry(tensor, shard, len(data[shard]))))
        data[shard] += tensor.content
    write_table(prefix.with_name(f"{prefix.name}.index"), pairs, **options)
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return prefix
