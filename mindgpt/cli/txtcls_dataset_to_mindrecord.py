"""Labelled texts to MindRecord rows for text classification with GPT-2.

    python tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py \
        --dataset_name sst_2 --input_file train.tsv --output_file train.mindrecord
"""

import argparse

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.command_line import boolean
from mindgpt.data.blocks import use_cores
from mindgpt.data.classification_rows import read_label_names, write_classification
from mindgpt.data.labelled_text import FILE_LAYOUTS, file_layout
from mindgpt.data.text import input_files
from mindgpt.data.tool_arguments import (
    add_output_arguments,
    add_skip_bad,
    bad_records,
    counted_in_errors,
    open_tokenizer,
    warn,
)

# In a folder, the files that are read, by the kind of the layout.
SUFFIXES = {
    "csv": (".csv", ".txt"),
    "tsv": (".tsv", ".txt"),
    "json": (".json", ".jsonl", ".ndjson"),
    "parquet": (".parquet",),
}


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(
        description="Labelled texts to MindRecord: a row holds the tokens of a text, without padding, and the number "
        "of its label. sst_2, cola, ag_news, imdb and chnsenticorp are read as published, uer as UER-py reads it (a "
        "TSV with the columns label, text_a and perhaps text_b); anything else as csv (fields in quotes where they "
        "need it), tsv (a quote is a character like any other), json or jsonl (a list of objects, or an object a "
        "line) or parquet. A file whose name ends in .gz or .zst is unpacked as it is read."
    )
    add = parser.add_argument
    add("--dataset_name", required=True, choices=list(FILE_LAYOUTS), help="which data set, or which kind of file")
    add(
        "--input_file",
        type=path_argument,
        nargs="+",
        required=True,
        help="the files of texts and labels, all of one layout; or folders (their files of this kind, sub-folders "
        "included, hidden ones left out), or patterns in quotes",
    )
    add_output_arguments(
        parser, row="row", max_length=1024, length_help="tokens of a {row} at most; longer texts are truncated"
    )
    add(
        "--header",
        type=boolean,
        nargs="?",
        const=True,
        metavar="True|False",
        help="whether the first line names the columns (default: as the data set is published; csv, tsv: True)",
    )
    add(
        "--text_column",
        nargs="+",
        metavar="COLUMN",
        help="name, or without a header number from 1, of the column with the text; several are joined by a space "
        "(default for csv, tsv, json: text)",
    )
    add("--label_column", metavar="COLUMN", help="the same for the label (default for csv, tsv, json: label)")
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--label_names",
        nargs="+",
        metavar="NAME",
        help="the labels in the order of their numbers (default for csv, tsv, json: all that the file has, sorted)",
    )
    names.add_argument("--label_file", type=path_argument, metavar="FILE", help="a file that holds them, one a line")
    add("--skip_empty", action="store_true", help="leave out rows with an empty text instead of refusing the file")
    add_skip_bad(parser)
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    layout = file_layout(
        arguments.dataset_name,
        header=arguments.header,
        text_columns=arguments.text_column,
        label_column=arguments.label_column,
        label_names=read_label_names(arguments.label_file) if arguments.label_file else arguments.label_names,
    )
    files = input_files(arguments.input_file, SUFFIXES[layout.kind])
    bad = bad_records(arguments)
    with counted_in_errors(bad):
        summary = write_classification(
            files,
            layout,
            open_tokenizer(arguments.tokenizer_type),
            arguments.output_file,
            max_length=arguments.max_length,
            skip_empty=arguments.skip_empty,
            bad=bad,
            num_splits=arguments.num_splits,
            overwrite=arguments.overwrite,
        )
    print(summary)
    for warning in summary.warnings():
        print(f"warning: {warning}")
    if bad and bad.count:
        warn(bad)
    if layout.label_names is None:
        print(f"labels, sorted; for other files of this set: --label_names {' '.join(summary.label_names)}")
