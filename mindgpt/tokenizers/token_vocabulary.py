"""The tokens of a byte-level BPE tokenizer: names, ids and bytes, and which of them are special."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.byte_level_bpe import BYTE_SYMBOLS, SPECIAL_TOKEN_NAMES
from mindgpt.tokenizers.special_tokens import resolve_special_tokens

_BYTE_OF = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


class TokenVocabulary:
    """Tokens and their ids. A token is spelled in byte symbols (`Ġworld` for " world"), an added one as it is.

    Args:
        backend: a byte-level BPE `tokenizers.Tokenizer`.
        named: special tokens by role (`SPECIAL_TOKEN_NAMES`); those that are not named are the vocabulary's own (see
            `resolve_special_tokens`). What the vocabulary lacks gets the ids after the last.

    Attributes:
        bos_token, eos_token, unk_token: special tokens by name.
        pad_token: None pads with `eos_token`; the attention mask tells padding from text.
        new_tokens: the special tokens that the vocabulary lacked.
    """

    def __init__(self, backend: Tokenizer, named: dict[str, str | None]):
        self._backend = backend
        vocabulary = backend.get_vocab(with_added_tokens=True)
        special = resolve_special_tokens(vocabulary, named)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = (special[role] for role in SPECIAL_TOKEN_NAMES)
        tokens = dict.fromkeys(token for token in special.values() if token is not None)
        self.new_tokens = [token for token in tokens if token not in vocabulary]
        self._add(tokens, special=True)

    def _add(self, tokens: Sequence[str | AddedToken], special: bool) -> int:
        """Make these tokens of their own, which texts are split at; returns how many the vocabulary lacked."""
        before = len(self._backend.get_vocab(with_added_tokens=True))
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        added = [token if isinstance(token, AddedToken) else AddedToken(token, special=special) for token in tokens]
        added = [token for token in added if token.content not in known]
        (self._backend.add_special_tokens if special else self._backend.add_tokens)(added)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._vocab_size = max(vocabulary.values()) + 1
        return len(vocabulary) - before

    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Add tokens, which get the ids after the last; returns how many were new."""
        return self._add([tokens] if isinstance(tokens, str) else tokens, special_tokens)

    def add_special_tokens(self, tokens: dict[str, Any]) -> int:
        """Name special tokens by role, or as a list under `additional_special_tokens`; returns how many were new.

        Raises:
            UserError: an unknown role.
        """
        unknown = [role for role in tokens if role not in (*SPECIAL_TOKEN_NAMES, "additional_special_tokens")]
        if unknown:
            raise UserError(f"add_special_tokens: no role {unknown[0]!r}; there are {', '.join(SPECIAL_TOKEN_NAMES)}.")
        named = {role: str(token) for role, token in tokens.items() if role in SPECIAL_TOKEN_NAMES}
        for role, token in named.items():
            setattr(self, role, token)
        return self._add([*named.values(), *tokens.get("additional_special_tokens", [])], special=True)

    # ---- sizes and special tokens --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows that an embedding table needs: the highest id + 1, added tokens included."""
        return self._vocab_size

    @property
    def vocab_size(self) -> int:
        """As `len`: the highest id + 1, added tokens included."""
        return self._vocab_size

    @property
    def text_vocab_size(self) -> int:
        """Rows that an embedding table needs for text: `vocab_size` without padding and unknown tokens behind the last
        other one, which no text becomes unless it spells their names.
        """
        unused = {self.pad_token, self.unk_token} - {self.bos_token, self.eos_token}
        size = self._vocab_size
        while size and self._backend.id_to_token(size - 1) in unused:
            size -= 1
        return size

    @property
    def bos_token_id(self) -> int:
        return self._backend.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        return self._backend.token_to_id(self.eos_token)

    @property
    def unk_token_id(self) -> int:
        return self._backend.token_to_id(self.unk_token)

    @property
    def pad_token_id(self) -> int:
        """Id that fills padded places; `eos_token_id` where no `pad_token` was named."""
        return self.eos_token_id if self.pad_token is None else self._backend.token_to_id(self.pad_token)

    @pad_token_id.setter
    def pad_token_id(self, token_id: int) -> None:
        self.pad_token = self.convert_ids_to_tokens(token_id)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role."""
        return {role: token for role in SPECIAL_TOKEN_NAMES if (token := getattr(self, role)) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once: those with a role first."""
        added = self._backend.get_added_tokens_decoder()
        others = [token.content for _, token in sorted(added.items()) if token.special]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *others]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._backend.token_to_id(token) for token in self.all_special_tokens]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, in order of ids."""
        return dict(sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))

    def vocab_hash(self) -> str:
        """SHA-256 of the tokens and their ids: equal hashes mean that ids are interchangeable."""
        return hashlib.sha256(json.dumps(self.get_vocab()).encode()).hexdigest()

    # ---- tokens, ids, bytes --------------------------------------------------------------------------------------

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or of each token of a list; that of `unk_token` for what is no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """The token of an id, or of each id of a list, array or tensor; None for what is no id of the vocabulary."""
        ids = ids.asnumpy() if hasattr(ids, "asnumpy") else ids
        if np.ndim(ids) == 0:
            return self._backend.id_to_token(int(ids)) if int(ids) >= 0 else None
        left_out = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(number) for number in map(int, ids) if number not in left_out]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens spell; bytes that are no valid UTF-8 become U+FFFD."""
        return b"".join(map(_bytes_of, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the UTF-8 bytes of a text, as `decode` puts them together: maybe half a character.

        Nothing for ids outside the vocabulary.
        """
        token = self._backend.id_to_token(int(token_id))
        return b"" if token is None else _bytes_of(token)


def _bytes_of(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[symbol] for symbol in token])
    except KeyError:  # an added token, spelled as it is
        return token.encode()
