"""Decompresses a block of Snappy, in plain Python.

The format (`format_description.txt` of google/snappy): the length of the result as a varint, then elements. The lower
two bits of an element's first byte, its tag, tell what it is: bytes to take as they are (a literal), or a distance back
and a number of bytes to copy from there, which may overlap what the copy writes.

There are maintained packages, cramjam and python-snappy. They would be a compiled dependency of every installation, for
the 26 KB of an index, which take milliseconds here; and as an optional one they would leave this module to be kept for
those who lack them.
"""

from mindgpt.checkpoints.protobuf_wire import Malformed, read_varint

_LITERAL, _SHORT_COPY = 0, 1
_DISTANCE_BYTES = {2: 2, 3: 4}  # kind of copy -> bytes of its distance


def decompress(data: bytes) -> bytes:
    """The bytes that `data` stands for. Raises Malformed where it is no such block."""
    length, position = read_varint(data, 0, len(data))
    result = bytearray()
    while position < len(data):
        tag, position = data[position], position + 1
        kind = tag & 3
        if kind == _LITERAL:
            count, position = _literal_length(data, tag, position)
            result += _taken(data, position, count)
            position += count
        else:
            if kind == _SHORT_COPY:
                count, size = 4 + (tag >> 2 & 7), 1
                distance = tag >> 5 << 8 | _taken(data, position, 1)[0]
            else:
                count, size = 1 + (tag >> 2), _DISTANCE_BYTES[kind]
                distance = int.from_bytes(_taken(data, position, size), "little")
            position += size
            if not 0 < distance <= len(result):
                raise Malformed(f"a copy reaches {distance} bytes back, where there are {len(result)}")
            piece = bytes(result[len(result) - distance :][:count])
            result += (piece * (count // len(piece) + 1))[:count]  # repeated where it overlaps itself
        if len(result) > length:
            break
    if len(result) != length:
        raise Malformed(f"a block decompresses to {len(result)} bytes or more, and should to {length}")
    return bytes(result)


def _literal_length(data: bytes, tag: int, position: int) -> tuple[int, int]:
    """The length of a literal, and where its bytes begin: above 60, one to four bytes after the tag hold the length."""
    short = tag >> 2
    if short < 60:
        return short + 1, position
    size = short - 59
    return int.from_bytes(_taken(data, position, size), "little") + 1, position + size


def _taken(data: bytes, position: int, count: int) -> bytes:
    if position + count > len(data):
        raise Malformed("a compressed block ends too early")
    return data[position : position + count]
