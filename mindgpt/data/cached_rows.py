"""Training and validation rows made of text files, kept in the user's cache for the next run on the same text."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import write_blocks
from mindgpt.data.mindrecord import find_mindrecord_files, read_header
from mindgpt.data.records import Kind
from mindgpt.data.text import Piece, document_pieces, input_files, kind_of, likely_size
from mindgpt.io.files import PathLike, read_json, write_json
from mindgpt.io.locks import Lock, try_lock
from mindgpt.io.user_cache import user_cache, work_folder
from mindgpt.tokenizers.loading import TOKENIZER_FILES, load_tokenizer

FOLDER = "rows"  # in the user's cache
DESCRIPTION = "rows.json"
TRAIN, VALID = "train", "valid"

_FORMAT = 1  # of what the cache holds; another number makes all rows again
_MOST_BYTES = 20 * 2**30
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class TextSource:
    """Text files, and how they are read.

    Attributes:
        files: the files.
        field, read_as, document_per: as in `document_pieces` and `kind_of`.
    """

    files: tuple[Path, ...]
    field: str = "text"
    read_as: Kind | Literal["text"] | None = None
    document_per: Literal["file", "line"] = "file"

    @classmethod
    def of(cls, names: Sequence[PathLike], **how: Any) -> "TextSource":
        """The files that names mean; see `input_files`.

        Raises:
            UserError: a name means no file, a file cannot be read, or it is a pipe, which cannot be read twice.
        """
        files = tuple(input_files(names))
        for file in files:
            if not file.is_file():
                raise UserError(f"{file} is no regular file, and text is read twice. Save it to a file first.")
        return cls(files, **how)

    def pieces(self) -> Iterator[Piece]:
        """The documents."""
        for file in self.files:
            yield from document_pieces(file, self.document_per, self.field, kind_of(file, self.read_as))

    def description(self) -> dict[str, Any]:
        """What decides which text it is, without reading it: path, size and time of change of each file."""
        status = [(str(file.resolve()), file.stat()) for file in self.files]
        files = [[path, one.st_size, one.st_mtime_ns] for path, one in status]
        return {"files": files, "field": self.field, "read_as": self.read_as, "document_per": self.document_per}


@dataclass(frozen=True)
class CachedRows:
    """Rows in the cache.

    Attributes:
        folder: that holds them.
        files: MindRecord file by part.
        rows: their number by part.
        made: whether they were made now.
    """

    folder: Path
    files: dict[str, Path]
    rows: dict[str, int]
    made: bool


def cached_rows(
    source: TextSource, tokenizer_path: PathLike, lengths: Mapping[str, int], valid_fraction: float = 0.0
) -> CachedRows:
    """MindRecord rows of a text, from the cache or made now. Several processes that ask at once make them once.

    Args:
        source: the text.
        tokenizer_path: folder or file of the tokenizer.
        lengths: tokens of a row, by part: `VALID` alone has all of the text, `TRAIN` all but what `VALID` has.
        valid_fraction: of the text, from its end, for `VALID` where there are both parts.

    Raises:
        UserError: there is no text, or it cannot be read.
    """
    wanted = {
        "format": _FORMAT,
        "text": source.description(),
        "tokenizer": _digest_of_tokenizer(Path(tokenizer_path)),
        "lengths": dict(lengths),
        "valid_fraction": valid_fraction if len(lengths) > 1 else 0.0,
    }
    name = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
    base = _writable_folder()
    folder = base / name
    with _locked(base / f".{name}.lock"):
        found = _opened(folder, wanted)
        if found is not None:
            os.utime(folder)
            return CachedRows(folder, *found, made=False)
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, wanted, source, Path(tokenizer_path), lengths, valid_fraction)
        found = _opened(folder, wanted)
        assert found is not None, folder
    _remove_oldest(base, keep=folder)
    return CachedRows(folder, *found, made=True)


def _writable_folder() -> Path:
    """The folder in the user's cache, or if that cannot be written, one that is removed at the end of the process."""
    for base in (user_cache(), work_folder()):
        folder = base / FOLDER
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise UserError(f"Neither {user_cache()} nor {work_folder()} can be written; name another cache by MINDGPT_CACHE.")


def _digest_of_tokenizer(path: Path) -> str:
    """A checksum of the files of a tokenizer."""
    files = [path / name for name in sorted(TOKENIZER_FILES)] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in filter(Path.is_file, files):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Lock]:
    """Hold a lock, waiting for the process that makes the same rows."""
    while (lock := try_lock(path)) is None:
        time.sleep(_POLL_SECONDS)
    try:
        yield lock
    finally:
        lock.release()


def _opened(folder: Path, wanted: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, int]] | None:
    """Files and numbers of rows of a folder that holds what is wanted, whole; None if it does not."""
    try:
        if read_json(folder / DESCRIPTION) != wanted:
            return None
        files = {part: folder / f"{part}.mindrecord" for part in wanted["lengths"]}
        return files, {part: _rows_in(file) for part, file in files.items()}
    except (UserError, OSError):
        return None


def _rows_in(file: Path) -> int:
    return sum(read_header(each).num_rows for each in find_mindrecord_files(file))


def _make(
    folder: Path,
    description: Mapping[str, Any],
    source: TextSource,
    tokenizer_path: Path,
    lengths: Mapping[str, int],
    valid_fraction: float,
) -> None:
    """Write a folder of rows, which appears when it is whole."""
    tokenizer = load_tokenizer(tokenizer_path)
    shown = ", ".join(map(str, source.files[:3])) + (", ..." if len(source.files) > 3 else "")
    total = sum(len(piece.text) for piece in source.pieces() if piece.text.strip())
    if not total:
        raise UserError(f"{shown}: holds no text.")
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for part, length in lengths.items():
            pieces = source.pieces()
            if len(lengths) > 1:
                pieces = part_of(pieces, total, valid_fraction, part)
            write_blocks(
                pieces,
                tokenizer,
                stage / f"{part}.mindrecord",
                max_length=length,
                recipe="text",
                total_bytes=likely_size(source.files),
            )
        write_json(stage / DESCRIPTION, description)
        os.rename(stage, folder)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def part_of(pieces: Iterator[Piece], total: int, fraction: float, part: str) -> Iterator[Piece]:
    """The documents of one part: `VALID` is about `fraction` of the text, its end; `TRAIN` is what comes before.

    The text is split between two documents where one ends nearby; else after a line end, a space, or a character.

    Args:
        pieces: of all documents.
        total: their characters, without those of blank pieces.
        fraction: between 0 and 1.
        part: `TRAIN` or `VALID`.
    """
    cut, latest = total * (1 - fraction), total * (1 - fraction / 2)
    place, in_train = 0, True
    for piece in pieces:
        size = len(piece.text) if piece.text.strip() else 0
        begin, place = place, place + size
        if not in_train:
            if part == VALID:
                yield piece
        elif place < cut or (piece.ends_document and place <= latest):
            in_train = place < cut
            if part == TRAIN:
                yield piece
        else:
            in_train = False
            at = _place_to_split(piece.text, max(int(cut) - begin, 1))
            before, after = piece.text[:at], piece.text[at:]
            yield Piece(before, True) if part == TRAIN else Piece(after, piece.ends_document)


def _place_to_split(text: str, wanted: int) -> int:
    """The index after the first line end from `wanted` on, which leaves something; else a space; else `wanted`."""
    for sign in ("\n", "\N{IDEOGRAPHIC FULL STOP}", " "):
        at = text.find(sign, wanted - 1) + 1
        if at and text[at:].strip():
            return at
    return min(wanted, max(len(text) - 1, 0))


def _remove_oldest(base: Path, keep: Path) -> None:
    """Remove the rows that were not used for the longest time, while all take more than the cache may."""
    found = [(folder.stat().st_mtime, folder) for folder in base.iterdir() if (folder / DESCRIPTION).exists()]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for _, folder in found}
    total = sum(sizes.values())
    for _, folder in sorted(found):
        if total <= _MOST_BYTES:
            return
        if folder != keep:
            total -= sizes[folder]
            shutil.rmtree(folder, ignore_errors=True)
