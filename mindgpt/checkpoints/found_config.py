"""The config that is found for weights of another program, and the checks that all families share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.locations import file_beside
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.wordpiece_files import read_vocab

VOCABULARY = "vocab.txt"
HEAD_SIZE = 64  # of all published sizes of UER-py's GPT-2 and of GPT2_ML

_SIZES = ("vocab_size", "num_layers", "hidden_size", "ffn_hidden_size", "max_position_embeddings")


class FoundConfig(NamedTuple):
    """The config of weights.

    Attributes:
        config: None if the number of heads is unknown: then `without_heads` has all the rest.
        notes: sentences for the user.
        assumed: settings that neither the weights nor a file say.
        vocabulary: the file that was read, or None.
    """

    config: GPT2Config | None
    notes: list[str]
    assumed: tuple[str, ...] = ()
    vocabulary: Path | None = None
    without_heads: GPT2Config | None = None


def check_sizes_of_config(
    config: GPT2Config,
    held: Mapping[str, Any],
    named: str | Path,
    weights: Path,
    num_heads: int | None = None,
    other: tuple[str, ...] = (),
) -> None:
    """Raise a UserError if a config does not describe weights.

    Args:
        config: of the file or preset `named`.
        held: the sizes that the weights have, by the names of settings.
        named: for the message.
        weights: their path.
        num_heads: what the command says; None: nothing.
        other: what else is wrong.
    """
    wrong = [
        f"{key} is {getattr(config, key)}, the weights have {held[key]}"
        for key in _SIZES
        if getattr(config, key) != held[key]
    ]
    wrong += other
    if num_heads not in (None, config.num_heads):
        wrong.append(f"num_heads is {config.num_heads}, and --num_heads {num_heads}")
    if wrong:
        raise UserError(
            f"{weights}: the config {named} does not describe these weights: {'; '.join(wrong)}. Correct it, or put "
            "the right one there (convert_weight.py takes another with --config)."
        )


def checked_vocabulary(weights: Path, tokens: int, named: Path | None, padding: int = 0) -> Path | None:
    """The vocabulary of weights, if it is named or lies beside them.

    Args:
        weights: their path.
        tokens: the number of tokens that they have.
        named: a vocab.txt, or a folder that holds one; None: look beside the weights.
        padding: how many of the tokens the vocabulary may lack.

    Raises:
        UserError: it has another number of tokens than the weights.
    """
    file = named / VOCABULARY if named is not None and named.is_dir() else named
    file = file or file_beside(weights, VOCABULARY)
    if file is None:
        return None
    count = max(read_vocab(file).values()) + 1
    if not count <= tokens <= count + padding:
        way_out = "Name the vocabulary it was trained with: --vocab" if named else "Put its own beside it, or name it"
        raise UserError(
            f"{file}: has {count} tokens, and {weights} has {tokens}. {way_out}; with another one, ids "
            "would mean other tokens."
        )
    return file
