"""The padding of a vocabulary (`unpadded_vocab_size`) in the weights of a run."""

from dataclasses import replace

from mindgpt.checkpoints.padded_vocabulary import TOKENS, VocabularyRows
from mindgpt.checkpoints.weights import Weights
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.runtime.ranks import say


def fit_vocabulary(config: RunConfig, weights: Weights | None) -> tuple[RunConfig, Weights | None]:
    """Let weights have the rows of `model.model_config`: a training has the padding, evaluation and prediction do not,
    since no text needs it. Weights whose config tells of padding tell it to a YAML that does not.

    Args:
        config: of the run.
        weights: what it starts from, with padding or without; None: nothing.

    Returns:
        The configuration of the network to build, and the weights of that size. Both unchanged where there is no
        padding.

    Raises:
        UserError: the weights have another number of tokens.
    """
    network = config.model.config
    known = weights is not None and TOKENS in weights.source.entries
    held = weights.source.entries[TOKENS].shape[0] if known else None
    of_weights = weights.config.unpadded_vocab_size if known and weights.config is not None else None
    tokens = network.unpadded_vocab_size
    if tokens is None and of_weights is not None and network.vocab_size in (held, of_weights):
        tokens = of_weights
    if tokens is None:
        return config, weights
    if known and (held not in (tokens, network.vocab_size, of_weights and held) or of_weights not in (None, tokens)):
        has = f"{held} rows" + (f", of which {of_weights} are tokens" if of_weights else "")
        raise UserError(
            f"{weights.source.path}: its token table has {has}; model.model_config asks for vocab_size "
            f"{network.vocab_size}, of which unpadded_vocab_size {tokens} are tokens. Rows of padding are added to a "
            f"table of exactly {tokens}. Set unpadded_vocab_size to the tokens of these weights, or name other weights."
        )
    rows = network.vocab_size if config.trains else tokens
    padding = {"vocab_size": rows, "unpadded_vocab_size": tokens if tokens < rows else None}
    config = config.replaced({f"model.config.{key}": value for key, value in padding.items()})
    if not known or held == rows and of_weights == padding["unpadded_vocab_size"]:
        return config, weights
    if held != rows:
        how = (
            f"gets {rows - held} rows of padding, zeros" if rows > held else f"is read without {held - rows} of padding"
        )
        say(f"vocabulary: {tokens} tokens; the token table of {held} rows {how}")
    source = VocabularyRows(weights.source, rows)
    return config, replace(weights, source=source, config=weights.config and weights.config.replaced(padding))
