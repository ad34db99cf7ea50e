"""Text files (.txt, .json, .jsonl, .csv, .tsv) to MindRecord blocks for GPT-2.

    python tools/dataset_preprocess/text_to_mindrecord.py \
        --input_file corpus/ --output_file corpus.mindrecord --max_length 1025 --tokenizer_type <dir>

As UER-py's `preprocess.py --data_processor lm --seq_length 128` (Chinese GPT-2), each line in rows of its own:

    python tools/dataset_preprocess/text_to_mindrecord.py \
        --input_file cluecorpussmall.txt --output_file seq128.mindrecord --max_length 129 --tokenizer_type <dir> \
        --document_per line --packing none
"""

import argparse
import os
import sys
from itertools import islice
from pathlib import Path

from mindgpt.config.arguments import CheckedParser
from mindgpt.config.errors import UserError
from mindgpt.data.blocks import COLUMNS, BlocksSummary, use_cores, write_blocks
from mindgpt.data.document_tokens import SPECIAL_TOKENS
from mindgpt.data.text import likely_size
from mindgpt.data.tool_arguments import TextFiles, add_output_arguments, add_text_arguments, open_tokenizer
from mindgpt.data.uer_datasets import SUFFIX, write_uer_datasets
from mindgpt.io.files import read_chunks
from mindgpt.tokenizers.tokenizer import BaseTokenizer

DEFAULT_LENGTH = 1025
MANY_LINES = 100  # of a file that may well have a document a line
UER = "uer"


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(
        description="Text to MindRecord. Documents get the special tokens of the tokenizer (<|endoftext|> after each; "
        "[CLS] and [SEP] around each for WordPiece) and are packed into blocks of one length. Padding is masked "
        "(attention_mask 0)."
    )
    uer = f"; {UER}: a data set of UER-py's or TencentPretrain's preprocess.py (lm), also by the suffix {SUFFIX}"
    add_text_arguments(parser, UER, other_help=uer)
    add_output_arguments(parser, row="block", max_length=DEFAULT_LENGTH)
    parser.set_defaults(max_length=None)  # to tell whether it was given
    add = parser.add_argument
    add(
        "--document_per",
        choices=["file", "line"],
        help="in text files: a document is the whole file as it stands (default), or each line that is not blank. "
        "In JSON and tables it is always a record",
    )
    add(
        "--special_tokens",
        choices=SPECIAL_TOKENS,
        help="around: [CLS] before and [SEP] after each document, or the tokenizer's tokens of these roles (default "
        "for WordPiece); end: the end-of-text token after each (default for all others); none",
    )
    add(
        "--packing",
        choices=["full", "none"],
        help="full (default): documents are joined and the stream is sliced into blocks; the last one is padded. none: "
        "no block holds two documents; the last block of each document is padded, as by UER-py",
    )
    tail = parser.add_mutually_exclusive_group()
    tail.add_argument(
        "--padding_target",
        action="store_true",
        help="with --packing none: one padding token after the last token of a padded block is predicted, too, as by "
        "UER-py since July 2023 (default: only tokens of documents are, as by UER-py before)",
    )
    tail.add_argument(
        "--drop_tail", action="store_true", help="with --packing full: drop the last block if it is not full"
    )
    add(
        "--data_columns",
        nargs="+",
        default=["input_ids", "attention_mask"],
        metavar="COLUMN",
        help=f"columns to write, of {', '.join(COLUMNS)} (default: input_ids attention_mask)",
    )
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    texts = TextFiles(arguments, {SUFFIX: UER})
    check_combination(arguments, texts)
    tokenizer = open_tokenizer(arguments.tokenizer_type)
    if arguments.document_per is None and tokenizer.document_start:
        note_of_lines(texts, tokenizer)
    write = write_datasets if UER in texts.kinds else write_texts
    summary = write(arguments, texts, tokenizer)
    print(summary)


def check_combination(arguments: argparse.Namespace, texts: TextFiles) -> None:
    """Raise a UserError for an argument that would have no effect, and for text and data sets together."""
    datasets = UER in texts.kinds
    if datasets and set(texts.kinds) != {UER}:
        raise UserError(f"data sets of UER-py ({SUFFIX}) and texts cannot be converted together; name one kind")
    if datasets:
        given = [
            f"--{name}"
            for name in ("document_per", "special_tokens", "packing", "drop_tail", "skip_bad")
            if getattr(arguments, name)
        ]
        if given:
            raise UserError(f"{given[0]} has no effect: the windows of a UER-py data set are written as they are")
    elif arguments.padding_target and arguments.packing != "none":
        raise UserError("--padding_target needs --packing none: joined documents have no padding after them")
    elif arguments.drop_tail and arguments.packing == "none":
        raise UserError("--drop_tail needs --packing full: with none it would drop the end of every document")


def note_of_lines(texts: TextFiles, tokenizer: BaseTokenizer) -> None:
    """Say that a file of many lines is one document: corpora for such a tokenizer have a document a line."""
    for file, kind in zip(texts.files, texts.kinds, strict=True):
        if kind == "text" and many_lines(file):
            print(
                f"note: {file} is one document, with one {tokenizer.bos_token} at its beginning. If each line is a "
                "document, add --document_per line; --document_per file leaves out this note",
                file=sys.stderr,
            )
            return


def many_lines(file: Path) -> bool:
    """Whether the beginning of a file holds many lines that are not blank."""
    beginning = "".join(islice(read_chunks(file), 8))  # half a million characters; the lines of a file may be huge
    return sum(map(bool, map(str.strip, beginning.split("\n")))) >= MANY_LINES


def write_texts(arguments: argparse.Namespace, texts: TextFiles, tokenizer: BaseTokenizer) -> BlocksSummary:
    return write_blocks(
        texts.pieces(arguments.document_per or "file"),
        tokenizer,
        arguments.output_file,
        max_length=DEFAULT_LENGTH if arguments.max_length is None else arguments.max_length,
        recipe="text",
        special_tokens=arguments.special_tokens,
        packing=arguments.packing or "full",
        padding_target=arguments.padding_target,
        keep_tail=not arguments.drop_tail,
        columns=arguments.data_columns,
        num_splits=arguments.num_splits,
        overwrite=arguments.overwrite,
        total_bytes=likely_size(texts.files),
    )


def write_datasets(arguments: argparse.Namespace, texts: TextFiles, tokenizer: BaseTokenizer) -> BlocksSummary:
    return write_uer_datasets(
        texts.files,
        tokenizer,
        arguments.output_file,
        max_length=arguments.max_length,
        padding_target=arguments.padding_target,
        columns=arguments.data_columns,
        num_splits=arguments.num_splits,
        overwrite=arguments.overwrite,
        total_bytes=sum(map(os.path.getsize, texts.files)),
    )
