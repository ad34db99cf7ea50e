"""Documents from text files: plain text, JSON lists and lines, tables, and tokenised WikiText.

A document is a sequence of `Piece`s, the last of which is marked, so that a large file never has to fit into memory.
Documents are split only where GPT-2's tokenizer and WordPiece split words, so tokenising piece by piece gives the ids
of the whole document (see `split_document`).
"""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.data.json_values import BadRecordHandler, begins_as_json, json_values, raise_error
from mindgpt.data.parquet_rows import check_column, parquet_rows
from mindgpt.data.records import Kind, Record, checked_text, kind_by_name, table_records, text_of
from mindgpt.io.compression import is_compressed, text_suffix
from mindgpt.io.files import PathLike, check_readable, read_chunks, read_lines

PIECE_CHARACTERS = 1 << 16
_UNPACKED = 3
TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".ndjson", ".parquet")

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Part of a document's text; `ends_document` marks the last one."""

    text: str
    ends_document: bool


# ---- which files -----------------------------------------------------------------------------------------------------


def input_files(names: Iterable[PathLike], suffixes: Sequence[str] = TEXT_SUFFIXES) -> list[Path]:
    """Expand files, folders and glob patterns to a list of files, without duplicates, in the given order.

    A folder means its files with one of the `suffixes`, in any letter case and also before .gz or .zst, sub-folders
    included, sorted by path; other suffixes are reported and skipped. A pattern (`corpus/*.txt`, `corpus/**/*.txt`)
    means the files that it matches, sorted by path. Hidden files and folders are skipped unless a name or pattern has
    their dot.

    Raises:
        UserError: a name means no file, or a file cannot be read.
    """
    files: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = _files_in(path, suffixes)
        elif not path.exists() and glob.has_magic(str(name)):
            found = sorted(Path(match) for match in glob.glob(str(name), recursive=True) if os.path.isfile(match))
            if not found:
                folders = any(map(os.path.isdir, glob.iglob(str(name), recursive=True)))
                hint = f" It matches folders: '{name}/*' means the files in them." if folders else ""
                raise UserError(f"No file matches {name}.{hint}")
        else:
            found = [path]
        for file in found:
            if not file.is_fifo():  # which can be opened only once
                check_readable(file)
            files[file] = None
    return list(files)


def _files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    visible = [
        file
        for file in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and file.is_file()
    ]
    found = [file for file in visible if text_suffix(file) in suffixes]
    others = Counter(file.suffix or "none" for file in visible if text_suffix(file) not in suffixes)
    left_out = f"{others.total()} file(s) with other suffixes ({', '.join(sorted(others)[:5])})"
    if not found:
        besides = f", but {left_out}. To read them, pass a pattern: '{folder}/**/*'" if others else ""
        wanted = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise UserError(f"The folder {folder} holds no {wanted} file, nor a compressed one{besides}.")
    if others:
        logger.warning("note: %s: %s are not read", folder, left_out)
    return found


# ---- pieces ----------------------------------------------------------------------------------------------------------

# One space or newline between two other characters. GPT-2's pattern matches the space with what follows it, and the
# newline by itself (` ?\p{L}+| ?\p{N}+|...|\s+(?!\S)|\s+`, Radford et al. 2019), so no token crosses that position.
# WordPiece drops both.
_SAFE_SPLIT = re.compile(r"(?<=\S)[ \n](?=\S)")


def split_document(chunks: Iterable[str]) -> Iterator[Piece]:
    """Split a document, given in chunks of any size, into pieces of a little more than `PIECE_CHARACTERS`.

    GPT-2's tokenizer and WordPiece give the pieces the same ids as the document; see `BaseTokenizer.splits_at_spaces`.
    """
    buffer, search_from = "", PIECE_CHARACTERS
    for chunk in chunks:
        buffer += chunk
        while place := _SAFE_SPLIT.search(buffer, search_from):
            yield Piece(buffer[: place.start()], False)
            buffer, search_from = buffer[place.start() :], PIECE_CHARACTERS
        search_from = max(PIECE_CHARACTERS, len(buffer) - 1)
    yield Piece(buffer, True)


# ---- plain text, JSON and tables -------------------------------------------------------------------------------------


def likely_size(files: Iterable[PathLike]) -> int:
    """About how many bytes of text files hold, for a progress bar: of compressed ones and Parquet three times their
    size, since they tell only when they are read."""
    packed = {file: is_compressed(file) or text_suffix(file) == ".parquet" for file in files}
    return sum(os.path.getsize(file) * (_UNPACKED if is_packed else 1) for file, is_packed in packed.items())


def kind_of(file: Path, read_as: Kind | Literal["text"] | None = None) -> Kind | Literal["text"]:
    """The kind of a file: `read_as` if given, else by its suffix; without a suffix, JSON if it begins like JSON.

    Raises:
        UserError: a file with a suffix such as .txt begins like JSON, which is hardly text to train on; or the file
            cannot be read.
    """
    kind = read_as or kind_by_name(file)
    if kind is not None:
        return kind
    if not (file.is_file() and begins_as_json(file)):
        return "text"
    if file.suffix:
        raise UserError(
            f"{file} holds JSON, not plain text. Read the texts in it with --read_as json (or name it .json or "
            ".jsonl); --read_as text takes it as it stands, with brackets and escapes."
        )
    return "json"


def document_pieces(
    file: Path,
    document_per: Literal["file", "line"] = "file",
    field: str = "text",
    kind: Kind | Literal["text"] | None = None,
    on_bad: BadRecordHandler = raise_error,
) -> Iterator[Piece]:
    """The documents of a file: the text of a text file; in JSON, each string, or the `field` of each object (a string
    or a list of lines); in a table, the column `field` of each row.

    Args:
        file: the file.
        document_per: for text files. "file": the whole file is one document. "line": each line is one, without its
            newline; blank ones, too.
        field: for JSON and tables: the key or column that holds the text.
        kind: of the file; None: see `kind_of`.
        on_bad: gets the error of a record without text; raises it, or lets the record be skipped.

    Raises:
        UserError: the file is not UTF-8 or broken, or a record holds no text (with file and line).
    """
    kind = kind_of(file) if kind is None else kind
    if kind != "text":
        documents = ([text] for text in _texts(file, kind, field, on_bad))
    elif document_per == "line":
        documents = ([line] for line in read_lines(file))
    else:
        documents = [read_chunks(file)]
    for chunks in documents:
        yield from split_document(chunks)


def _texts(file: Path, kind: Kind, field: str, on_bad: BadRecordHandler) -> Iterator[str]:
    """The text of each record of a file; in JSON, a record may be a string."""
    if kind == "json":
        values = ((f"{file}:{line}", value) for line, value in json_values(file, on_bad))
    else:
        if kind == "parquet":
            check_column(file, field, "--field")
        values = table_records(file, kind, on_bad, [field])
    for place, value in values:
        try:
            if isinstance(value, dict):
                text = _text_or_lines(Record(place, value), field)
            else:
                text = checked_text(value, f"{place}: the record")
        except UserError as error:
            on_bad(error)
            continue
        yield text


def _text_or_lines(record: Record, field: str) -> str:
    """The text under `field`; a list of strings is joined as lines, as for poems in chinese-poetry."""
    lines = record.fields.get(field)
    if not isinstance(lines, list) or not lines:
        return text_of(record, field)
    return "\n".join(checked_text(line, f"{record.place}: an item of '{field}'") for line in lines)


# ---- WikiText --------------------------------------------------------------------------------------------------------


def wikitext_pieces(file: Path) -> Iterator[Piece]:
    """The articles of a tokenised WikiText file (wiki.*.tokens), detokenised; each article is a document.

    ` = Title = ` after a blank line begins an article. Headings are kept in wiki syntax (`== Section ==`); several
    blank lines become one; everything else is kept.

    Raises:
        UserError: the file cannot be read as UTF-8.
    """
    article, blank_before = "", True
    for line in _wikitext_lines(file):
        text = line.strip()
        if not text:
            blank_before = True
            continue
        level, title = _heading(text)
        if level == 1 and blank_before and article:
            yield from split_document([article])
            article = ""
        rendered = f"{'=' * level} {detokenize_wikitext(title)} {'=' * level}" if level else detokenize_wikitext(text)
        gap = "" if not article else "\n\n" if blank_before else "\n"
        article, blank_before = article + gap + rendered, False
    if article:
        yield from split_document([article])


def _wikitext_lines(file: Path) -> Iterator[str]:
    """The lines of a file. In Parquet, as on Hugging Face's hub, a row of the column `text` is a line, or several."""
    if kind_by_name(file) != "parquet":
        yield from read_lines(file)
        return
    check_column(file, "text", "--field of tools/dataset_preprocess/text_to_mindrecord.py")
    for number, row in parquet_rows(file, ["text"]):
        yield from checked_text(row["text"], f"{file}:{number}: 'text'").removesuffix("\n").split("\n")


_HEADING = re.compile(r"((?:= )+)(.+?)((?: =)+)")


def _heading(text: str) -> tuple[int, str]:
    """Level (0: no heading) and title of a WikiText line such as `= = Early life = =`."""
    match = _HEADING.fullmatch(text)
    if not match or len(match[1]) != len(match[3]):
        return 0, ""
    return len(match[1]) // 2, match[2]


def detokenize_wikitext(text: str) -> str:
    """Undo WikiText's tokenisation of a paragraph: spaces around punctuation, `@-@` and the like.

    Only spaces and `@` marks change. A single `'` and an odd number of `"` are ambiguous and keep their spaces.
    """
    text = re.sub(r"(?: |^)@([-,.])@(?: |$)", r"\1", text)
    text = re.sub(r" ([.,;:!?])(?= |$)", r"\1", text)  # not ` ..`, not ` .5`
    text = re.sub(r"([(\[{]) ", r"\1", text)
    text = re.sub(r" ([)\]}])", r"\1", text)
    if text.count('"') % 2 == 0:
        text = re.sub(r'" ?([^"]*?) ?"', r'"\1"', text)
    text = re.sub(r" '(?=(?:s|t|re|ve|ll|d|m)\b)", "'", text)  # it 's, don 't
    return text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")


# ---- WikiText as MindFormers 1.5 read it -----------------------------------------------------------------------------


def mindformers_pieces(file: Path) -> Iterator[Piece]:
    """WikiText as MindFormers 1.5 read it, for comparison with its published perplexities: one long document.

    Headings are dropped and end a section, the last section is lost, the paragraphs of a section are joined by a space
    and the sections by a newline, and everything after the first TAB is ignored.
    """
    gap = ""
    for section in _mindformers_sections(file):
        text, tab, _ = (gap + section).partition("\t")
        yield Piece(text, False)
        if tab:
            break
        gap = "\n"
    yield Piece("", True)


def _mindformers_sections(file: Path) -> Iterator[str]:
    paragraphs: list[str] = []
    for line in _wikitext_lines(file):
        text = line.strip()
        if text.startswith("=") and text.endswith("="):
            if paragraphs:
                yield " ".join(map(_mindformers_clean, paragraphs))
            paragraphs = []
        elif text:
            paragraphs.append(text)


# Replacements and patterns in MindFormers' order (Megatron-LM's, except " ."). Some damage the text: " ." joins " .5"
# to the word before, " N " becomes " 1 ". They are kept so that the blocks are the same.
_MINDFORMERS_FIRST = (
    *(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *((" : ", ": "), (" ; ", "; "), (" . ", ". "), (" .", "."), (" ! ", "! "), (" ? ", "? "), (" , ", ", ")),
)
_MINDFORMERS_PAIRS = tuple(
    (re.compile(rf"{left}\s*([^{right}]*?)\s*{right}"), rf"{plain_left}\1{plain_right}")
    for left, right, plain_left, plain_right in (
        (r"\(", r"\)", "(", ")"),
        (r"\[", r"\]", "[", "]"),
        ("{", "}", "{", "}"),
        ('"', '"', '"', '"'),
        ("'", "'", "'", "'"),
    )
)
_MINDFORMERS_LAST = (
    *(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")),
    *((" N ", " 1 "), (" 's", "'s")),
)


def _mindformers_clean(text: str) -> str:
    for old, new in _MINDFORMERS_FIRST:
        text = text.replace(old, new)
    for pattern, new in _MINDFORMERS_PAIRS:
        text = pattern.sub(new, text)
    for old, new in _MINDFORMERS_LAST:
        text = text.replace(old, new)
    return text
