"""The token ids of a prompt: which special tokens go around its text."""

from collections.abc import Sequence
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.tokenizers.tokenizer import BaseTokenizer

PROMPT_SPECIAL_TOKENS = ("bos", "all", "none")


def checked_prompt_special_tokens(value: Any) -> str | None:
    """A value of `prompt_special_tokens` (`GPT2Section`), or None. Raises `UserError` for another."""
    if value is not None and value not in PROMPT_SPECIAL_TOKENS:
        allowed = ", ".join(map(repr, PROMPT_SPECIAL_TOKENS))
        raise UserError(f"prompt_special_tokens: must be one of {allowed}, or None for the default, not {shown(value)}")
    return value


def prompt_ids(
    tokenizer: BaseTokenizer, texts: Sequence[str], prompt_special_tokens: str | None = None
) -> list[list[int]]:
    """The ids of each text as a prompt.

    Args:
        tokenizer: the model's own.
        texts: the prompts.
        prompt_special_tokens: "bos": the beginning-of-text token and the text; "all": with the special tokens that the
            tokenizer puts around any text; "none": the text alone; None: as is usual for the tokenizer's kind.
    """
    wanted = prompt_special_tokens or tokenizer.prompt_special_tokens
    rows = tokenizer.encode_batch(texts, add_special_tokens=wanted == "all")
    return [[tokenizer.bos_token_id, *row] for row in rows] if wanted == "bos" else rows


def last_tokens(
    tokenizer: BaseTokenizer, rows: Sequence[Sequence[int]], prompt_special_tokens: str | None = None
) -> list[int]:
    """The last token of each prompt's text, which decides whether a space follows it. It is not a special token that
    `prompt_special_tokens` puts after the text, unless there is no text.

    Args:
        rows: of `prompt_ids`, none empty.
    """
    after = 0
    if (prompt_special_tokens or tokenizer.prompt_special_tokens) == "all":
        text = -1  # no token's id
        around = tokenizer.build_inputs_with_special_tokens([text])
        after = len(around) - 1 - around.index(text)
    return [row[max(len(row) - 1 - after, 0)] for row in rows]
