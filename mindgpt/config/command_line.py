"""The command line of `run_mindformer.py`: MindFormers 1.5's flags, and the YAML keys that they set.

Every flag is declared once, in `FLAGS`, with its YAML keys and the run modes in which it has an effect. A flag that
cannot have any effect is refused.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.config.arguments import CheckedParser, ShowVersion
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import nearest
from mindgpt.config.yaml_file import parse_value

PROGRAMS = ("run_mindformer.py", "mindgpt")
"""The names of the program: the script of a checkout, and the command that pip installs."""


def boolean(text: str) -> bool:
    """True or False, in upper or lower case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() == "true"


def boolean_or_name(text: str) -> bool | str:
    """True or False, or else a name."""
    return boolean(text) if text.lower() in ("true", "false") else text


_TRAIN = ("train", "finetune")
_ALL = ("train", "finetune", "eval", "predict")
_READ_AS = {boolean: "True|False", int: "N", float: "X", str: "TEXT", boolean_or_name: "True|False|NAME"}


@dataclass(frozen=True)
class Flag:
    """One flag: its name without dashes, its type, the YAML keys that it sets, and the run modes that obey it."""

    name: str
    read: Callable[[str], Any]
    keys: tuple[str, ...]
    help: str
    modes: tuple[str, ...] = _ALL


_GENERATION = "text generation"
FLAGS: dict[str, tuple[Flag, ...]] = {
    "the job": (
        Flag("run_mode", str, ("run_mode",), "train, finetune, eval or predict"),
        Flag("seed", int, ("seed",), "random seed"),
        Flag("output_dir", str, ("output_dir",), "folder for checkpoints, strategies and logs"),
        Flag("load_checkpoint", str, ("load_checkpoint",), "weights to start from: a file or folder"),
        Flag(
            "adapter",
            str,
            ("model.model_config.pet_config.adapter",),
            "a LoRA adapter to put on load_checkpoint: a PEFT folder, or a .ckpt of trained parameters",
        ),
        Flag("resume_training", boolean_or_name, ("resume_training",), "resume a stopped run", _TRAIN),
    ),
    "data": (
        Flag(
            "train_dataset_dir",
            str,
            ("train_dataset.data_loader.dataset_dir",),
            "MindRecord file, or folder of which every file ending in mindrecord is read",
            _TRAIN,
        ),
        Flag(
            "eval_dataset_dir",
            str,
            ("eval_dataset.data_loader.dataset_dir",),
            "the same for evaluation (in training only with do_eval)",
            (*_TRAIN, "eval"),
        ),
        Flag(
            "num_samples",
            int,
            ("train_dataset.num_samples", "eval_dataset.num_samples"),
            "read only so many samples of a data set",
            (*_TRAIN, "eval"),
        ),
    ),
    "training and evaluation": (
        Flag("epochs", int, ("runner_config.epochs",), "passes over the data (eval: 1)", (*_TRAIN, "eval")),
        Flag("batch_size", int, ("runner_config.batch_size",), "sequences per step and card", (*_TRAIN, "eval")),
        Flag(
            "gradient_accumulation_steps",
            int,
            ("runner_config.gradient_accumulation_steps",),
            "batches per optimizer step",
            _TRAIN,
        ),
        Flag("sink_mode", boolean, ("runner_config.sink_mode",), "use MindSpore's data sinking", (*_TRAIN, "eval")),
        Flag("do_eval", boolean, ("do_eval",), "evaluate during training", _TRAIN),
        Flag("profile", boolean, ("profile",), "not supported: profiling is refused", _TRAIN),
    ),
    "prediction": (
        Flag("tokenizer", str, ("processor.tokenizer.path",), "folder of the tokenizer"),
        Flag("predict_batch_size", int, ("model.model_config.batch_size",), "prompts per batch", ("predict",)),
    ),
    _GENERATION: (
        Flag("max_new_tokens", int, ("model.model_config.max_new_tokens",), "tokens to add to a prompt"),
        Flag(
            "do_sample", boolean, ("model.model_config.do_sample",), "sample; otherwise decode greedily", ("predict",)
        ),
        Flag("top_k", int, ("model.model_config.top_k",), "sample among the K likeliest tokens", ("predict",)),
        Flag(
            "top_p",
            float,
            ("model.model_config.top_p",),
            "nucleus sampling: the likeliest tokens with total probability P",
            ("predict",),
        ),
        Flag("temperature", float, ("model.model_config.temperature",), "divides the logits", ("predict",)),
    ),
    "device and parallel layout": (
        Flag("device_target", str, ("context.device_target",), "Ascend or CPU; absent: Ascend if there is one"),
        Flag("device_id", int, ("context.device_id",), "which of the cards of this machine"),
        Flag("mode", int, ("context.mode",), "0: graph mode, 1: pynative mode"),
        Flag("use_parallel", boolean, ("use_parallel",), "use all processes that msrun started"),
        Flag("only_save_strategy", boolean, ("only_save_strategy",), "write the strategy files and stop", _TRAIN),
        Flag("src_strategy_path_or_dir", str, ("src_strategy_path_or_dir",), "strategy files of load_checkpoint"),
        Flag("auto_trans_ckpt", boolean, ("auto_trans_ckpt",), "reshard load_checkpoint for this layout"),
        Flag("transform_process_num", int, ("transform_process_num",), "processes that do so"),
    ),
}

REFUSED = {
    "modal_type": "mindgpt reads text only",
    "adapter_id": "mindgpt serves one adapter at a time; name its file or folder with --adapter",
    "register_path": "mindgpt has no registry of outside classes; import mindgpt from your own program instead",
    "remote_save_url": "mindgpt uploads nothing; copy the output folder yourself",
    "strategy_load_checkpoint": "use --src_strategy_path_or_dir for the strategy of the weights to load",
}
"""Flags of MindFormers that cannot have any effect here, each with the reason or what to use instead."""


class CommandLine(NamedTuple):
    """What a command line asks for."""

    config: RunConfig
    notes: list[str]
    """Lines to print once: keys without effect, values that another value overrides."""
    predict_data: list[str]
    """What `--predict_data` names, as typed: prompts, or files and folders of them. Empty unless predicting."""


def build_parser() -> CheckedParser:
    """The parser of all flags. A flag that is not given has no attribute in the namespace."""
    parser = CheckedParser(
        prog=name_of_program(),
        usage="%(prog)s --config FILE [flags]",
        description="Train, fine-tune, evaluate or run GPT-2 as a YAML file says. Flags override the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("the configuration")
    parser.add_argument("--version", action=ShowVersion)
    files.add_argument("--config", metavar="FILE", help="YAML file, ours or of MindFormers 1.5 (required)")
    files.add_argument(
        "--options",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        help="any keys of the YAML file, dotted, such as optimizer.weight_decay=0 or callbacks.1.prefix=small",
    )
    files.add_argument("--set", metavar="KEY=VALUE", action="append", help="one of them; may be repeated")
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            modes = "" if flag.modes == _ALL else f" [{', '.join(flag.modes)}]"
            group.add_argument(f"--{flag.name}", type=flag.read, metavar=_READ_AS[flag.read], help=flag.help + modes)
        if title == "prediction":
            group.add_argument(
                "--predict_data",
                metavar="TEXT",
                nargs="+",
                action="extend",
                help="prompts, .txt files with one a line, .jsonl files, or folders of such; a prompt that begins with "
                "a dash: --predict_data=-TEXT [predict]",
            )
    for name in REFUSED:
        parser.add_argument(f"--{name}", nargs="*", help=argparse.SUPPRESS)
    return parser


def name_of_program() -> str:
    """`run_mindformer.py`, or `mindgpt` with its subcommand."""
    name = Path(sys.argv[0]).name
    return name if name and name.split()[0] in PROGRAMS else PROGRAMS[0]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags, without looking at any file. `argv` None means those of this process.

    Raises:
        UserError: an unknown flag (the nearest is named), a value that cannot be read, a flag of MindFormers that
            cannot have any effect here, or no `--config`.
    """
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    check_words(parser, arguments, unknown)
    if "config" not in arguments:
        parser.error("--config FILE is required")
    return arguments


def check_words(parser: CheckedParser, arguments: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Raise a `UserError` for words that the parser does not know, and for flags that have no effect here.

    Args:
        parser: one that `build_parser` made, perhaps with more flags.
        arguments, unknown: what it found.
    """
    names = [name for name in parser.flag_names() if name.lstrip("-") not in REFUSED]
    for word in unknown:
        name = word.split("=")[0]
        if not name.startswith("-"):
            parser.error(f"unexpected argument {word!r}; put a text with spaces in quotes")
        if "predict_data" in arguments and not name.startswith("--"):
            parser.error(
                f"{word!r} begins with a dash, which makes it a flag. As a prompt it is written "
                f"{shlex.quote(f'--predict_data={word}')}, or stands in a file, one prompt a line"
            )
        if "." in name:
            parser.error(f"unknown flag {name}; to set a key of the YAML file write --options {name.lstrip('-')}=VALUE")
        if key := _key_of_model(name.lstrip("-")):
            parser.error(f"unknown flag {name}; to set it write --options {key}=VALUE")
        parser.error(f"unknown flag {name}; {nearest(name, names)}")
    for name, reason in REFUSED.items():
        if name in arguments:
            parser.error(f"--{name} has no effect here: {reason}")


def config_from_command_line(argv: Sequence[str] | None = None) -> CommandLine:
    """Read the flags and the YAML file they name. `argv` None means the arguments of this process.

    Raises:
        UserError: anything wrong with the flags, the file, or the two together.
    """
    return command_of(parse_arguments(argv))


def command_of(arguments: argparse.Namespace, more: Sequence[Flag] = ()) -> CommandLine:
    """The configuration that flags and the YAML file among them ask for.

    Args:
        arguments: of `parse_arguments`.
        more: flags beside those of `FLAGS`.

    Raises:
        UserError: anything wrong with the file, or the two together.
    """
    overrides, origins = _overrides(arguments, more)
    config, ignored = load_config(arguments.config, overrides, origins)
    problems = list(_flags_without_effect(arguments, config, more))
    if problems:
        raise UserError("\n".join(f"command line: {problem}" for problem in problems))
    notes = [f"{arguments.config}: accepted without effect: {', '.join(ignored)}"] if ignored else []
    return CommandLine(config, notes + _batch_size_notes(config), getattr(arguments, "predict_data", []))


def _key_of_model(name: str) -> str | None:
    """The dotted YAML key of `name` if it is a model or generation setting, else None."""
    name = {"max_length": "max_decode_length"}.get(name, name)
    return f"model.model_config.{name}" if name in GPT2Section.known_keys() else None


def _key_of_flag(name: str) -> str | None:
    """The dotted YAML key, or keys, that the flag `name` sets; None if there is no such flag."""
    return next((" and ".join(flag.keys) for flags in FLAGS.values() for flag in flags if flag.name == name), None)


def _overrides(arguments: argparse.Namespace, more: Sequence[Flag]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that the command line sets, by YAML key, and for each key what was typed."""
    overrides: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for typed, word in _keys_and_values(arguments):
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"command line: {typed} {word!r}: must be KEY=VALUE with a dotted YAML key")
        if key not in RunConfig.known_keys() and (full_key := _key_of_flag(key) or _key_of_model(key)):
            raise UserError(f"command line: {typed} {key}: the key is {full_key}")
        try:
            value = parse_value(text)
        except UserError as error:
            raise UserError(f"command line: {typed} {key}: {error}") from None
        if key in origins and not origins[key].startswith(typed) and overrides[key] != value:
            raise UserError(f"command line: {typed} {key} and {origins[key]} disagree; keep one of the two")
        overrides[key], origins[key] = value, f"{typed} {key}"
    for flag in _given_flags(arguments, more):
        value = getattr(arguments, flag.name)
        for key in flag.keys:
            if key in overrides and overrides[key] != value:
                raise UserError(f"command line: --{flag.name} and {origins[key]} disagree; keep one of the two")
            overrides[key], origins[key] = value, f"--{flag.name}"
    return overrides, origins


def _keys_and_values(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Each KEY=VALUE that was typed, after the flag it was typed with."""
    for flag in ("options", "set"):
        yield from ((f"--{flag}", word) for word in getattr(arguments, flag, []))


def _given_flags(arguments: argparse.Namespace, more: Sequence[Flag] = ()) -> Iterator[Flag]:
    for flags in (*FLAGS.values(), more):
        yield from (flag for flag in flags if flag.name in arguments)


def _flags_without_effect(arguments: argparse.Namespace, config: RunConfig, more: Sequence[Flag]) -> Iterator[str]:
    mode = config.run_mode
    for flag in _given_flags(arguments, more):
        if mode not in flag.modes:
            yield f"--{flag.name} has no effect with run_mode {mode}; it is for {', '.join(flag.modes)}"
        elif flag in FLAGS[_GENERATION] and config.trainer.type == "TextClassificationTrainer":
            yield f"--{flag.name} has no effect with trainer.type {config.trainer.type}, which predicts labels"
    evaluates = mode == "eval" or (mode in _TRAIN and config.do_eval)
    if mode != "predict" and not (evaluates and config.metric.type == "GenerationMetric"):
        for name in ("tokenizer", "max_new_tokens"):
            if name in arguments:
                yield f"--{name} has no effect with run_mode {mode}; it is for predict, or for GenerationMetric"
    if "predict_data" in arguments and mode != "predict":
        yield f"--predict_data has no effect with run_mode {mode}; it is for predict"
    if "batch_size" in arguments and mode == "predict":
        yield "--batch_size has no effect with run_mode predict; use --predict_batch_size"
    if "epochs" in arguments and mode == "eval" and arguments.epochs != 1:
        yield f"--epochs {arguments.epochs}: an evaluation is one pass over the data; leave it out or write 1"
    if "eval_dataset_dir" in arguments and mode in _TRAIN and not config.do_eval:
        yield f"--eval_dataset_dir has no effect with run_mode {mode} unless --do_eval True is given too"


def _batch_size_notes(config: RunConfig) -> list[str]:
    counts = config.runner_config.batch_size
    return [
        f"{name}.batch_size {section.batch_size} is overridden by runner_config.batch_size {counts}"
        for name, section in (("train_dataset", config.train_dataset), ("eval_dataset", config.eval_dataset))
        if section.batch_size not in (None, counts)
    ]
