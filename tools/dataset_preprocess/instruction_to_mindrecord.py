"""Instruction data (.json, .jsonl, .csv, .tsv) to MindRecord rows whose labels mask the prompt.

    python tools/dataset_preprocess/instruction_to_mindrecord.py \
        --input_file alpaca_data.json --output_file alpaca.mindrecord --max_length 1025 --tokenizer_type <dir>
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import run_program
from mindgpt.data.blocks import use_cores
from mindgpt.data.instruction_rows import ExamplesSummary, write_examples
from mindgpt.data.instructions import FORMATS, TEMPLATES, ExampleReader, format_with_keys, read_templates
from mindgpt.data.records import RECORD_SUFFIXES, BadRecords, refuse_with_hint
from mindgpt.data.text import input_files
from mindgpt.data.tool_arguments import (
    add_output_arguments,
    add_skip_bad,
    bad_records,
    counted_in_errors,
    open_tokenizer,
    warn,
)

_MUCH_PADDING = 0.5


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    formats = "; ".join(f"{name}: {layout.keys}" for name, layout in FORMATS.items())
    parser = CheckedParser(
        description="Instruction data to MindRecord. An example is a prompt, its response and <|endoftext|>; labels "
        "are -100 at the prompt and at padding, so that only the response and its end are learned. A row of src_tgt "
        "without tgt_txt is learned as a whole."
    )
    parser.add_argument(
        "--input_file",
        type=path_argument,
        nargs="+",
        required=True,
        help=f"files, folders (their {', '.join(RECORD_SUFFIXES)} files, sub-folders included) or patterns in quotes. "
        ".json: a list of objects, or one a line; .csv and .tsv: with a header, quotes round cells that need them",
    )
    add_output_arguments(parser, row="row", max_length=1025)
    parser.add_argument("--format", choices=FORMATS, help=f"the keys (default: by the first record). {formats}")
    parser.add_argument("--prompt_key", metavar="KEY", help="key or column of the prompt or instruction, if another")
    parser.add_argument("--response_key", metavar="KEY", help="that of the response")
    parser.add_argument(
        "--input_key", metavar="KEY", help="that of the input to an instruction; prompts are then worded as of alpaca"
    )
    parser.add_argument(
        "--template",
        type=path_argument,
        metavar="FILE",
        help="how to word prompts: a JSON file with prompt_input and prompt_no_input, texts with {instruction} and "
        "{input} in them, or, for the other formats, prompt, a text with {prompt} in it (default: ### Instruction: ... "
        "### Response:, and the prompt as it stands)",
    )
    parser.add_argument(
        "--too_long",
        choices=["truncate", "drop"],
        default="truncate",
        help="an example of more than max_length tokens has the end of its response truncated, without <|endoftext|> "
        "(default), or is dropped. One whose prompt fills the row is dropped in either case",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="put several whole examples in a row. They are not kept apart: an example sees those before it in its row",
    )
    add_skip_bad(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    bad = bad_records(arguments)
    examples = ExampleReader(
        input_files(arguments.input_file, RECORD_SUFFIXES),
        format_with_keys(arguments.format, arguments.prompt_key, arguments.response_key, arguments.input_key),
        read_templates(arguments.template) if arguments.template else TEMPLATES,
        on_bad=bad or refuse_with_hint,
    )
    with counted_in_errors(bad):
        summary = write_examples(
            examples,
            open_tokenizer(arguments.tokenizer_type),
            arguments.output_file,
            max_length=arguments.max_length,
            pack=arguments.pack,
            too_long=arguments.too_long,
            num_splits=arguments.num_splits,
            overwrite=arguments.overwrite,
        )
    warn_of_losses(summary, examples, bad)
    print(summary)
    if summary.padding > _MUCH_PADDING and not arguments.pack:
        print("much of this is padding, which costs as much time as text: --pack puts several examples into a row")


def warn_of_losses(summary: ExamplesSummary, examples: ExampleReader, bad: BadRecords | None) -> None:
    """One line for everything that was read and is not learned."""
    length = summary.row_length
    if summary.truncated:
        warn(f"{summary.truncated} example(s) of more than {length} tokens: the end of the response is truncated")
    if summary.dropped:
        warn(f"{summary.dropped} example(s) dropped as too long for {length} tokens")
    if examples.empty.count:
        warn(f"{examples.empty.count} record(s) with an empty response left out: {examples.empty.first}")
    if bad and bad.count:
        warn(bad)
    if examples.unused:
        warn(f"unused keys: {', '.join(sorted(map(repr, examples.unused)))}")


if __name__ == "__main__":
    run_program(main)
