"""How likely given texts are, token by token."""

from collections.abc import Sequence

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.generation.engine import generator_of
from mindgpt.generation.requests import checked_prompts
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel


def score(model: GPT2LMHeadModel, input_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """log P(token | the tokens before it), natural logarithm, of every token but the first of each text.

    Args:
        model: the language model.
        input_ids: texts of any lengths, without padding, of at most `max_position_embeddings` + 1 tokens. They are read
            one at a time, so what a text gets does not depend on the others.

    Returns:
        One array for each text, (len(text) - 1,) float32; its sum is the text's log-probability given its first token.

    Raises:
        UserError: no texts, an empty or too long one, an id outside the vocabulary, or a result that is no number.
    """
    if isinstance(input_ids, Sequence) and any(isinstance(ids, (int, np.integer)) for ids in input_ids):
        raise UserError("score: takes a list of texts, each a list of token ids; put a single one in brackets: [ids]")
    generator = generator_of(model)
    texts = checked_prompts(input_ids, model.config.vocab_size)
    context_length = model.config.max_position_embeddings
    for number, text in enumerate(texts):
        if len(text) > context_length + 1:
            raise UserError(
                f"Text {number} has {len(text)} tokens; with a context length of {context_length} "
                f"(max_position_embeddings) {context_length + 1} can be scored. Split it."
            )
    with generator.running(), generator.reserved():
        scores = [generator.graphs.log_probs(text) for text in texts]
    if not all(np.isfinite(values).all() for values in scores):
        generator.graphs.clear()
        raise UserError("The log-probabilities are not numbers (NaN or infinity): the model's weights are broken.")
    return scores
