"""The values of a JSON file, one at a time: the items of a list, or a sequence of values such as JSON lines.

A file is read in chunks; only the text of the longest item has to fit into memory. Values in sequence may each take one
line or several.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.io.files import LONG_NUMBER, PathLike, read_chunks, read_lines

BadRecordHandler = Callable[[UserError], None]
"""Gets the error of a bad record, and raises it or lets the record be skipped."""

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


class Value(NamedTuple):
    """A JSON value and the line on which it begins."""

    line: int
    value: Any


def raise_error(error: UserError) -> None:
    """An `on_bad` that raises the error."""
    raise error


def json_values(file: PathLike, on_bad: BadRecordHandler = raise_error) -> Iterator[Value]:
    """The values of a file: the items of a JSON list, or a sequence of values such as JSON lines.

    The error of an invalid line in a JSON Lines file goes to `on_bad`. In a list, or among values that span several
    lines, the start of the next value is unknown after an error, so the error is raised.

    Raises:
        UserError: the file cannot be read as UTF-8, or is broken (with line and column).
    """
    scanner = _Scanner(file)
    if scanner.next_character() == "[":
        yield from _list(scanner)
    elif _spans_lines(file):
        while scanner.next_character():
            yield scanner.value()
    else:
        yield from _lines(file, on_bad)


def begins_as_json(file: PathLike) -> bool:
    """Whether a file begins with an object on lines of its own, or with a list whose first item is an object or a
    string. Prose in square brackets does not count.

    Raises:
        UserError: the file cannot be read as UTF-8.
    """
    scanner = _Scanner(file)
    first = scanner.next_character()
    try:
        if first == "{":
            return bool(scanner.value().value) and scanner.at_line_end()
        if first == "[":
            scanner.skip()
            if scanner.next_character() in ("{", '"'):
                scanner.value()
                return scanner.next_character() in (",", "]")
    except _NotJSON:
        pass
    return False


def _list(scanner: "_Scanner") -> Iterator[Value]:
    scanner.skip()
    if scanner.next_character() != "]":
        while True:
            yield scanner.value()
            if scanner.next_character() != ",":
                break
            scanner.skip()
            scanner.next_character()
    if scanner.next_character() != "]":
        raise scanner.error("expected ',' or ']'")
    scanner.skip()
    if scanner.next_character():
        raise scanner.error("extra text after the list")


def _spans_lines(file: PathLike) -> bool:
    """Whether the first value ends on a later line than it begins."""
    if not Path(file).is_file():
        return False  # a pipe can be read only once
    scanner = _Scanner(file)
    try:
        return bool(scanner.next_character()) and scanner.value().line < scanner.line()
    except _NotJSON:
        return False


def _lines(file: PathLike, on_bad: BadRecordHandler) -> Iterator[Value]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            on_bad(UserError(f"{file}:{number}: not valid JSON: {error.msg} at column {error.colno}."))
        except RecursionError:
            on_bad(UserError(f"{file}:{number}: not usable JSON: it is nested too deeply."))
        except ValueError:
            on_bad(UserError(f"{file}:{number}: not usable JSON: {LONG_NUMBER}."))
        else:
            yield Value(number, value)


# ---- text in chunks --------------------------------------------------------------------------------------------------

_LONGEST_ESCAPE = 12  # characters of "\ud83d\ude00", the longest token in which an error may be found


class _NotJSON(UserError):
    """The text is not JSON."""


class _Scanner:
    """A cursor in a text that is read in chunks. It buffers the text from the cursor to the end of the current
    value."""

    def __init__(self, file: PathLike):
        self._file = file
        self._chunks = read_chunks(file)
        self._text = ""
        self._place = 0
        self._line = 1  # line number at which the buffered text begins
        self._column = 0  # characters of that line before the buffered text

    def next_character(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end."""
        while True:
            self._place = _SPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Move past the next character."""
        self._place += 1

    def at_line_end(self) -> bool:
        """Whether only white space follows on this line; moves past it."""
        line = self.line()
        return not self.next_character() or self.line() > line

    def line(self, place: int | None = None) -> int:
        return self._line + self._text.count("\n", 0, self._place if place is None else place)

    def value(self) -> Value:
        """The value that begins here; moves past it.

        Raises:
            UserError: it is not JSON (with line and column).
        """
        while True:
            try:
                value, end = _decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._cut_short(error) and self._more():
                    continue
                raise self.error(error.msg, error.pos) from None
            except RecursionError:
                raise _NotJSON(f"{self._file}: not usable JSON: it is nested too deeply.") from None
            except ValueError:
                raise self.error(LONG_NUMBER) from None
            if end < len(self._text) or not self._more():  # a number may continue
                line = self.line()
                self._place = end
                return Value(line, value)

    def error(self, message: str, place: int | None = None) -> UserError:
        place = self._place if place is None else place
        begin = self._text.rfind("\n", 0, place)
        column = place - begin if begin >= 0 else self._column + place + 1
        return _NotJSON(f"{self._file}:{self.line(place)}:{column}: not valid JSON: {message}.")

    def _cut_short(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may only mean that the buffered text ends too early."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_ESCAPE

    def _more(self) -> bool:
        """Drop the consumed text, then read more than is left in the buffer.

        Returns:
            False at the end of the file; the buffer is then unchanged.
        """
        held, more = len(self._text) - self._place, []
        while sum(map(len, more)) <= held and (chunk := next(self._chunks, "")):
            more.append(chunk)
        if not more:
            return False
        passed = self._text[: self._place]
        self._line += passed.count("\n")
        end = passed.rfind("\n")
        self._column = len(passed) - end - 1 if end >= 0 else self._column + len(passed)
        self._text, self._place = self._text[self._place :] + "".join(more), 0
        return True
