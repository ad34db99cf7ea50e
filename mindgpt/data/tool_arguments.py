"""Command-line arguments that the data tools share."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mindgpt.config.arguments import path_argument
from mindgpt.config.errors import UserError
from mindgpt.data.records import BadRecords, refuse_with_hint
from mindgpt.data.text import TEXT_SUFFIXES, Piece, document_pieces, input_files, kind_of
from mindgpt.io.files import DOWNLOADS
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.loading import holds_tokenizer, load_tokenizer, tokenizer_kind
from mindgpt.tokenizers.tokenizer import BaseTokenizer

_DEFAULT = "gpt2"  # of MindFormers' --tokenizer_type: the name of a model, whose tokenizer it downloaded
_BLOCK_LENGTH = "tokens in a {row}: seq_length + 1 to train, seq_length to evaluate"


def add_output_arguments(
    parser: argparse.ArgumentParser,
    *,
    row: str,
    max_length: int,
    length_help: str = _BLOCK_LENGTH,
    length_names: tuple[str, ...] = (),
) -> None:
    """Add the arguments of the output file and the tokenizer.

    Args:
        parser: to add them to.
        row: the name of a row in the help text.
        max_length: the default of --max_length.
        length_help: help text of --max_length, in which `{row}` is replaced.
        length_names: other names of --max_length.
    """
    parser.add_argument(
        "--output_file", type=path_argument, required=True, help="file to write; its name ends in 'mindrecord'"
    )
    parser.add_argument(
        "--tokenizer_type",
        type=path_argument,
        default=_DEFAULT,
        metavar="DIR",
        help=f"folder with the tokenizer's files, or a vocab.txt or tokenizer.model (default: {DOWNLOADS})",
    )
    parser.add_argument(
        "--max_length",
        *length_names,
        dest="max_length",
        type=int,
        default=max_length,
        help=f"{length_help.format(row=row)} (default {max_length})",
    )
    parser.add_argument(
        "--num_splits", type=int, default=1, help=f"files to spread the {row}s over (x.0.mindrecord, ...)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    parser.add_argument("--num_workers", type=int, help="cores to tokenise on (default: all)")


def add_text_arguments(parser: argparse.ArgumentParser, *other_kinds: str, other_help: str = "") -> None:
    """Add the arguments of the input files, which `TextFiles` reads.

    Args:
        parser: to add them to.
        other_kinds: values of --read_as that the program itself reads.
        other_help: what they mean.
    """
    parser.add_argument(
        "--input_file",
        type=path_argument,
        nargs="+",
        required=True,
        help=f"files, folders (their {', '.join(TEXT_SUFFIXES)} files, sub-folders included, hidden ones left out) or "
        "patterns in quotes, such as 'data/**/*.txt'; those that end in .gz or .zst are unpacked as they are read",
    )
    parser.add_argument(
        "--field", default="text", help="in JSON and tables: the key or column that holds the text (default: text)"
    )
    parser.add_argument(
        "--read_as",
        choices=["text", "json", "csv", "tsv", "parquet", *other_kinds],
        help="what all files hold. json: a list of texts or objects, or one a line; csv, tsv: a table with a header; "
        f"text: the file as it stands{other_help} (default: by the suffix, and JSON where there is none and it begins "
        "as JSON does)",
    )
    add_skip_bad(parser)


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """Add --skip_bad; see `bad_records`."""
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave out records that are broken or lack a text, count them and name the first, rather than stop",
    )


@contextlib.contextmanager
def counted_in_errors(bad: BadRecords | None) -> Iterator[None]:
    """Where what is done inside fails, as it does if nothing is left, the error also says what `bad` left out."""
    try:
        yield
    except UserError as error:
        if not bad or not bad.count:
            raise
        raise UserError(f"{error} {bad}") from error


def bad_records(arguments: argparse.Namespace) -> BadRecords | None:
    """The `on_bad` that counts what --skip_bad skips; None: bad records are errors."""
    return BadRecords() if arguments.skip_bad else None


def warn(message: object) -> None:
    """Print a warning to standard error."""
    print(f"warning: {message}", file=sys.stderr)


class TextFiles:
    """The files that the arguments of `add_text_arguments` name, and the documents in them.

    Args:
        arguments: the program's.
        other_suffixes: suffix -> kind, of files that the program itself reads.

    Attributes:
        files: the files.
        kinds: of each file, what it holds.
        bad: counts skipped records; None: bad records are errors.

    Raises:
        UserError: as `input_files` and `kind_of`, before any text is read.
    """

    def __init__(self, arguments: argparse.Namespace, other_suffixes: Mapping[str, str] = MappingProxyType({})):
        self.files = input_files(arguments.input_file)
        self.bad = bad_records(arguments)
        read_as = arguments.read_as
        self.kinds = [
            (not read_as and other_suffixes.get(file.suffix.lower())) or kind_of(file, read_as) for file in self.files
        ]
        self._field = arguments.field

    def pieces(self, document_per: str = "file", *, warns: bool = True) -> Iterator[Piece]:
        """The documents, as in `document_pieces`; at the end, a warning if bad records were skipped."""
        for file, kind in zip(self.files, self.kinds, strict=True):
            yield from document_pieces(file, document_per, self._field, kind, self.bad or refuse_with_hint)
        if warns and self.bad and self.bad.count:
            warn(self.bad)


def open_tokenizer(named: str, split_at: Sequence[str] | None = None) -> BaseTokenizer:
    """The tokenizer that `--tokenizer_type` means; of another kind than GPT-2's, it is described in a line.

    Args:
        named: `--tokenizer_type`.
        split_at: an argument of `JiebaTokenizer`, to take precedence over its files.

    Raises:
        UserError: there is none, it is broken, or it is of another kind than `split_at` is for.
    """
    folder = tokenizer_folder(named)
    kind = tokenizer_kind(folder)
    if split_at is not None and kind not in (JiebaTokenizer.kind, None):
        raise UserError(f"--split_at is for the tokenizer of ModelScope's GPT-3, and {folder} holds {kind}.")
    tokenizer = load_tokenizer(folder, **({} if split_at is None else {"split_at": list(split_at)}))
    if tokenizer.kind != GPT2Tokenizer.kind:
        print(f"tokenizer: {folder} ({tokenizer})")
    return tokenizer


def tokenizer_folder(named: str) -> Path:
    """The folder that `--tokenizer_type` means: an existing one, or for `gpt2` MindFormers' download.

    Raises:
        UserError: there is no tokenizer in the default folder.
    """
    if named != _DEFAULT or Path(named).exists():
        return Path(named)
    if holds_tokenizer(DOWNLOADS):
        return DOWNLOADS
    raise UserError(
        f"no tokenizer: there is no tokenizer.json or vocab.json in {DOWNLOADS} (looked from {Path.cwd()}), nor a "
        "vocab.txt or tokenizer.model, and nothing is downloaded. Put them there, or name the tokenizer's folder with "
        "--tokenizer_type DIR."
    )
