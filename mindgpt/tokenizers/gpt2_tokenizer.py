"""GPT-2's byte-level BPE tokenizer: files, batches, decoding and training, on Hugging Face's Rust `tokenizers`.

The merging itself is the library's; this class reads and writes the files that GPT-2 tokenizers come in, and pads,
truncates and masks. The attention mask is made from lengths, never by comparing ids with the end-of-text id, so padding
with end-of-text (GPT-2 has no other token for it) hides no real end-of-text.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import atomic_write, make_folder, read_lines
from mindgpt.tokenizers.byte_level_bpe import BYTE_SYMBOLS, byte_level, one_of, read_tokenizer, read_tokenizer_files
from mindgpt.tokenizers.special_tokens import END_OF_TEXT
from mindgpt.tokenizers.token_batch import (
    PADDINGS,
    TENSORS,
    TRUNCATIONS,
    TokenBatch,
    as_tensor,
    pad_rows,
    truncate_pair,
)
from mindgpt.tokenizers.token_vocabulary import TokenVocabulary

Texts = str | Sequence[str]
_LETTERS = (*b"abcdefghijklmnopqrstuvwxyz", *range(256))  # bytes to try, of which any vocabulary has one


class GPT2Tokenizer(TokenVocabulary):
    """Text to token ids and back, with the ids of Hugging Face's `GPT2Tokenizer`.

    Text that contains the name of a special token, such as `<|endoftext|>`, gets that token's id there.

    Args:
        vocab_file, merges_file: the two files of the vocabulary, under any names. Only they are read; a folder with all
            files of a tokenizer is opened by `from_pretrained`.
        tokenizer_file: a tokenizer.json instead of the two.
        backend: a byte-level BPE `tokenizers.Tokenizer` instead of files.
        bos_token, eos_token, unk_token: special tokens by name; None: those of the vocabulary (see `special_tokens.py`:
            `<|endoftext|>`, or `</s>` and the like). New ones get the ids after the last.
        pad_token: None pads with the id of `eos_token`; the attention mask tells padding from text.
        additional_special_tokens: more of them, without a role.
        add_bos_token, add_eos_token: put these round every text that is encoded with `add_special_tokens`.
        add_prefix_space: begin every text with a space, as a word inside a text; None: as the files say.
        padding_side: "right" or "left", where a call does not say.
        model_max_length: length that `truncation=True` cuts to where a call gives no `max_length`.
        errors: only "replace": bytes that are no valid UTF-8 are decoded to U+FFFD.

    Raises:
        UserError: no files or too many are named, one is missing or broken, they do not belong together, or a value is
            not allowed.
    """

    FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")  # what `save_pretrained` writes

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        *,
        tokenizer_file: str | os.PathLike[str] | None = None,
        backend: Tokenizer | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        add_prefix_space: bool | None = None,
        padding_side: Literal["right", "left"] = "right",
        model_max_length: int | None = None,
        errors: Literal["replace"] = "replace",
    ):
        if backend is None:
            backend = read_tokenizer_files(vocab_file, merges_file, tokenizer_file)
        one_of("errors", errors, ("replace",))
        if add_prefix_space is not None and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            backend.pre_tokenizer.add_prefix_space = add_prefix_space
        backend.no_padding()
        backend.no_truncation()
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        super().__init__(backend, named)
        self._add(additional_special_tokens, special=True)
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        if add_bos_token or add_eos_token:
            backend.post_processor = self._frame()
        self.padding_side = one_of("padding_side", padding_side, ("right", "left"))
        self.model_max_length = model_max_length

    def _frame(self) -> processors.TemplateProcessing:
        """The post-processor that puts bos before and eos behind a text, and behind it a second text likewise."""
        before, behind = [self.bos_token] * self.add_bos_token, [self.eos_token] * self.add_eos_token
        first, second = [*before, "$A", *behind], [*before, "$B", *behind]
        # TemplateProcessing takes a list of pieces, in which a special token is one that `special_tokens` names.
        return processors.TemplateProcessing(
            single=first,
            pair=first + [f"{piece}:1" for piece in second],
            special_tokens=[(name, self._backend.token_to_id(name)) for name in dict.fromkeys(before + behind)],
        )

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
            truncation: cut what is longer than `max_length` (at the end of the text). Of a pair True cuts the longer
                text, by turns; "only_first" and "only_second" cut one.
            max_length: tokens; needed for padding="max_length", and for truncation unless `model_max_length` is set.
            padding_side: where the padding goes; the tokenizer's own `padding_side` if None.
            add_special_tokens: obey `add_bos_token` and `add_eos_token` (both off in GPT-2).
            return_tensors: None gives lists; "np" int32 arrays, "ms" int32 tensors and "pt" int64 tensors of torch, of
                shape (batch, length), also for a single text.
            return_attention_mask: return `attention_mask`: 1 at tokens of the text and 0 at padding.
            return_token_type_ids: return `token_type_ids`: 1 at tokens of the second text, 0 elsewhere.

        Returns:
            `input_ids` and what else is to be returned, as keys and as attributes.

        Raises:
            UserError: a value that is not allowed, a text that is no valid Unicode, or tensors of unequal lengths.
        """
        single = isinstance(text, str)
        one_of("padding", padding, PADDINGS)
        one_of("truncation", truncation, TRUNCATIONS)
        one_of("return_tensors", return_tensors, TENSORS)
        padding, truncation = padding != "do_not_pad" and padding, truncation != "do_not_truncate" and truncation
        side = one_of("padding_side", padding_side or self.padding_side, ("right", "left"))
        limit = self._limit(padding, truncation, max_length)
        texts, cut_to = [text] if single else text, limit if truncation else None
        if text_pair is None:
            rows = self.encode_batch(texts, cut_to, add_special_tokens)
            types = [[0] * len(row) for row in rows]
        else:
            pairs = [text_pair] if isinstance(text_pair, str) else text_pair
            rows, types = self._encode_pairs(texts, pairs, cut_to, truncation, add_special_tokens)
        columns = {"input_ids": rows}
        if return_token_type_ids:
            columns["token_type_ids"] = types
        if return_attention_mask:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        if padding:
            width = limit if padding == "max_length" else max(map(len, rows), default=0)
            fill = {"input_ids": self.pad_token_id}
            columns = {name: pad_rows(rows, width, fill.get(name, 0), side) for name, rows in columns.items()}
        if return_tensors is not None:
            return TokenBatch({name: as_tensor(rows, return_tensors) for name, rows in columns.items()})
        return TokenBatch({name: rows[0] if single else rows for name, rows in columns.items()})

    def _limit(self, padding: bool | str, truncation: bool | str, max_length: int | None) -> int | None:
        """The length that padding or truncation goes to."""
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

    def _encode_pairs(
        self, texts: Sequence[str], pairs: Sequence[str], max_length: int | None, truncation: Any, special: bool
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Ids and types of pairs."""
        if len(texts) != len(pairs):
            raise UserError(f"text and text_pair belong together: there are {len(texts)} and {len(pairs)}.")
        firsts, seconds = (self.encode_batch(part, add_special_tokens=False) for part in (texts, pairs))
        added = self._backend.num_special_tokens_to_add(True) if special else 0
        rows, types = [], []
        for first, second in zip(firsts, seconds, strict=True):
            if max_length is not None:
                first, second = truncate_pair(first, second, max_length - added, truncation)
            bare = [0] * len(first) + [1] * len(second)
            rows.append(self.build_inputs_with_special_tokens(first, second) if special else first + second)
            types.append(self.create_token_type_ids_from_sequences(first, second) if special else bare)
        return rows, types

    # ---- tokens of a text, special tokens round it -----------------------------------------------------------------

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, spelled in byte symbols (`Ġworld` for " world"); those of `pair` follow.

        Raises:
            UserError: `text` is not a string of valid Unicode.
        """
        return self.convert_ids_to_tokens(self.encode(text, pair, add_special_tokens))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of a text, or of two, with the special tokens that a call puts round them."""
        return [token for token, _, _ in self._framed(token_ids_0, token_ids_1)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """For each of the ids of `build_inputs_with_special_tokens`: 0 for the first text, 1 for the second."""
        return [kind for _, kind, _ in self._framed(token_ids_0, token_ids_1)]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """For each of the ids of `build_inputs_with_special_tokens`: 1 for a special token, 0 for one of a text.

        Args:
            already_has_special_tokens: `token_ids_0` has them; all special tokens in it count.
        """
        if not already_has_special_tokens:
            return [special for _, _, special in self._framed(token_ids_0, token_ids_1)]
        if token_ids_1 is not None:
            raise UserError("get_special_tokens_mask: ids that have their special tokens are one list, token_ids_0.")
        known = set(self.all_special_ids)
        return [int(token in known) for token in token_ids_0]

    def _framed(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """(id, type, 1 for a special token) of one or two texts and what is put round them, as the post-processor puts
        it round a letter."""
        rest = [ids for ids in texts if ids is not None]
        letter = next(chr(byte) for byte in _LETTERS if self._backend.token_to_id(BYTE_SYMBOLS[byte]) is not None)
        encoding = self._backend.encode(*[letter] * len(rest))
        text = None
        for token, kind, number in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if number is None:
                yield token, kind, 1
            elif number != text:  # not the second token of " a"
                text = number
                yield from ((own, kind, 0) for own in rest[number])

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
        return cls(backend=backend, **{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json; transformers opens the folder too.

        Each file is replaced whole; tokenizer.json alone holds a complete tokenizer and is read first, so a folder
        whose rewriting was interrupted holds the old tokenizer or the new one.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = expanded_path(folder)
        make_folder(folder)
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": _add_prefix_space(self._backend),
            **self.special_tokens_map,
        }
        if not (
            self.add_bos_token or self.add_eos_token
        ):  # their mere presence makes transformers drop a post-processor
            del config["add_bos_token"], config["add_eos_token"]
        settings = {name: value for name, value in config.items() if value is not None}
        _write(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        self.save_vocabulary(folder)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str]:
        """Write vocab.json and merges.txt alone, as `<filename_prefix>-vocab.json` and so on; returns their paths.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        vocab_file, merges_file = (Path(save_directory) / f"{prefix}{name}" for name in ("vocab.json", "merges.txt"))
        model = json.loads(self._backend.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        _write(vocab_file, json.dumps(self.get_vocab(), ensure_ascii=False) + "\n")
        _write(merges_file, "\n".join(["#version: 0.2", *merges]) + "\n")
        return str(vocab_file), str(merges_file)

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
        return cls(backend=backend)


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


def _texts_of(items: Iterable[str | Path]) -> Iterator[str]:
    """The texts, with each file (Path) as pieces of a thousand lines."""
    for item in items:
        if isinstance(item, str):
            yield item
            continue
        lines = read_lines(item)
        while piece := list(itertools.islice(lines, 1000)):
            yield "\n".join(piece) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


def _add_prefix_space(backend: Tokenizer) -> bool:
    return bool(getattr(backend.pre_tokenizer, "add_prefix_space", False))


GPT2TokenizerFast = GPT2Tokenizer
"""The name under which MindFormers and transformers have a second class: this one is as fast."""
