"""GPT-2's byte-level BPE tokenizer: files, batches, decoding and training, on Hugging Face's Rust `tokenizers`.

The merging itself is the library's; this class reads and writes the files that GPT-2 tokenizers come in, and pads,
truncates and masks. The attention mask is made from lengths, never by comparing ids with the end-of-text id, so padding
with end-of-text (GPT-2 has no other token for it) hides no real end-of-text.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.data.byte_bpe import BYTE_SYMBOLS, SPECIAL_TOKEN_NAMES, byte_level, one_of, read_tokenizer
from mindgpt.data.files import atomic_write, make_folder, read_lines

END_OF_TEXT = "<|endoftext|>"
_BYTE_OF = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


class GPT2Tokenizer:
    """Text to token ids and back, with the ids of Hugging Face's `GPT2Tokenizer`.

    Text that contains the name of a special token, such as `<|endoftext|>`, gets that token's id there.

    Args:
        backend: a byte-level BPE `tokenizers.Tokenizer`; use `from_pretrained` or `train` to get one.
        bos_token, eos_token, unk_token: special tokens by name; new ones get the ids after the last.
        pad_token: None pads with the id of `eos_token`; the attention mask tells padding from text.
        add_bos_token, add_eos_token: put these round every text that is encoded with `add_special_tokens`.
        padding_side: "right" or "left", where a call does not say.
        model_max_length: length that `truncation=True` cuts to where a call gives no `max_length`.

    Raises:
        UserError: `padding_side` is neither of the two.
    """

    FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")  # what `save_pretrained` writes

    def __init__(
        self,
        backend: Tokenizer,
        *,
        bos_token: str = END_OF_TEXT,
        eos_token: str = END_OF_TEXT,
        unk_token: str = END_OF_TEXT,
        pad_token: str | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        padding_side: Literal["right", "left"] = "right",
        model_max_length: int | None = None,
    ):
        self._backend = backend
        backend.no_padding()
        backend.no_truncation()
        self.bos_token, self.eos_token, self.unk_token = bos_token, eos_token, unk_token
        self.pad_token = pad_token
        named = dict.fromkeys(token for token in (bos_token, eos_token, unk_token, pad_token) if token is not None)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([AddedToken(token, special=True) for token in named if token not in known])
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        if add_bos_token or add_eos_token:
            backend.post_processor = self._frame()
        self.padding_side = one_of("padding_side", padding_side, ("right", "left"))
        self.model_max_length = model_max_length
        self._vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def _frame(self) -> processors.TemplateProcessing:
        """The post-processor that puts bos before and eos behind a text."""
        names = [self.bos_token] * self.add_bos_token + ["$A"] + [self.eos_token] * self.add_eos_token
        used = dict.fromkeys(name for name in names if name != "$A")
        # TemplateProcessing takes a list of pieces, in which a special token is one that `special_tokens` names.
        return processors.TemplateProcessing(
            single=names, special_tokens=[(name, self._backend.token_to_id(name)) for name in used]
        )

    # ---- what it knows -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows that an embedding table needs: the highest id + 1, added tokens included."""
        return self._vocab_size

    @property
    def vocab_size(self) -> int:
        """As `len`: the highest id + 1, added tokens included."""
        return self._vocab_size

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

    @property
    def splits_at_spaces(self) -> bool:
        """Whether text may be cut before a single space or line end between two other characters (`data.text.cut`).

        So it is for GPT-2's way to cut text into words, unless an added token reaches over spaces.
        """
        words = self._backend.pre_tokenizer
        added = self._backend.get_added_tokens_decoder().values()
        return (
            isinstance(words, pre_tokenizers.ByteLevel)
            and words.use_regex
            and not words.add_prefix_space
            and self._backend.normalizer is None
            and not any(t.lstrip or t.rstrip or t.single_word or any(map(str.isspace, t.content)) for t in added)
        )

    def get_vocab(self) -> dict[str, int]:
        """Every token, in its byte-symbol spelling, with its id, in order of ids."""
        return dict(sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))

    def vocab_hash(self) -> str:
        """SHA-256 of the tokens and their ids: equal hashes mean that ids are interchangeable."""
        return hashlib.sha256(json.dumps(self.get_vocab()).encode()).hexdigest()

    # ---- encoding ------------------------------------------------------------------------------------------------

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        padding: bool | Literal["longest", "max_length"] = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: Literal["right", "left"] | None = None,
        add_special_tokens: bool = True,
        return_tensors: Literal["np", "ms"] | None = None,
    ) -> dict[str, Any]:
        """Encode one text or several.

        Args:
            texts: a text, or a list of texts.
            padding: False; True or "longest" (to the longest of the batch); "max_length".
            truncation: cut what is longer than `max_length` (at the end of the text).
            max_length: tokens; needed for padding="max_length", and for truncation unless `model_max_length` is set.
            padding_side: where the padding goes; the tokenizer's own `padding_side` if None.
            add_special_tokens: obey `add_bos_token` and `add_eos_token` (both off in GPT-2).
            return_tensors: None gives lists; "np" int32 arrays and "ms" int32 tensors of shape (batch, length), also
                for a single text.

        Returns:
            {"input_ids": ..., "attention_mask": ...}; the mask is 1 at tokens of the text and 0 at padding.

        Raises:
            UserError: a value that is not allowed, a text that is no valid Unicode, or tensors of unequal lengths.
        """
        single = isinstance(texts, str)
        one_of("padding", padding, (False, True, "longest", "max_length"))
        one_of("return_tensors", return_tensors, (None, "np", "ms"))
        side = one_of("padding_side", padding_side or self.padding_side, ("right", "left"))
        limit = self._limit(padding, truncation, max_length)
        rows = self.encode_batch([texts] if single else texts, limit if truncation else None, add_special_tokens)
        masks = [[1] * len(row) for row in rows]
        if padding:
            width = limit if padding == "max_length" else max(map(len, rows), default=0)
            rows = [_pad(row, width, self.pad_token_id, side) for row in rows]
            masks = [_pad(mask, width, 0, side) for mask in masks]
        if return_tensors is not None:
            return {"input_ids": _tensor(rows, return_tensors), "attention_mask": _tensor(masks, return_tensors)}
        return {"input_ids": rows[0] if single else rows, "attention_mask": masks[0] if single else masks}

    def _limit(self, padding: bool | str, truncation: bool, max_length: int | None) -> int | None:
        """The length that padding or truncation goes to."""
        limit = self.model_max_length if max_length is None else max_length
        if limit is None and (truncation or padding == "max_length"):
            raise UserError("truncation=True and padding='max_length' need max_length, a number of tokens.")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1):
            raise UserError(f"max_length is a whole number of tokens, at least 1; it is {limit!r}.")
        return limit

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of one text.

        Raises:
            UserError: `text` is not a string of valid Unicode.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids of each text, cut to `max_length` if given; the batch is shared out over the cores in Rust.

        Raises:
            UserError: a text is not a string of valid Unicode, or `max_length` leaves no room beside bos and eos.
        """
        texts = _checked_texts(texts)
        if max_length is None:
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        room = max_length - (self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
        if room < 0:
            raise UserError(f"max_length {max_length} is too short for the bos and eos tokens this tokenizer adds.")
        for encoding in encodings:
            encoding.truncate(room)
        return [self._backend.post_process(e, add_special_tokens=add_special_tokens).ids for e in encodings]

    # ---- decoding ------------------------------------------------------------------------------------------------

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of token ids: a list, a 1-D array or tensor, or one id.

        Bytes that are no valid UTF-8 (a character cut in the middle) become U+FFFD. Ids outside the vocabulary, which a
        model with a padded embedding table can produce, have no text and give none.

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
        return self._backend.decode(array.tolist(), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False) -> list[str]:
        """`decode` for each row of a list of rows or of a 2-D array or tensor."""
        rows = rows.asnumpy() if hasattr(rows, "asnumpy") else rows
        return [self.decode(row, skip_special_tokens) for row in rows]

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the UTF-8 bytes of a text, as `decode` puts them together: maybe half a character.

        None for ids outside the vocabulary.
        """
        token = self._backend.id_to_token(int(token_id))
        if token is None:
            return b""
        try:
            return bytes([_BYTE_OF[symbol] for symbol in token])
        except KeyError:  # an added token, spelled as it is
            return token.encode()

    # ---- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "GPT2Tokenizer":
        """Open a folder with tokenizer.json, or with vocab.json and merges.txt.

        tokenizer.json wins where both are there, as in transformers. Special tokens and settings are taken from
        tokenizer_config.json, special_tokens_map.json and added_tokens.json if present; nothing in them is executed.

        Args:
            path: the folder, or a file in it. A bare model name is no path: nothing is downloaded.
            overrides: keyword arguments of the class that take precedence over the files.

        Raises:
            UserError: a file is missing or broken, or vocabulary and merges do not belong together.
        """
        backend, settings = read_tokenizer(expanded_path(path))
        return cls(backend, **{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json; transformers opens the folder too.

        Each file is replaced whole; tokenizer.json alone holds a complete tokenizer and is read first, so a folder
        whose rewriting was interrupted holds the old tokenizer or the new one.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = expanded_path(folder)
        make_folder(folder)
        model = json.loads(self._backend.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": _add_prefix_space(self._backend),
            **{name: getattr(self, name) for name in SPECIAL_TOKEN_NAMES},
        }
        if not (
            self.add_bos_token or self.add_eos_token
        ):  # their mere presence makes transformers drop a post-processor
            del config["add_bos_token"], config["add_eos_token"]
        texts = (
            self._backend.to_str(pretty=True),
            json.dumps({name: value for name, value in config.items() if value is not None}, indent=2) + "\n",
            json.dumps(self.get_vocab(), ensure_ascii=False) + "\n",
            "\n".join(["#version: 0.2", *merges]) + "\n",
        )
        for name, text in zip(self.FILES, texts, strict=True):
            with atomic_write(folder / name, "w") as file:
                file.write(text)

    # ---- training ------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str | Path],
        vocab_size: int,
        *,
        min_frequency: int = 2,
        show_progress: bool = False,
    ) -> "GPT2Tokenizer":
        """Learn a byte-level BPE vocabulary (Sennrich et al. 2016; bytes as in Radford et al. 2019).

        As in GPT-2 the ids are the 256 bytes, the merges in the order learnt, and `<|endoftext|>` last. A small text
        may have fewer pairs than asked for: look at `len` of the result.

        Args:
            texts: texts (str) or files (pathlib.Path), read once, in a stream.
            vocab_size: tokens in all, at least 257.
            min_frequency: how often a pair must occur to be merged.

        Raises:
            UserError: `vocab_size` or `min_frequency` is too small, the texts are empty, or a file cannot be read.
        """
        if vocab_size < 257:
            raise UserError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}); it is {vocab_size}.")
        if min_frequency < 1:
            raise UserError(f"min_frequency must be at least 1; it is {min_frequency}.")
        backend = byte_level(models.BPE(), add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=min_frequency,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=show_progress,
        )
        pieces = (text for text in _texts_of(texts) if text)
        first = next(pieces, None)
        if first is None:
            raise UserError("There is no text to learn a vocabulary from: every input is empty.")
        backend.train_from_iterator(itertools.chain([first], pieces), trainer)
        return cls(backend)


# ---- small helpers ---------------------------------------------------------------------------------------------------


def _checked_texts(texts: Sequence[str]) -> list[str]:
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"A text to encode is a string; text {number} is a {type(text).__name__}.")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"Text {number} is no valid Unicode: half a surrogate pair at character {error.start}."
                ) from error
    return texts


def _pad(row: list[int], width: int, value: int, side: str) -> list[int]:
    filling = [value] * (width - len(row))
    return row + filling if side == "right" else filling + row


def _tensor(rows: list[list[int]], kind: str) -> Any:
    if len({len(row) for row in rows}) > 1:
        raise UserError("The texts have unequal numbers of tokens: tensors need padding=True (or 'max_length').")
    array = np.asarray(rows, dtype=np.int32).reshape(len(rows), -1)
    if kind == "np":
        return array
    import mindspore  # only here: everything else works, and loads fast, without it

    return mindspore.Tensor(array)


def _texts_of(items: Iterable[str | Path]) -> Iterator[str]:
    """The texts, with each file (Path) as pieces of a thousand lines."""
    for item in items:
        if isinstance(item, str):
            yield item
            continue
        lines = read_lines(item)
        while piece := list(itertools.islice(lines, 1000)):
            yield "\n".join(piece) + "\n"


def _add_prefix_space(backend: Tokenizer) -> bool:
    return bool(getattr(backend.pre_tokenizer, "add_prefix_space", False))
