"""GPT-2's byte-level BPE tokenizer, on Hugging Face's Rust `tokenizers`."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import make_folder, write_json, write_text
from mindgpt.tokenizers.byte_level_bpe import BYTE_SYMBOLS, FILES, byte_level, read_tokenizer, read_tokenizer_files
from mindgpt.tokenizers.library_tokenizer import LibraryTokenizer, texts_to_learn_from
from mindgpt.tokenizers.special_tokens import END_OF_TEXT
from mindgpt.tokenizers.tokenizer import one_of

_BYTE_OF = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}
_LETTERS = (*b"abcdefghijklmnopqrstuvwxyz", *range(256))  # bytes to try; every vocabulary has one of them


class GPT2Tokenizer(LibraryTokenizer):
    """Text to token ids and back, with the ids of Hugging Face's `GPT2Tokenizer`.

    The name of a special token in a text, such as `<|endoftext|>`, is encoded as that token.

    Args:
        vocab_file, merges_file: the two files of the vocabulary, under any names. No other file is read; use
            `from_pretrained` for a tokenizer folder.
        tokenizer_file: a tokenizer.json instead of the two files.
        backend: a byte-level BPE `tokenizers.Tokenizer` instead of files.
        bos_token, eos_token, unk_token: special tokens by name; None: the vocabulary's own (see `special_tokens.py`:
            `<|endoftext|>`, or `</s>` and the like). New ones get the next free ids.
        pad_token: None pads with the id of `eos_token`.
        additional_special_tokens: special tokens without a role.
        add_bos_token, add_eos_token: put these around every text that is encoded with `add_special_tokens`.
        add_prefix_space: begin every text with a space, as a word inside a text; None: as the files say.
        padding_side: "right" or "left", for calls that do not say.
        model_max_length: length that `truncation=True` truncates to, for calls without `max_length`.
        errors: only "replace": bytes that are not valid UTF-8 are decoded to U+FFFD.

    Raises:
        UserError: no files or too many are named, one is missing or broken, they do not belong together, or a value is
            not allowed.
    """

    FILES = (*FILES, "tokenizer_config.json")  # that `save_pretrained` writes
    kind = "byte-level BPE"

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
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        super().__init__(backend, named, padding_side, model_max_length)
        self.add_tokens(additional_special_tokens, special_tokens=True)
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        if add_bos_token or add_eos_token:
            backend.post_processor = self._post_processor()

    def _post_processor(self) -> processors.TemplateProcessing:
        """Puts bos before and eos after a text, and around a second text likewise."""
        bos, eos = [self.bos_token] * self.add_bos_token, [self.eos_token] * self.add_eos_token
        first, second = [*bos, "$A", *eos], [*bos, "$B", *eos]
        # TemplateProcessing takes a list of pieces, in which a special token is one that `special_tokens` names.
        return processors.TemplateProcessing(
            single=first,
            pair=first + [f"{piece}:1" for piece in second],
            special_tokens=[(name, self._id_of_special(name)) for name in dict.fromkeys(bos + eos)],
        )

    @property
    def splits_at_spaces(self) -> bool:
        """See `BaseTokenizer`. True for GPT-2's pattern of words, unless an added token contains spaces."""
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

    def _with_special_tokens(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """See `BaseTokenizer`. The post-processor is asked by encoding a letter for each text."""
        given = [ids for ids in texts if ids is not None]
        letter = next(chr(byte) for byte in _LETTERS if self._id_of(BYTE_SYMBOLS[byte]) is not None)
        encoding = self._backend.encode(letter, letter if len(given) == 2 else None)
        text = None
        for token, kind, number in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if number is None:
                yield token, kind, 1
            elif number != text:  # not the second token of " a"
                text = number
                yield from ((own, kind, 0) for own in given[number])

    # ---- decoding ------------------------------------------------------------------------------------------------

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens spell; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(map(_bytes_of, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """See `BaseTokenizer`."""
        token = self._token_of(int(token_id))
        return b"" if token is None else _bytes_of(token)

    # ---- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "GPT2Tokenizer":
        """Open a folder with tokenizer.json, or with vocab.json and merges.txt.

        tokenizer.json is preferred, as in transformers. Special tokens and settings are taken from
        tokenizer_config.json, special_tokens_map.json and added_tokens.json if present; nothing in them is executed.

        Args:
            path: the folder, or a file in it. Nothing is downloaded.
            overrides: arguments of the class that take precedence over the files.

        Raises:
            UserError: a file is missing or broken, or vocabulary and merges do not belong together.
        """
        backend, settings = read_tokenizer(expanded_path(path))
        return cls(backend=backend, **{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json; transformers opens the folder too.

        Each file is written atomically. tokenizer.json holds a complete tokenizer and is read first, so after an
        interrupted write the folder holds either the old tokenizer or the new one.

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
            "add_prefix_space": bool(getattr(self._backend.pre_tokenizer, "add_prefix_space", False)),
            **self.special_tokens_map,
        }
        if not (self.add_bos_token or self.add_eos_token):  # if they are there, transformers drops a post-processor
            del config["add_bos_token"], config["add_eos_token"]
        settings = {name: value for name, value in config.items() if value is not None}
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", settings)
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
        write_text(vocab_file, json.dumps(self.get_vocab(), ensure_ascii=False) + "\n")
        write_text(merges_file, "\n".join(["#version: 0.2", *merges]) + "\n")
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
        """Train a byte-level BPE vocabulary (Sennrich et al. 2016; bytes as in Radford et al. 2019).

        As in GPT-2 the ids are the 256 bytes, the merges in the order learned, and `<|endoftext|>` last. The vocabulary
        of a small text may be smaller than asked for: see `len` of the result.

        Args:
            texts: texts (str) or files (pathlib.Path), streamed once.
            vocab_size: number of tokens, at least 257.
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
        backend.train_from_iterator(texts_to_learn_from(texts), trainer)
        return cls(backend=backend)


def _bytes_of(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[symbol] for symbol in token])
    except KeyError:  # an added token, spelled as it is
        return token.encode()


GPT2TokenizerFast = GPT2Tokenizer
"""The name of a second class in MindFormers and transformers; here both are the same."""
