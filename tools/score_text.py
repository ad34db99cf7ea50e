"""How likely a language model finds texts: log-probability, tokens and perplexity of each, and of every token if asked.

    python tools/score_text.py --config X.yaml --load_checkpoint Y.ckpt --tokenizer DIR texts.txt
    python tools/score_text.py --config X.yaml --load_checkpoint Y.ckpt "a text" --output scores.jsonl --per_token

A .txt file has one text a line, a .jsonl, .csv or .parquet file a `text` or `prompt` in each record; a folder or a
pattern in quotes stands for such files. Files that end in .gz or .zst are unpacked as they are read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.arguments import CheckedParser, path_argument
from mindgpt.config.command_line import config_from_command_line
from mindgpt.config.errors import UserError, run_program
from mindgpt.runtime.interrupts import end_on_interrupt
from mindgpt.tasks.checks import check_named_files


def main() -> None:
    parser = CheckedParser.documented(__doc__)
    parser.add_argument("texts", metavar="FILE", nargs="*", help="texts, files or folders")
    of_run = ("config", "load_checkpoint", "adapter", "tokenizer", "device_target", "output_dir")
    for name in of_run:
        parser.add_argument(f"--{name}", metavar="X", required=name == "config", help="as in run_mindformer.py")
    parser.add_argument(
        "--options",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="any keys of the YAML file, as in run_mindformer.py; texts go before it, or after --",
    )
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="write a JSON line for each text")
    parser.add_argument("--per_token", action="store_true", help="with every token's log-probability in it")
    given = parser.parse_intermixed_args()
    if not given.texts:
        raise UserError("command line: no texts: name texts, files or folders, before --options or after --")
    if given.per_token and given.output is None:
        raise UserError("command line: --per_token goes into a file: name it with --output FILE")
    words = [part for name in of_run if (value := getattr(given, name)) for part in (f"--{name}", value)]
    words += ["--options", *given.options] if given.options else []
    command = config_from_command_line([*words, "--run_mode", "predict"])
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


if __name__ == "__main__":
    end_on_interrupt()
    run_program(main)
