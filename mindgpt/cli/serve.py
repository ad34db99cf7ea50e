"""`mindgpt serve`: finds the model and its tokenizer as `mindgpt predict` does, and hands over to the server."""

from collections.abc import Sequence

from mindgpt.config.errors import UserError
from mindgpt.serving import command
from mindgpt.serving.command import parser as build_parser

__all__ = ["build_parser", "main"]


def main(words: Sequence[str]) -> None:
    """Run the server.

    Raises:
        UserError: the model, its tokenizer or a flag is wrong, or a package of the server is missing.
    """
    given = build_parser().parse_args(words)
    command.check_packages()
    from mindgpt.tasks.model_by_name import named_model, tokenizer_near

    model = named_model(given.model)
    if model.load_checkpoint is None:
        raise UserError(f"--model {given.model}: has no weights; name a folder or file that has")
    words = [*words, "--model", str(model.load_checkpoint)]  # the later of two equal flags counts
    if given.tokenizer is None:
        words = [*words, "--tokenizer", str(tokenizer_near(model))]
    if given.name is None:
        words = [*words, "--name", model.name]
    command.main(words)
