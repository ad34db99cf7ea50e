"""What all kinds of tokenizers have in common: batches, padding, truncation, special tokens."""

import abc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, overload

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.special_tokens import SPECIAL_TOKEN_NAMES, resolve_special_tokens
from mindgpt.tokenizers.text_decoder import TextDecoder
from mindgpt.tokenizers.token_batch import (
    PADDINGS,
    TENSORS,
    TRUNCATIONS,
    TokenBatch,
    as_tensor,
    pad_rows,
    truncate_pair,
)

Texts = str | Sequence[str]
SIDES = ("right", "left")


class BaseTokenizer(abc.ABC):
    """Text to token ids and back. A kind of tokenizer defines the abstract methods; all others follow from them.

    The attention mask is made from lengths, never by comparing ids with the end-of-text id, so padding with end-of-text
    (GPT-2 has no other token for it) hides no real end-of-text.

    Args:
        named: special tokens by role (`SPECIAL_TOKEN_NAMES`); for roles without a name see `resolve_special_tokens`.
            Tokens that the vocabulary lacks are added to it, with the next free ids.
        padding_side: "right" or "left", for calls that do not say.
        model_max_length: length that `truncation=True` truncates to, for calls without `max_length`.

    Attributes:
        kind: the kind of tokenizer, as messages call it.
        bos_token, eos_token, unk_token: special tokens by name.
        pad_token: None pads with `eos_token`.
        new_tokens: the special tokens that the vocabulary lacked.
    """

    kind = ""
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str | None

    def __init__(self, named: dict[str, str | None], padding_side: str, model_max_length: int | None):
        vocabulary = self.get_vocab()
        special = resolve_special_tokens(vocabulary, named)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = special
        tokens = list(dict.fromkeys(token for token in special if token is not None))
        self.new_tokens = [token for token in tokens if token not in vocabulary]
        self.add_tokens(tokens, special_tokens=True)
        self.padding_side = one_of("padding_side", padding_side, SIDES)
        self.model_max_length = model_max_length

    # ---- what a kind of tokenizer defines ------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "BaseTokenizer":
        """Open a tokenizer folder; `overrides` are arguments of the class that take precedence over its files."""

    @abc.abstractmethod
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files into `folder`, each whole or not at all."""

    @abc.abstractmethod
    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids of each text, truncated to `max_length` if given.

        Raises:
            UserError: a text is not a string of valid Unicode, or `max_length` leaves no room beside bos and eos.
        """

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of non-negative ids, token by token; those outside the vocabulary have none."""
        left_out = set(self.all_special_ids) if skip_special_tokens else ()
        kept = [number for number in ids if number not in left_out]
        texts = map(self.token_text, kept, [None, *kept])
        return b"".join(texts).decode("utf-8", "replace")

    @abc.abstractmethod
    def _with_special_tokens(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """(id, token type, 1 for a special token or 0) of one or two texts and the special tokens around them."""

    @abc.abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, in order of ids."""

    @abc.abstractmethod
    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Add tokens, with the next free ids; returns how many the vocabulary lacked."""

    @abc.abstractmethod
    def _id_of(self, token: str) -> int | None:
        """The id of a token, or None."""

    @abc.abstractmethod
    def _token_of(self, token_id: int) -> str | None:
        """The token of an id, or None."""

    def _id_of_special(self, token: str) -> int:
        """The id of a special token, which is in the vocabulary."""
        return cast(int, self._id_of(token))

    @abc.abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token by itself, possibly part of a character; b"" outside the vocabulary."""

    def token_text(self, token_id: int, previous: int | None) -> bytes:
        """The UTF-8 bytes that a token adds to a text after the token `previous`; None: it is the first.

        Joined over the ids of a text they are the text that `decode` returns, unless `writes_whole_texts`. Tokens of
        byte-level BPE hold their spaces, so there `previous` makes no difference.
        """
        return self.token_bytes(token_id)

    def text_decoder(self, previous: int | None = None) -> TextDecoder:
        """What turns the ids of one text into its bytes as they come; `previous` is the token before the first. Joined
        they are the text that `decode` returns, for every kind of tokenizer."""
        return TextDecoder(self.token_text, previous)

    @property
    def writes_whole_texts(self) -> bool:
        """Whether the text of a token may depend on more than the token before it: see `text_decoder`."""
        return False

    @property
    @abc.abstractmethod
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once, those with a role first."""

    @property
    @abc.abstractmethod
    def splits_at_spaces(self) -> bool:
        """Whether the ids stay the same if a text is split before a single space or line end between two other
        characters (`data.text.split_document`)."""

    # ---- encoding ------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        *,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] = False,
        max_length: int | None = None,
        padding_side: Literal["right", "left"] | None = None,
        add_special_tokens: bool = True,
        return_tensors: Literal["np", "ms", "pt"] | None = None,
        return_attention_mask: bool = True,
        return_token_type_ids: bool = False,
    ) -> TokenBatch:
        """Encode one text or several, or pairs of texts.

        Args:
            text: a text, or a list of texts.
            text_pair: likewise the second text of each, which follows the first.
            padding: False; True or "longest" (to the longest of the batch); "max_length".
            truncation: drop tokens beyond `max_length` at the end of a text. Of a pair, True drops from the longer text
                until both fit; "only_first" and "only_second" drop from one.
            max_length: tokens; needed for padding="max_length", and for truncation unless `model_max_length` is set.
            padding_side: where the padding goes; None: the tokenizer's `padding_side`.
            add_special_tokens: add the special tokens that the tokenizer puts around a text (none in GPT-2).
            return_tensors: None: lists; "np": int32 arrays; "ms": int32 MindSpore tensors; "pt": int64 PyTorch tensors;
                of shape (batch, length), also for a single text.
            return_attention_mask: return `attention_mask`: 1 at tokens of the text and 0 at padding.
            return_token_type_ids: return `token_type_ids`: 1 at tokens of the second text, 0 elsewhere.

        Returns:
            `input_ids` and the other columns, as keys and as attributes.

        Raises:
            UserError: a value is not allowed, a text is not valid Unicode, or rows of a tensor have unequal lengths.
        """
        single = isinstance(text, str)
        one_of("padding", padding, PADDINGS)
        one_of("truncation", truncation, TRUNCATIONS)
        one_of("return_tensors", return_tensors, TENSORS)
        padding, truncation = padding != "do_not_pad" and padding, truncation != "do_not_truncate" and truncation
        side = one_of("padding_side", padding_side or self.padding_side, SIDES)
        limit = self._limit(padding, truncation, max_length)
        texts, truncate_to = [text] if isinstance(text, str) else text, limit if truncation else None
        if text_pair is None:
            rows = self.encode_batch(texts, truncate_to, add_special_tokens)
            types = [[0] * len(row) for row in rows]
        else:
            pairs = [text_pair] if isinstance(text_pair, str) else text_pair
            rows, types = self._encode_pairs(texts, pairs, truncate_to, truncation, add_special_tokens)
        columns = {"input_ids": rows}
        if return_token_type_ids:
            columns["token_type_ids"] = types
        if return_attention_mask:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        if padding:
            longest = max(map(len, rows), default=0)
            width = limit if padding == "max_length" and limit is not None else longest
            fill = {"input_ids": self.pad_token_id}
            columns = {name: pad_rows(rows, width, fill.get(name, 0), side) for name, rows in columns.items()}
        if return_tensors is not None:
            return TokenBatch({name: as_tensor(rows, return_tensors) for name, rows in columns.items()})
        return TokenBatch({name: rows[0] if single else rows for name, rows in columns.items()})

    def _limit(self, padding: bool | str, truncation: bool | str, max_length: int | None) -> int | None:
        """The length for padding or truncation, checked."""
        limit = self.model_max_length if max_length is None else max_length
        if limit is None and (truncation or padding == "max_length"):
            raise UserError("truncation=True and padding='max_length' need max_length, a number of tokens.")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1):
            raise UserError(f"max_length is a whole number of tokens, at least 1; it is {limit!r}.")
        return limit

    def encode(
        self, text: str, text_pair: str | None = None, add_special_tokens: bool = True, **options: Any
    ) -> list[int] | Any:
        """The ids of one text, or of a pair; `options` are those of a call.

        Raises:
            UserError: `text` is not a string of valid Unicode.
        """
        if not isinstance(text, str):
            raise UserError(
                f"encode takes one text; use a call or encode_batch for several, not {type(text).__name__}."
            )
        if text_pair is None and not options:
            return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options).input_ids

    def _encode_pairs(
        self, texts: Sequence[str], pairs: Sequence[str], max_length: int | None, truncation: Any, special: bool
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The ids and the token types of pairs."""
        if len(texts) != len(pairs):
            raise UserError(f"text and text_pair belong together: there are {len(texts)} and {len(pairs)}.")
        firsts, seconds = (self.encode_batch(part, add_special_tokens=False) for part in (texts, pairs))
        added = self.num_special_tokens_to_add(pair=True) if special else 0
        rows, types = [], []
        for first, second in zip(firsts, seconds, strict=True):
            if max_length is not None:
                first, second = truncate_pair(first, second, max_length - added, truncation)
            bare = [0] * len(first) + [1] * len(second)
            rows.append(self.build_inputs_with_special_tokens(first, second) if special else first + second)
            types.append(self.create_token_type_ids_from_sequences(first, second) if special else bare)
        return rows, types

    # ---- special tokens around a text ----------------------------------------------------------------------------

    @property
    def prompt_special_tokens(self) -> Literal["bos", "all", "none"]:
        """What usually goes around a prompt: "all", as around any text, "bos" or "none"."""
        return "all"

    @property
    def document_start(self) -> list[int]:
        """The ids before every document and prompt, as a model of this kind has learned it: `[CLS]` of WordPiece, none
        of GPT-2."""
        return []

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a call puts around a text, or around two."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of a text, or of two, with the special tokens that a call puts around them."""
        return [token for token, _, _ in self._with_special_tokens(token_ids_0, token_ids_1)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The token type of each id of `build_inputs_with_special_tokens`: 0 for the first text, 1 for the second."""
        return [kind for _, kind, _ in self._with_special_tokens(token_ids_0, token_ids_1)]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """For each id of `build_inputs_with_special_tokens`: 1 for a special token, else 0.

        Args:
            already_has_special_tokens: `token_ids_0` contains them already, and every special token in it counts.
        """
        if not already_has_special_tokens:
            return [special for _, _, special in self._with_special_tokens(token_ids_0, token_ids_1)]
        if token_ids_1 is not None:
            raise UserError("get_special_tokens_mask: ids that have their special tokens are one list, token_ids_0.")
        known = set(self.all_special_ids)
        return [int(token in known) for token in token_ids_0]

    # ---- decoding ------------------------------------------------------------------------------------------------

    def decode(self, ids: Any, skip_special_tokens: bool = False, *, spaced: bool = False) -> str:
        """The text of token ids: a list, a 1-D array or tensor, or one id.

        Bytes that are not valid UTF-8 (part of a character) become U+FFFD. Ids outside the vocabulary, which a model
        with a padded embedding table can produce, are skipped.

        Args:
            skip_special_tokens: leave out special tokens.
            spaced: the text that transformers gives for tokens that hold no spaces: one between any two words, of
                Chinese too. Of no effect for byte-level BPE, whose tokens hold their spaces.

        Raises:
            UserError: `ids` is not a row of non-negative whole numbers.
        """
        array = np.atleast_1d(np.asarray(ids.asnumpy() if hasattr(ids, "asnumpy") else ids))
        if array.size == 0:
            return ""
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
            raise UserError(
                f"decode takes one row of token ids (whole numbers from 0); got shape {array.shape}, {array.dtype}. "
                "Use batch_decode for several rows."
            )
        decode = self._decode_spaced if spaced else self._decode
        return decode(array.tolist(), skip_special_tokens)

    def _decode_spaced(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids as transformers gives it; the same, for most kinds."""
        return self._decode(ids, skip_special_tokens)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False, *, spaced: bool = False) -> list[str]:
        """`decode` for each row of a list of rows or of a 2-D array or tensor."""
        rows = rows.asnumpy() if hasattr(rows, "asnumpy") else rows
        return [self.decode(row, skip_special_tokens, spaced=spaced) for row in rows]

    # ---- vocabulary and special tokens ---------------------------------------------------------------------------

    def __str__(self) -> str:
        """The tokenizer in a few words, for programs to print: its kind and size."""
        return f"{self.kind}, {len(self)} tokens"

    def __len__(self) -> int:
        """Rows that an embedding table needs: the highest id + 1, added tokens included."""
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """As `len`: the highest id + 1, added tokens included."""
        return max(self.get_vocab().values()) + 1

    @property
    def text_vocab_size(self) -> int:
        """Rows that an embedding table needs for text: `vocab_size` without padding and unknown tokens at the end,
        which no text is encoded to unless it contains their names.
        """
        unused = {self.pad_token, self.unk_token} - {self.bos_token, self.eos_token}
        size = self.vocab_size
        while size and self._token_of(size - 1) in unused:
            size -= 1
        return size

    @property
    def bos_token_id(self) -> int:
        return self._id_of_special(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        return self._id_of_special(self.eos_token)

    @property
    def text_end_ids(self) -> tuple[int, ...]:
        """The ids of the tokens at which a generated text ends, the end-of-text token first."""
        return (self.eos_token_id,)

    @property
    def unk_token_id(self) -> int:
        return self._id_of_special(self.unk_token)

    @property
    def pad_token_id(self) -> int:
        """The id that pads; `eos_token_id` if no `pad_token` was named."""
        return self.eos_token_id if self.pad_token is None else self._id_of_special(self.pad_token)

    @pad_token_id.setter
    def pad_token_id(self, token_id: int) -> None:
        self.pad_token = self.convert_ids_to_tokens(token_id)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role."""
        return {role: token for role in SPECIAL_TOKEN_NAMES if (token := getattr(self, role)) is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self._id_of_special(token) for token in self.all_special_tokens]

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
        return self.add_tokens([*named.values(), *tokens.get("additional_special_tokens", [])], special_tokens=True)

    def vocab_hash(self) -> str:
        """SHA-256 of the tokens and their ids: equal hashes mean that ids are interchangeable."""
        return hashlib.sha256(json.dumps(self.get_vocab()).encode()).hexdigest()

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as the vocabulary spells them; those of `pair` follow.

        Raises:
            UserError: `text` is not a string of valid Unicode.
        """
        tokens = self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens))
        return [token for token in tokens if token is not None]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or of each token of a list; `unk_token_id` for an unknown one."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._id_of(tokens)
        return self.unk_token_id if found is None else found

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...

    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str | None]: ...

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | None | list[str | None]:
        """The token of an id, or of each id of a list, array or tensor; None for an id outside the vocabulary."""
        numbers: Any = ids.asnumpy() if hasattr(ids, "asnumpy") else ids
        if np.ndim(numbers) == 0:
            return self._token_of(int(numbers)) if int(numbers) >= 0 else None
        left_out = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(number) for number in map(int, numbers) if number not in left_out]


def one_of(name: str, value: Any, allowed: tuple) -> Any:
    """`value`, if it is one of the allowed ones (True is not 1 here); a UserError that lists them if not."""
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}.")
    return value
