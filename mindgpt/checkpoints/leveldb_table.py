"""LevelDB tables, read whole: sorted keys and values. TensorFlow's checkpoint index is one.

The format (`doc/table_format.md` of LevelDB): blocks, then a footer of 48 bytes, which holds the offsets and sizes of
two blocks and ends in a magic number. The second of them, the index block, lists the data blocks. After each block come
a byte that tells its compression, and its masked CRC32C.
"""

from collections.abc import Iterator
from pathlib import Path

from mindgpt.checkpoints.crc32c import masked_crc32c
from mindgpt.checkpoints.protobuf_wire import Malformed, read_varint
from mindgpt.checkpoints.snappy_block import decompress

_FOOTER_BYTES = 48
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER_BYTES = 5  # of a block: compression, checksum
_PLAIN, _SNAPPY = 0, 1


def read_table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Each key and value of a table, in the order of the keys.

    Raises:
        Malformed: the file is no table, is cut short, or a block does not match its checksum.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _FOOTER_BYTES, 0))
        footer = file.read()
        if not footer.endswith(_MAGIC) or len(footer) < _FOOTER_BYTES:
            raise Malformed("it does not end as an index of TensorFlow does")
        file.seek(0)
        table = file.read(size - _FOOTER_BYTES)
    about_blocks, position = _handle(footer, 0)
    _block(table, *about_blocks)  # empty in a checkpoint; read for its checksum
    index, _ = _handle(footer, position)
    for _, value in _entries(_block(table, *index)):
        handle, _ = _handle(value, 0)
        yield from _entries(_block(table, *handle))


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and the position after them."""
    offset, position = read_varint(data, position, len(data))
    size, position = read_varint(data, position, len(data))
    return (offset, size), position


def _block(table: bytes, offset: int, size: int) -> bytes:
    """The decompressed bytes of a block."""
    end = offset + size + _TRAILER_BYTES
    if end > len(table):
        raise Malformed(f"the block at byte {offset} would end at {end}, after the last byte, {len(table)}")
    stored, compression = table[offset : offset + size], table[offset + size]
    if masked_crc32c(table[offset : offset + size + 1]) != int.from_bytes(table[end - 4 : end], "little"):
        raise Malformed(f"the block at byte {offset} does not match its checksum")
    if compression not in (_PLAIN, _SNAPPY):
        raise Malformed(f"the block at byte {offset} is compressed in an unknown way, {compression}")
    return decompress(stored) if compression == _SNAPPY else stored


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each key and value of a block. A key is stored as the number of bytes that it shares with the one before, and the
    rest. After the entries come the offsets of those that share none, uint32 each, and their count."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (count + 1)
    if len(block) < 4 or end < 0:
        raise Malformed(f"a block of {len(block)} bytes cannot have {count} restarts")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position, end)
        rest, position = read_varint(block, position, end)
        length, position = read_varint(block, position, end)
        if shared > len(key) or position + rest + length > end:
            raise Malformed("an entry does not fit into its block")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length
