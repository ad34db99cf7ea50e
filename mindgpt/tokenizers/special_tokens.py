"""Which tokens of a vocabulary begin, end and pad texts, where nobody says so."""

from collections.abc import Container

END_OF_TEXT = "<|endoftext|>"

# What other makers call them, the likeliest first.
_ENDS = ("</s>", "<eos>", "<EOS>", "[EOS]", "<|end_of_text|>", "<|eos|>", "<|eot|>", "<|im_end|>", "[SEP]", "<sep>")
_BEGINNINGS = ("<s>", "<bos>", "<BOS>", "[BOS]", "<|begin_of_text|>", "<|bos|>", "<|startoftext|>", "[CLS]", "<cls>")
_UNKNOWN = ("<unk>", "<UNK>", "[UNK]", "<|unk|>")


def resolve_special_tokens(vocabulary: Container[str], named: dict[str, str | None]) -> dict[str, str | None]:
    """The token of each role of `SPECIAL_TOKEN_NAMES`: the one named, or else the vocabulary's own.

    GPT-2's `<|endoftext|>` has all roles if the vocabulary holds it; otherwise a token known for a role, such as
    `</s>`. A beginning and an unknown token that are not known are the end. `<|endoftext|>` is taken although the
    vocabulary lacks it only if no end is known. `pad_token` stays None unless it is named.

    Args:
        vocabulary: all tokens of the tokenizer.
        named: a token by role; None or no entry: not named.
    """
    own = END_OF_TEXT in vocabulary

    def known(names: tuple[str, ...], otherwise: str) -> str:
        return next((name for name in (END_OF_TEXT,) * own + names if name in vocabulary), otherwise)

    end = named.get("eos_token") or known(_ENDS, END_OF_TEXT)
    return {
        "bos_token": named.get("bos_token") or known(_BEGINNINGS, end),
        "eos_token": end,
        "unk_token": named.get("unk_token") or known(_UNKNOWN, end),
        "pad_token": named.get("pad_token"),
    }
