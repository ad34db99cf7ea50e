"""Split text into train.txt and valid.txt, the end of the text, to validate a model on.

python tools/split_text.py --input_file my_text.txt --output_dir parts
"""

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.data.split import split_file


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser(
        description="Split a text at a line end (without one, at a space) into train.txt, valid.txt."
    )
    parser.add_argument(
        "--input_file",
        type=path_argument,
        nargs="+",
        help="UTF-8 text: files, folders or patterns in quotes; those that end in .gz or .zst are unpacked as they are "
        "read. Without it, the text of Python's own help topics",
    )
    parser.add_argument(
        "--field", default="text", help="in JSON and tables: the key or column that holds the text (text)"
    )
    parser.add_argument(
        "--read_as", choices=["text", "json", "csv", "tsv", "parquet"], help="what it holds (default: by its name)"
    )
    parser.add_argument(
        "--output_dir", type=path_argument, required=True, help="folder for train.txt and valid.txt; both are replaced"
    )
    parser.add_argument("--valid_fraction", type=float, default=0.1, help="fraction to validate on, from the end (0.1)")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    files = split_file(
        arguments.input_file, arguments.output_dir, arguments.valid_fraction, arguments.field, arguments.read_as
    )
    for file in files:
        print(f"{file.stat().st_size:,} bytes -> {file}")
