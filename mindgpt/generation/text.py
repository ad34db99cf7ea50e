"""Text in, text out: prompts through the tokenizer, in batches, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.generation.engine import Generator, length_limits
from mindgpt.generation.sampling import GenerationSettings
from mindgpt.models.gpt2.gpt2_tokenizer import GPT2Tokenizer


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with.

    `text` is the continuation alone; `token_ids` are its new tokens, with the end-of-text token if it was reached.
    `finish_reason` says which of the two ended it: "eos", or "length", a limit of the settings or the context window.
    """

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["eos", "length"]


def generate_text(
    generator: Generator,
    tokenizer: GPT2Tokenizer,
    prompts: Sequence[str],
    settings: GenerationSettings,
    batch_size: int = 8,
    numbers: Sequence[int] | None = None,
) -> list[Completion]:
    """Continue each prompt. Prompts of like length share a batch; neither that nor `batch_size` changes a text.

    Args:
        generator: holds the model.
        tokenizer: the model's own.
        prompts: texts of at least one token each.
        settings: how to choose tokens and when to stop. An `eos_token_id` of None is the tokenizer's.
        batch_size: prompts to run at once at most.
        numbers: with the seed they name each prompt's random stream; 0, 1, 2... if None.

    Returns:
        The completions, in the order of the prompts.

    Raises:
        UserError: the tokenizer has more tokens than the model, or a prompt is empty or leaves no room for a token;
            before anything is generated.
    """
    check_tokenizer_fits(tokenizer, generator.config.vocab_size)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size: must be a whole number, 1 or more, not {shown(batch_size)}")
    if isinstance(prompts, str):
        raise UserError("prompts: must be a list of texts; put a single one in brackets: [prompt]")
    if settings.eos_token_id is None:
        settings = settings.changed(eos_token_id=tokenizer.eos_token_id)
    encoded = tokenizer.encode_batch(prompts)
    for number, ids in enumerate(encoded):
        if not ids:
            raise UserError(
                f"Prompt {number} is empty: there is nothing to continue. {tokenizer.bos_token!r} starts a text."
            )
    length_limits(encoded, settings, generator.config.max_position_embeddings)
    streams = range(len(encoded)) if numbers is None else numbers
    by_length = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    new_ids: list[list[int]] = [[]] * len(encoded)
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        row_numbers = [streams[number] for number in batch]
        rows = generator.generate([encoded[number] for number in batch], settings, row_numbers=row_numbers)
        for number, row in zip(batch, rows, strict=True):
            new_ids[number] = row
    return [_completion(tokenizer, *pair, settings.eos_token_id) for pair in zip(prompts, new_ids, strict=True)]


def check_tokenizer_fits(tokenizer: GPT2Tokenizer, vocab_size: int) -> None:
    """Raise `UserError` if the tokenizer knows ids for which the model has no embedding."""
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, the model's vocab_size is {vocab_size}: they do not belong "
            "together. Use the tokenizer that the model was trained with."
        )


def _completion(tokenizer: GPT2Tokenizer, prompt: str, ids: list[int], eos: int) -> Completion:
    ended = ids[-1] == eos
    text = tokenizer.decode(ids[:-1] if ended else ids)
    return Completion(prompt, text, ids, "eos" if ended else "length")
