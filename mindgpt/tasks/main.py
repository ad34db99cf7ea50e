"""The entry point: reads the command line and calls the run mode."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mindgpt.config.console import note_on_broken_pipe
from mindgpt.config.errors import whole_program
from mindgpt.runtime.interrupts import end_on_interrupt
from mindgpt.runtime.ranks import say

if TYPE_CHECKING:
    from mindgpt.config.command_line import CommandLine


def main() -> NoReturn:
    """The program `run_mindformer.py`: run what the command line asks for, and exit."""
    end_on_interrupt()
    with whole_program():
        run()


def run(argv: Sequence[str] | None = None) -> None:
    """Run what a command line asks for; `argv` None means that of this process.

    MindSpore is loaded only after the command line, the YAML and the files they name have been found right.

    Raises:
        UserError: the command line, the YAML, or a file they name is wrong.
    """
    from mindgpt.config.command_line import config_from_command_line

    run_command(config_from_command_line(argv))


def run_command(command: "CommandLine") -> None:
    """Run what a command line asks for.

    Raises:
        UserError: a file that it names is wrong.
    """
    from mindgpt.tasks.output_folder import held_output_folder

    with held_output_folder(command.config):
        _run_mode(command)


def _run_mode(command: "CommandLine") -> None:
    from mindgpt.tasks.checks import check_named_files

    config = command.config
    check_named_files(config, command.predict_data)
    from mindgpt.tasks.session import prepare

    for note in command.notes:
        say(note)
    prepare(config)
    if config.trains:
        from mindgpt.tasks.train import train

        log = Path(config.output_dir) / "log" / "train.jsonl"
        with note_on_broken_pipe(f"nobody reads the output any more; the training goes on, and its log is {log}"):
            train(config)
    elif config.run_mode == "eval":
        from mindgpt.tasks.evaluate import evaluate

        evaluate(config)
    else:
        from mindgpt.tasks.classify import classify
        from mindgpt.tasks.predict import predict

        by_trainer = {"CausalLanguageModelingTrainer": predict, "TextClassificationTrainer": classify}
        by_trainer[config.trainer.type](config, command.predict_data)
