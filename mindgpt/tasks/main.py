"""The entry point: reads the command line, and hands over to the run mode."""

import sys
from collections.abc import Sequence

from mindgpt.config.command_line import config_from_command_line
from mindgpt.config.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit status: 0, 2 for an error of the user's, 130 for Ctrl-C.

    MindSpore is loaded only after the command line and the YAML have been read and found right.
    """
    try:
        _dispatch(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def _dispatch(argv: Sequence[str] | None) -> None:
    command = config_from_command_line(argv)
    config = command.config
    from mindgpt.runtime.ranks import say
    from mindgpt.tasks.session import prepare

    for note in command.notes:
        say(note)
    prepare(config)
    if config.run_mode in ("train", "finetune"):
        from mindgpt.tasks.train import train

        train(config)
    elif config.run_mode == "eval":
        from mindgpt.tasks.evaluate import evaluate

        evaluate(config)
    else:
        from mindgpt.tasks.predict import predict

        predict(config, command.predict_data)
