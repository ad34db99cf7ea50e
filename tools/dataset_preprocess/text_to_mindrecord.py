"""Text files (.txt, .json, .jsonl, .csv, .tsv) to MindRecord blocks for GPT-2.

    python tools/dataset_preprocess/text_to_mindrecord.py \
        --input_file corpus/ --output_file corpus.mindrecord --max_length 1025 --tokenizer_type <dir>
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser
from mindgpt.config.errors import run_program
from mindgpt.data.blocks import COLUMNS, use_cores, write_blocks
from mindgpt.data.tool_arguments import TextFiles, add_output_arguments, add_text_arguments, open_tokenizer


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CheckedParser(
        description="Text to MindRecord. <|endoftext|> follows each document; all are packed into blocks of one "
        "length; the last block is padded (attention_mask 0)."
    )
    add_text_arguments(parser)
    add_output_arguments(parser, row="block", max_length=1025)
    parser.add_argument(
        "--document_per",
        choices=["file", "line"],
        default="file",
        help="in text files: a document is the whole file as it stands (default), or each line that is not blank. "
        "In JSON and tables it is always a record",
    )
    parser.add_argument(
        "--data_columns",
        nargs="+",
        default=["input_ids", "attention_mask"],
        metavar="COLUMN",
        help=f"columns to write, of {', '.join(COLUMNS)} (default: input_ids attention_mask)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    texts = TextFiles(arguments)
    summary = write_blocks(
        texts.pieces(arguments.document_per),
        open_tokenizer(arguments.tokenizer_type),
        arguments.output_file,
        max_length=arguments.max_length,
        recipe="text",
        columns=arguments.data_columns,
        num_splits=arguments.num_splits,
        overwrite=arguments.overwrite,
        total_bytes=sum(map(os.path.getsize, texts.files)),
    )
    print(summary)


if __name__ == "__main__":
    run_program(main)
