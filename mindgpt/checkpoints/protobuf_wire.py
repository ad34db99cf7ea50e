"""Protobuf messages, read field by field without a schema.

The encoding (https://protobuf.dev/programming-guides/encoding): a message is a row of fields. Each is a key, a varint
of 8 times the field number plus the wire type, and a value: 0 a varint, 1 eight bytes, 2 a varint length and that many
bytes, 5 four bytes.
"""

import mmap
from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # the wire types


class Malformed(Exception):
    """The bytes are not what they should be; the text says why."""


def fields(buffer: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Field number, wire type and span (first byte, end) of each field of the message in buffer[start:end].

    A VARINT's span is its encoding. Raises Malformed where a field does not fit.
    """
    position = start
    while position < end:
        key, body = read_varint(buffer, position, end)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            stop = read_varint(buffer, body, end)[1]
        elif wire_type == LENGTH_DELIMITED:
            length, body = read_varint(buffer, body, end)
            stop = body + length
        elif wire_type in (FIXED64, FIXED32):
            stop = body + (8 if wire_type == FIXED64 else 4)
        else:
            raise Malformed(f"no field can begin at byte {position}")
        if stop > end:
            raise Malformed(f"the field at byte {position} needs {stop - end} bytes more than there are")
        yield number, wire_type, (body, stop)
        position = stop


def read_varint(buffer: bytes | mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A base-128 varint at `position`: its value and the position after it."""
    value = 0
    for count in range(10):
        if position + count >= end:
            raise Malformed(f"it ends inside a number at byte {position}")
        byte = buffer[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise Malformed(f"no number at byte {position}")
