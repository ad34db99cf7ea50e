"""The special tokens of a vocabulary: which token begins, ends and pads texts."""

from collections.abc import Container
from typing import NamedTuple

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
END_OF_TEXT = "<|endoftext|>"

# Names in other vocabularies, the most likely first.
_ENDS = ("</s>", "<eos>", "<EOS>", "[EOS]", "<|end_of_text|>", "<|eos|>", "<|eot|>", "<|im_end|>", "[SEP]", "<sep>")
_BEGINNINGS = ("<s>", "<bos>", "<BOS>", "[BOS]", "<|begin_of_text|>", "<|bos|>", "<|startoftext|>", "[CLS]", "<cls>")
_UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "<|unk|>")


class SpecialTokens(NamedTuple):
    """The token of each role of `SPECIAL_TOKEN_NAMES`; a `pad_token` of None: padding is the end-of-text token."""

    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str | None


def resolve_special_tokens(vocabulary: Container[str], named: dict[str, str | None]) -> SpecialTokens:
    """The token of each role of `SPECIAL_TOKEN_NAMES`: the named one, or else the vocabulary's own.

    If the vocabulary holds GPT-2's `<|endoftext|>`, that has all roles; otherwise a well-known token of the role, such
    as `</s>`. Without a well-known beginning or unknown token, the end takes its role. `<|endoftext|>` is used although
    the vocabulary lacks it only if there is no well-known end. `pad_token` is None unless it is named.

    Args:
        vocabulary: all tokens of the tokenizer.
        named: role -> token; None or no entry: not named.
    """
    own = END_OF_TEXT in vocabulary

    def known(names: tuple[str, ...], otherwise: str) -> str:
        return next((name for name in (END_OF_TEXT,) * own + names if name in vocabulary), otherwise)

    end = named.get("eos_token") or known(_ENDS, END_OF_TEXT)
    return SpecialTokens(
        bos_token=named.get("bos_token") or known(_BEGINNINGS, end),
        eos_token=end,
        unk_token=named.get("unk_token") or known(_UNKNOWN, end),
        pad_token=named.get("pad_token"),
    )
