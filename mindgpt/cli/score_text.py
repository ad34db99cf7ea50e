"""How likely a language model finds texts: log-probability, tokens and perplexity of each, and of every token if asked.

    python tools/score_text.py --config X.yaml --load_checkpoint Y.ckpt --tokenizer DIR texts.txt
    python tools/score_text.py --config X.yaml --load_checkpoint Y.ckpt "a text" --output scores.jsonl --per_token

A .txt file has one text a line, a .jsonl, .csv or .parquet file a `text` or `prompt` in each record; a folder or a
pattern in quotes stands for such files. Files that end in .gz or .zst are unpacked as they are read.
"""

from mindgpt.cli.run_modes import command_from
from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.errors import UserError
from mindgpt.tasks.checks import check_named_files

_OF_RUN = ("config", "load_checkpoint", "adapter", "tokenizer", "device_target", "output_dir")


def build_parser() -> CheckedParser:
    """The parser of the program."""
    parser = CheckedParser.documented(__doc__)
    parser.add_argument("texts", metavar="FILE", nargs="*", help="texts, files or folders")
    for name in _OF_RUN:
        parser.add_argument(f"--{name}", metavar="X", help="as in run_mindformer.py")
    parser.add_argument(
        "--model", type=path_argument, metavar="PATH", help="weights that need no YAML file, instead of --config"
    )
    parser.add_argument(
        "--options",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="any keys of the YAML file, as in run_mindformer.py; texts go before it, or after --",
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one of them")
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="write a JSON line for each text")
    parser.add_argument("--per_token", action="store_true", help="with every token's log-probability in it")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = build_parser().parse_intermixed_args(argv)
    if not given.texts:
        raise UserError("command line: no texts: name texts, files or folders, before --options or after --")
    if given.per_token and given.output is None:
        raise UserError("command line: --per_token goes into a file: name it with --output FILE")
    if not (given.config or given.model):
        raise UserError("command line: name a model with --model, or a YAML file with --config")
    words = [part for name in (*_OF_RUN, "model") if (value := getattr(given, name)) for part in (f"--{name}", value)]
    words += [part for word in given.set for part in ("--set", word)]
    words += ["--options", *given.options] if given.options else []
    command = command_from("predict", words)
    if command.config.model.arch.type != "GPT2LMHeadModel":
        raise UserError(f"model.arch.type: {command.config.model.arch.type} is no language model: it scores no texts")

    check_named_files(command.config, given.texts, called="texts")

    from mindgpt.tasks.score import (
        score_texts,  # with MindSpore, once the command line and what it names are found right
    )
    from mindgpt.tasks.session import prepare

    for note in command.notes:
        print(note)
    prepare(command.config)
    score_texts(command.config, given.texts, given.output, given.per_token)
