"""`mindgpt train`, `finetune`, `eval` and `predict`: the flags of `run_mindformer.py`, or a model and texts alone."""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindgpt.config.arguments import CheckedParser, file_argument, path_argument
from mindgpt.config.command_line import (
    CommandLine,
    Flag,
    build_parser,
    check_words,
    command_of,
    name_of_program,
)
from mindgpt.config.errors import UserError
from mindgpt.runtime.ranks import say

if TYPE_CHECKING:
    from mindgpt.tasks.without_yaml import Wishes

_TRAIN = ("train", "finetune")
LEARNING_RATE = Flag("learning_rate", float, ("lr_schedule.learning_rate",), "of the optimizer", _TRAIN)
_MORE = (LEARNING_RATE,)
_OF_TEXT = ("data", "eval_data", "field", "document_per", "seq_length", "lora", "lora_rank")
_OWN = ("model", "texts", "template", *_OF_TEXT)


def parser_of(mode: str, takes_texts: bool = True) -> CheckedParser:
    """The parser of a run mode: every flag of `run_mindformer.py`, and those that do without a YAML file.

    Args:
        takes_texts: whether prompts stand among the words of a prediction.
    """
    parser = build_parser()
    parser.prog, parser.usage = name_of_program(), f"%(prog)s {_USAGE[mode]}"
    parser.description = "With --config, as the YAML file says; with --model, by defaults that are printed."
    add = parser.add_argument_group("without a YAML file").add_argument
    add(
        "--model",
        type=path_argument,
        metavar="PATH|NAME",
        help="weights of any kind, a run's output folder, or, to train from random weights, the name of a size",
    )
    add("--output", dest="output_dir", type=path_argument, metavar="DIR", help="as --output_dir")
    if mode == "predict":
        if takes_texts:
            parser.add_argument("texts", nargs="*", metavar="TEXT", help="prompts, or files and folders of them")
        return parser
    text = "text, JSON, tables, Parquet: files, folders or patterns in quotes; or MindRecord"
    add("--data", type=path_argument, nargs="+", action="extend", metavar="FILE", help=text)
    add("--field", metavar="KEY", help="in JSON and tables: the key or column that holds the text (text)")
    add("--document_per", choices=["file", "line"], help="in text files: what a document is (file)")
    add("--seq_length", type=_count, metavar="N", help="tokens of a sequence")
    if mode == "eval":
        return parser
    add(
        "--eval_data",
        type=path_argument,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="the same to evaluate on after each epoch; absent: the last tenth of --data; none: no evaluation",
    )
    add("--learning_rate", type=float, metavar="X", help=LEARNING_RATE.help)
    if mode == "finetune":
        add("--lora", action="store_true", help="train LoRA factors alone")
        add("--lora_rank", type=_count, metavar="N", help="their rank (8)")
    return parser


_USAGE = {
    "train": "--model SIZE|PATH --data FILE [flags] | --config FILE [flags]",
    "finetune": "--model PATH --data FILE [flags] | --config FILE [flags]",
    "eval": "--model PATH --data FILE [flags] | --config FILE [flags]",
    "predict": "--model PATH TEXT... [flags] | --config FILE [flags]",
}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def train_parser() -> CheckedParser:
    """The parser of `mindgpt train`."""
    return parser_of("train")


def finetune_parser() -> CheckedParser:
    """The parser of `mindgpt finetune`."""
    return parser_of("finetune")


def evaluate_parser() -> CheckedParser:
    """The parser of `mindgpt eval`."""
    return parser_of("eval")


def predict_parser() -> CheckedParser:
    """The parser of `mindgpt predict`."""
    return parser_of("predict")


def train(words: Sequence[str]) -> None:
    """`mindgpt train`."""
    _run("train", words)


def finetune(words: Sequence[str]) -> None:
    """`mindgpt finetune`."""
    _run("finetune", words)


def evaluate(words: Sequence[str]) -> None:
    """`mindgpt eval`."""
    _run("eval", words)


def predict(words: Sequence[str]) -> None:
    """`mindgpt predict`."""
    _run("predict", words)


def chat_parser() -> CheckedParser:
    """The parser of `mindgpt chat`: that of prediction, without texts."""
    parser = parser_of("predict", takes_texts=False)
    parser.usage = "%(prog)s --model PATH [flags] | --config FILE [flags]"
    parser.add_argument(
        "--template", metavar="NAME|FILE", help="how prompts are worded: alpaca, or a JSON file of templates"
    )
    return parser


def chat(words: Sequence[str]) -> None:
    """`mindgpt chat`. Samples unless it is told otherwise.

    Raises:
        UserError: anything wrong with the command line or the files it names.
    """
    parser = chat_parser()
    given, _ = parser.parse_known_args(list(words))
    command = _command("predict", parser, list(words))
    from mindgpt.tasks.checks import check_named_files
    from mindgpt.tasks.output_folder import held_output_folder

    if command.config.trainer.type != "CausalLanguageModelingTrainer":
        raise UserError("chat: this is a classifier, which continues no text; `mindgpt predict` labels texts")
    check_named_files(command.config, ["a prompt"])
    from mindgpt.tasks.chat import chat as loop
    from mindgpt.tasks.chat import prompt_template
    from mindgpt.tasks.session import prepare

    template = prompt_template(getattr(given, "template", None))
    with held_output_folder(command.config):
        for note in command.notes:
            say(note)
        prepare(command.config)
        loop(command.config, _sampling(command, given), template)


def _sampling(command: CommandLine, given: argparse.Namespace) -> dict[str, Any]:
    """The settings of a conversation that neither the command line nor a YAML file has chosen."""
    config = command.config.model.config
    settings: dict[str, Any] = {}
    if "seed" in given:
        settings["seed"] = given.seed
    if "max_new_tokens" not in given and "config" not in given:
        settings["max_new_tokens"] = 128
    if "do_sample" not in given and "config" not in given and not config.do_sample:
        settings["do_sample"] = True
        if not {"top_k", "top_p"} & vars(given).keys() and config.top_p in (None, 1.0):
            settings["top_p"] = 0.95
    return settings


def _run(mode: str, words: Sequence[str]) -> None:
    from mindgpt.tasks.main import run_command

    run_command(command_from(mode, words))


def command_from(mode: str, words: Sequence[str]) -> CommandLine:
    """What the words after a run mode's name ask for.

    Raises:
        UserError: anything wrong with them, the files that they name, or the two together.
    """
    return _command(mode, parser_of(mode), list(words))


def _command(mode: str, parser: CheckedParser, words: list[str]) -> CommandLine:
    arguments, unknown = (parser.parse_known_intermixed_args if mode == "predict" else parser.parse_known_args)(words)
    own = {name: getattr(arguments, name) for name in _OWN if getattr(arguments, name, None) not in (None, [], False)}
    for name in _OWN:
        if name in arguments:
            delattr(arguments, name)
    if texts := own.pop("texts", []):
        arguments.predict_data = [*texts, *getattr(arguments, "predict_data", [])]
    check_words(parser, arguments, unknown)
    named = getattr(arguments, "run_mode", mode)
    if named != mode:
        parser.error(f"--run_mode {named}: this is `mindgpt {mode}`; leave it out")
    arguments.run_mode = mode
    if "config" in arguments:
        return _by_yaml(parser, mode, arguments, own)
    if "model" not in own:
        parser.error("name a model with --model, or a YAML file with --config")
    return _by_model(parser, mode, arguments, own)


def _by_yaml(parser: CheckedParser, mode: str, arguments: argparse.Namespace, own: dict[str, Any]) -> CommandLine:
    """The YAML file's run, with its rows made of the texts of --data."""
    for name in ("model", "lora", "lora_rank"):
        if name in own:
            hint = "name the weights with --load_checkpoint" if name == "model" else "write a pet_config into it"
            parser.error(f"--{name} is for a run without a YAML file; with --config, {hint}")
    tokenizer = _popped_tokenizer(mode, arguments)
    if "seq_length" in own:
        arguments.set = [*getattr(arguments, "set", []), f"model.model_config.seq_length={own['seq_length']}"]
    command = command_of(arguments, _MORE)
    if "data" not in own and "eval_data" not in own:
        if tokenizer is not None:
            parser.error(f"--tokenizer has no effect on {mode} without --data: MindRecord holds tokens")
        return command
    from mindgpt.tasks.prompts import tokenizer_folder
    from mindgpt.tasks.without_yaml import TRAIN, VALID, data_of_run

    own["seq_length"] = command.config.model.config.seq_length
    if tokenizer is None and _needs_tokenizer(own):
        tokenizer = tokenizer_folder(command.config)
    if mode != "eval" and "eval_data" not in own and not command.config.do_eval:
        own["eval_data"] = ["none"]
    data = data_of_run(mode, _wishes(arguments, own, tokenizer), own["seq_length"], "CPU")
    for part, flag in ((TRAIN, "train_dataset_dir"), (VALID, "eval_dataset_dir")):
        if part in data.files:
            if flag in arguments:
                parser.error(f"--{flag} and --{'data' if part == TRAIN or mode == 'eval' else 'eval_data'}: keep one")
            setattr(arguments, flag, str(data.files[part]))
    if mode != "eval" and VALID in data.files and "do_eval" not in arguments:
        arguments.do_eval = True
    return command_of(arguments, _MORE)


def _by_model(parser: CheckedParser, mode: str, arguments: argparse.Namespace, own: dict[str, Any]) -> CommandLine:
    """A run by defaults: they are written to a YAML file, which is read as any other."""
    from mindgpt.tasks.model_by_name import named_model, tokenizer_near
    from mindgpt.tasks.without_yaml import as_yaml, settings_of_run, shown_defaults

    for name, instead in (("load_checkpoint", "--model"), ("train_dataset_dir", "--data"), ("eval_dataset_dir", "")):
        if name in arguments:
            instead = instead or ("--data" if mode == "eval" else "--eval_data")
            parser.error(f"--{name} is for a run with a YAML file; with --model, name it with {instead}")
    if mode != "predict" and "data" not in own:
        parser.error(f"{mode} needs --data FILE: text, or MindRecord that `mindgpt prepare` has made")
    model = named_model(own["model"])
    tokenizer = _popped_tokenizer(mode, arguments)
    if tokenizer is None and (mode == "predict" or _needs_tokenizer(own)):
        tokenizer = tokenizer_near(model)
    wishes = _wishes(arguments, own, tokenizer)
    settings = settings_of_run(mode, model, wishes)
    folder = Path(tempfile.mkdtemp(prefix="mindgpt-"))
    try:
        file = folder / f"{mode}.yaml"
        file.write_text(as_yaml(settings), encoding="utf-8")
        arguments.config = str(file)
        command = command_of(arguments, _MORE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if command.config.trains:
        say(f"settings: {', '.join(shown_defaults(command.config))} (flags change them)")
        say(f"all of them: {Path(command.config.output_dir) / f'{mode}_config.yaml'}, to go on with by --config")
    return command._replace(notes=[note for note in command.notes if not note.startswith(str(folder))])


def _popped_tokenizer(mode: str, arguments: argparse.Namespace) -> Path | None:
    """--tokenizer, which is a flag of prediction alone in `run_mindformer.py`, out of the arguments of others."""
    named = getattr(arguments, "tokenizer", None)
    if named is None or (mode == "predict" and "config" in arguments):
        return None
    del arguments.tokenizer
    from mindgpt.tokenizers.loading import load_tokenizer, tokenizer_path

    path = tokenizer_path(file_argument(named))
    load_tokenizer(path)
    return path


def _needs_tokenizer(own: dict[str, Any]) -> bool:
    from mindgpt.tasks.without_yaml import is_mindrecord

    names = [*own.get("data", []), *own.get("eval_data", [])]
    return any(name != "none" and not is_mindrecord(name) for name in names)


def _wishes(arguments: argparse.Namespace, own: dict[str, Any], tokenizer: Path | None) -> "Wishes":
    from mindgpt.tasks.without_yaml import Wishes

    of_run = {name: getattr(arguments, name, None) for name in ("batch_size", "device_target")}
    if "lora_rank" in own and not own.get("lora"):
        raise UserError("command line: --lora_rank is for --lora")
    return Wishes(tokenizer=tokenizer, **of_run, **{name: own[name] for name in _OF_TEXT if name in own})
