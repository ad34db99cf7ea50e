"""The command-line arguments that every tool which writes MindRecord has."""

import argparse
from pathlib import Path

from mindgpt.config.arguments import path_argument
from mindgpt.config.errors import UserError
from mindgpt.data.byte_bpe import holds_tokenizer
from mindgpt.data.files import DOWNLOADS

_DEFAULT = "gpt2"  # of MindFormers' --tokenizer_type: the name of a model, whose tokenizer it downloaded
_BLOCK_LENGTH = "tokens in a {row}: seq_length + 1 to train, seq_length to evaluate"


def add_output_arguments(
    parser: argparse.ArgumentParser, *, row: str, max_length: int, length_help: str = _BLOCK_LENGTH
) -> None:
    """Add what is written where, with which tokenizer.

    Args:
        row: what a row of the file is called in the help text.
        max_length: the default of --max_length.
        length_help: what it means; `{row}` in it stands for `row`.
    """
    parser.add_argument(
        "--output_file", type=path_argument, required=True, help="file to write; its name ends in 'mindrecord'"
    )
    parser.add_argument(
        "--tokenizer_type",
        type=path_argument,
        default=_DEFAULT,
        metavar="DIR",
        help=f"folder with the tokenizer's files (default: {DOWNLOADS})",
    )
    parser.add_argument(
        "--max_length",
        type=int,
        default=max_length,
        help=f"{length_help.format(row=row)} (default {max_length})",
    )
    parser.add_argument(
        "--num_splits", type=int, default=1, help=f"files to spread the {row}s over (x.0.mindrecord, ...)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    parser.add_argument("--num_workers", type=int, help="cores to tokenise on (default: all)")


def tokenizer_folder(named: str) -> Path:
    """The folder that `--tokenizer_type` means: one that is there, or for `gpt2` the one that MindFormers downloaded.

    Raises:
        UserError: it is the default that is meant, and there is no tokenizer.
    """
    if named != _DEFAULT or Path(named).exists():
        return Path(named)
    if holds_tokenizer(DOWNLOADS):
        return DOWNLOADS
    raise UserError(
        f"no tokenizer: there is no tokenizer.json or vocab.json in {DOWNLOADS} (looked from {Path.cwd()}), and "
        "nothing is downloaded. Put them there, or name the tokenizer's folder with --tokenizer_type DIR."
    )
