"""Tokenised WikiText (wiki.train.tokens and the like) to MindRecord blocks for GPT-2.

    python tools/dataset_preprocess/gpt2/wikitext2_data_process.py \
        --input_file wiki.train.tokens --output_file wiki.train.mindrecord --max_length 1025 --tokenizer_type <dir>
"""

import argparse
from itertools import chain
from pathlib import Path

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError
from mindgpt.data.blocks import COLUMNS, use_cores, write_blocks
from mindgpt.data.text import input_files, kind_of, likely_size, mindformers_pieces, wikitext_pieces
from mindgpt.data.tool_arguments import add_output_arguments, open_tokenizer


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(
        description="Tokenised WikiText to MindRecord. Each article is one document, detokenised, headings kept, and "
        "<|endoftext|> follows it ([CLS] and [SEP] stand around it for WordPiece); the last block is padded "
        "(attention_mask 0)."
    )
    parser.add_argument(
        "--input_file",
        type=path_argument,
        nargs="+",
        required=True,
        help="wiki.train.tokens, wiki.valid.tokens, ..., also with .gz or .zst after it, or .parquet with a line in "
        "each row; several are read one after another, as are those of a pattern in quotes",
    )
    add_output_arguments(parser, row="block", max_length=1024)
    parser.add_argument(
        "--data_columns",
        nargs="+",
        default=["input_ids", "attention_mask"],
        metavar="COLUMN",
        help=f"columns to write, of {', '.join(COLUMNS)} (default: input_ids attention_mask)",
    )
    parser.add_argument(
        "--compat",
        choices=["mindformers"],
        help="make MindFormers 1.5's blocks, to compare with its published perplexities: headings, the last section, "
        "the last incomplete block and everything after a TAB are lost, documents are not separated",
    )
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    for name in arguments.input_file:
        if Path(name).is_dir():
            raise UserError(
                f"{name} is a folder, and one of WikiText holds the texts to evaluate on, too. Name a file, or a "
                f"pattern in quotes: '{name}/train-*.parquet'."
            )
    files = input_files(arguments.input_file)
    for file in files:
        if kind_of(file) not in ("text", "parquet"):
            raise UserError(
                f"{file} holds {kind_of(file)}, not the plain text of WikiText; tools/dataset_preprocess/"
                "text_to_mindrecord.py reads it"
            )
    compat = arguments.compat == "mindformers"
    summary = write_blocks(
        chain.from_iterable(map(mindformers_pieces if compat else wikitext_pieces, files)),
        open_tokenizer(arguments.tokenizer_type),
        arguments.output_file,
        max_length=arguments.max_length,
        recipe="wikitext-mindformers" if compat else "wikitext",
        special_tokens="none" if compat else None,
        keep_tail=not compat,
        columns=arguments.data_columns,
        num_splits=arguments.num_splits,
        overwrite=arguments.overwrite,
        total_bytes=likely_size(files),
    )
    print(summary)
