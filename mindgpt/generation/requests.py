"""What is asked of the engine: prompts, how long each text may become, and the random stream of each."""

from collections.abc import Sequence

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.generation.settings import GenerationSettings


def checked_prompts(input_ids: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """The prompts as lists of ints. Raises `UserError` for one that is empty or holds what is no token id."""
    prompts = []
    for row, prompt in enumerate(input_ids):
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise UserError(f"Prompt {row} is empty: there is no token to continue. Give at least one.")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"Prompt {row} must be a row of token ids; it has shape {ids.shape} and dtype {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise UserError(
                f"Prompt {row} holds the id {wrong}, outside the model's vocabulary of {vocab_size}. Does the "
                "tokenizer belong to this model?"
            )
        prompts.append(ids.tolist())
    if not prompts:
        raise UserError("There are no prompts to continue.")
    return prompts


def length_limits(
    prompts: list[list[int]], settings: GenerationSettings, context_length: int, names: Sequence[str] | None = None
) -> list[int]:
    """How many tokens each row may have in all, its prompt included. Raises `UserError` where that leaves no room for a
    new one, and there calls the prompts by `names`, or "Prompt 0", "Prompt 1"...
    """
    names = names or [f"Prompt {row}" for row in range(len(prompts))]
    slides = settings.context_overflow == "slide"
    limits = []
    for name, prompt in zip(names, prompts, strict=True):
        tokens = len(prompt)
        if tokens >= context_length and not slides:
            raise UserError(
                f"{name} has {tokens} tokens and fills the context length of {context_length} "
                f"(max_position_embeddings): there is no room for a new one. Shorten it to {context_length - 1} or "
                "fewer, or set context_overflow to slide."
            )
        if settings.max_new_tokens is not None:
            limit = tokens + settings.max_new_tokens
        elif settings.max_length is not None:
            limit = settings.max_length + (tokens if settings.end_token is not None else 0)
        elif slides:
            raise UserError("generation: context_overflow: with slide no text ends by itself; set max_new_tokens too")
        else:
            limit = context_length
        if tokens >= limit:
            raise UserError(
                f"{name} has {tokens} tokens, and max_length, {limit}, counts them: there is no room for a new one. "
                "Raise it, or set max_new_tokens, which counts new tokens only."
            )
        limits.append(limit if slides else min(limit, context_length))
    return limits


def random_streams(
    seed: int | None, row_numbers: Sequence[int] | None, prompts: int, copies: int
) -> list[np.random.Generator]:
    """One stream for each row, which depends on the seed, its prompt's number and its number among the copies alone.

    The first of several texts is the one that would be sampled alone.
    """
    if seed is None:
        return [np.random.default_rng() for _ in range(prompts * copies)]
    numbers = range(prompts) if row_numbers is None else row_numbers
    names = zip(numbers, range(prompts), strict=True)
    return [np.random.default_rng([seed, number, copy]) for number, _ in names for copy in range(copies)]
