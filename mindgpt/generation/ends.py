"""The token that ends a text, as the tokenizer knows it."""

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.generation.settings import GenerationSettings
from mindgpt.tokenizers.tokenizer import BaseTokenizer


def with_ends(settings: GenerationSettings, tokenizer: BaseTokenizer) -> GenerationSettings:
    """The settings with the id of an `end_token` that is a text; without an `end_token`, with all ids at which the
    tokenizer's texts end for an `eos_token_id` of None, or of the tokenizer's end-of-text token alone.

    Raises:
        UserError: the text of `end_token` is not one token.
    """
    if isinstance(settings.end_token, str):
        return settings.changed(end_token=_id_of_text(settings.end_token, tokenizer))
    if settings.end_token is not None or settings.eos_token_ids not in ((), (tokenizer.eos_token_id,)):
        return settings
    ends = tokenizer.text_end_ids
    return settings.changed(eos_token_id=ends[0] if len(ends) == 1 else ends)


def _id_of_text(text: str, tokenizer: BaseTokenizer) -> int:
    """The id of a token by its text, or of a special token by its name."""
    named = tokenizer.convert_tokens_to_ids(text)
    if text in tokenizer.all_special_tokens:
        return named
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 and tokenizer.decode([named]) == text != tokenizer.unk_token:
        return named  # SentencePiece puts a space before a text
    pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids))) or "none"
    if len(ids) != 1:
        raise UserError(
            f"generation: end_token: {shown(text)} must be one token; the tokenizer makes {len(ids)} of it: {pieces}. "
            "Give a text that is one token, or the id of one."
        )
    if ids[0] == tokenizer.unk_token_id:
        raise UserError(
            f"generation: end_token: the vocabulary does not know {shown(text)}, which becomes {pieces}. Give a token "
            "of the vocabulary, or its id."
        )
    return ids[0]
