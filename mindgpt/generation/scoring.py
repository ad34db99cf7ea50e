"""How likely given texts are, token by token."""

from collections.abc import Sequence

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.generation.engine import generator_of
from mindgpt.generation.inference_graphs import SCORED, InferenceGraphs, Texts
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


def score_continuations(
    model: GPT2LMHeadModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """log P(token | the tokens before it) of every token of a continuation, and whether it is the likeliest one.

    Texts are read together as far as one context has room for them; texts that differ in their last token alone are
    read once.

    Args:
        model: the language model.
        pairs: contexts and their continuations, none empty, together at most `max_position_embeddings` + 1 tokens.

    Returns:
        For each pair: (tokens of the continuation,) float64, natural logarithms; and as many bools.

    Raises:
        UserError: as `score`.
    """
    generator = generator_of(model)
    contexts = checked_prompts([context for context, _ in pairs], model.config.vocab_size)
    continuations = checked_prompts([continuation for _, continuation in pairs], model.config.vocab_size)
    rows = [tuple(context + ids[:-1]) for context, ids in zip(contexts, continuations, strict=True)]
    context_length = model.config.max_position_embeddings
    for number, row in enumerate(rows):
        if len(row) > context_length:
            raise UserError(f"Text {number} has {len(row) + 1} tokens; {context_length + 1} can be scored. Shorten it.")
    texts = list(dict.fromkeys(rows))
    wanted: dict[tuple[int, ...], list[int]] = {text: [] for text in texts}
    for number, row in enumerate(rows):
        wanted[row].append(number)
    scores: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with generator.running(), generator.reserved():
        for pack in generator.graphs.packs(texts):
            together = texts[pack]
            starts = np.cumsum([0, *map(len, together)])
            numbers = [number for text in together for number in wanted[text]]
            begins = {number: start for text, start in zip(together, starts, strict=False) for number in wanted[text]}
            positions = [len(contexts[number]) - 1 + np.arange(len(continuations[number])) for number in numbers]
            slots = [begins[number] + places for number, places in zip(numbers, positions, strict=True)]
            targets = [token for number in numbers for token in continuations[number]]
            found = _score_slots(generator.graphs, together, *map(np.concatenate, (slots, positions)), targets)
            ends = np.cumsum([len(continuations[number]) for number in numbers])[:-1]
            scores.update(zip(numbers, zip(*(np.split(values, ends) for values in found), strict=True), strict=True))
    if not all(np.isfinite(values).all() for values, _ in scores.values()):
        generator.graphs.clear()
        raise UserError("The log-probabilities are not numbers (NaN or infinity): the model's weights are broken.")
    return [scores[number] for number in range(len(pairs))]


def _score_slots(
    graphs: InferenceGraphs, texts: Texts, slots: np.ndarray, positions: np.ndarray, targets: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """log P of the tokens that follow some tokens of texts, which fit into one context, and whether each is likeliest.

    Args:
        slots, positions: (n,), the place of each of these tokens among all texts, and in its own text.
        targets: n ids, what follows each.
    """
    log_probs, likeliest = np.empty(len(slots)), np.empty(len(slots), bool)
    for inputs, first in graphs.chunks(texts):
        hidden = graphs.prefill_cell(*inputs)
        here = np.flatnonzero((slots >= first) & (slots < first + len(hidden)))
        for begin in range(0, len(here), SCORED):
            some = here[begin : begin + SCORED]
            logits = np.stack(graphs.last_logits(hidden, slots[some] - first, positions[some])).astype(np.float64)
            follows = np.asarray(targets)[some]
            logits -= logits.max(axis=-1, keepdims=True)
            at_targets = logits[np.arange(len(some)), follows]
            log_probs[some] = at_targets - np.log(np.exp(logits).sum(axis=-1))
            likeliest[some] = logits.argmax(axis=-1) == follows
    return log_probs, likeliest
