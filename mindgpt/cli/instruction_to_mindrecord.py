"""Instruction data (.json, .jsonl, .csv, .tsv, .parquet) to MindRecord rows whose labels mask the prompt.

    python tools/dataset_preprocess/instruction_to_mindrecord.py \
        --input_file alpaca_data.json --output_file alpaca.mindrecord --max_length 1025 --tokenizer_type <dir>

    python tools/dataset_preprocess/instruction_to_mindrecord.py --layout modelscope \
        --input_file dureader.jsonl --output_file dureader.mindrecord --sequence_length 512 --tokenizer_type <dir>
"""

import argparse

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.data.blocks import use_cores
from mindgpt.data.instruction_rows import LAYOUTS, ExamplesSummary, write_examples
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
_MAX_LENGTH = 1025
_SEQUENCE_LENGTH = 128  # ModelScope's default


def build_parser() -> CheckedParser:
    """The parser of the program."""
    formats = "; ".join(f"{name}: {layout.keys}" for name, layout in FORMATS.items())
    parser = CheckedParser(
        description="Instruction data to MindRecord. An example is a prompt, its response and <|endoftext|> (with "
        "WordPiece: [CLS], prompt, response, [SEP]); labels are -100 at the prompt and at padding, so that only the "
        "response and its end are learned. A row of src_tgt without tgt_txt is learned as a whole. --layout modelscope "
        "makes the rows that ModelScope trains its Chinese GPT-3 on."
    )
    parser.add_argument(
        "--input_file",
        type=path_argument,
        nargs="+",
        required=True,
        help=f"files, folders (their {', '.join(RECORD_SUFFIXES)} files, sub-folders included) or patterns in quotes; "
        "those that end in .gz or .zst are unpacked as they are read. .json: a list of objects, or one a "
        "line; .csv and .tsv: with a header, quotes round cells that need them",
    )
    add_output_arguments(
        parser,
        row="row",
        max_length=_MAX_LENGTH,
        length_help="tokens in a {row}: seq_length + 1 to train, seq_length to evaluate. With --layout modelscope "
        f"it is ModelScope's sequence_length, by default {_SEQUENCE_LENGTH}",
        length_names=("--sequence_length",),
    )
    parser.set_defaults(max_length=None)
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="modelscope: a row is src_txt <sep>, of which all is learned, or src_txt tgt_txt <sep>, of which tgt_txt "
        "<sep> is; truncated on the right or padded with 0. All records have a tgt_txt or none",
    )
    parser.add_argument(
        "--learn_padding",
        action="store_true",
        help="of --layout modelscope without tgt_txt: learn the padding, too, as ModelScope's base and large models do",
    )
    parser.add_argument(
        "--split_at",
        nargs="+",
        metavar="TOKEN",
        help="of ModelScope's tokenizer: tokens to find in the text, such as '<sep>', which is text otherwise",
    )
    parser.add_argument("--format", choices=FORMATS, help=f"the keys (default: by the first record). {formats}")
    parser.add_argument(
        "--prompt_key", metavar="KEY", help="key or column of the prompt, instruction or source, if another"
    )
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
        "(default), or is dropped. One whose prompt fills the row is dropped in either case; with --layout modelscope "
        "only if this says so",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="put several whole examples in a row. They are not kept apart: an example sees those before it in its row",
    )
    add_skip_bad(parser)
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    if arguments.max_length is None:
        arguments.max_length = _SEQUENCE_LENGTH if arguments.layout == "modelscope" else _MAX_LENGTH
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    use_cores(arguments.num_workers)
    bad = bad_records(arguments)
    examples = ExampleReader(
        input_files(arguments.input_file, RECORD_SUFFIXES),
        format_with_keys(_format(arguments), arguments.prompt_key, arguments.response_key, arguments.input_key),
        read_templates(arguments.template) if arguments.template else TEMPLATES,
        on_bad=bad or refuse_with_hint,
        all_alike=arguments.layout == "modelscope",
    )
    with counted_in_errors(bad):
        summary = write_examples(
            examples,
            open_tokenizer(arguments.tokenizer_type, arguments.split_at),
            arguments.output_file,
            max_length=arguments.max_length,
            pack=arguments.pack,
            too_long=arguments.too_long,
            layout=arguments.layout,
            learn_padding=arguments.learn_padding,
            num_splits=arguments.num_splits,
            overwrite=arguments.overwrite,
        )
    warn_of_losses(summary, examples, bad)
    print(summary)
    if summary.padding > _MUCH_PADDING and not arguments.pack and arguments.layout != "modelscope":
        print("much of this is padding, which costs as much time as text: --pack puts several examples into a row")


def _format(arguments: argparse.Namespace) -> str | None:
    """The name of a format. ModelScope's, if its rows are made of the texts under one key, which needs no response."""
    only_prompt = arguments.prompt_key is not None and (arguments.response_key, arguments.input_key) == (None, None)
    is_source = arguments.layout == "modelscope" and only_prompt
    return "src_tgt" if arguments.format is None and is_source else arguments.format


def warn_of_losses(summary: ExamplesSummary, examples: ExampleReader, bad: BadRecords | None) -> None:
    """One line for everything that was read and is not learned."""
    length = summary.row_length
    if summary.truncated:
        warn(f"{summary.truncated} example(s) of more than {length} tokens: the end of the response is truncated")
    if summary.unlearned:
        warn(f"{summary.unlearned} example(s) whose source fills the row: nothing of them is learned")
    if summary.dropped:
        warn(f"{summary.dropped} example(s) dropped as too long for {length} tokens")
    if summary.continued and examples.templates is not TEMPLATES:
        warn(f"{summary.continued} example(s) without a response: --template has no effect on them")
    if examples.empty.count:
        warn(f"{examples.empty.count} record(s) with an empty response left out: {examples.empty.first}")
    if bad and bad.count:
        warn(bad)
    if examples.unused:
        warn(f"unused keys: {', '.join(sorted(map(repr, examples.unused)))}")
