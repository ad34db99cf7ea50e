"""BERT's WordPiece tokenizer, which Chinese GPT-2 models have, on Hugging Face's Rust `tokenizers`."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, processors, trainers

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import PathLike, make_folder, set_aside, write_json, write_text
from mindgpt.tokenizers.library_tokenizer import LibraryTokenizer, add_known_tokens, texts_to_learn_from
from mindgpt.tokenizers.text_decoder import TextDecoder, WholeTextDecoder
from mindgpt.tokenizers.tokenizer import one_of
from mindgpt.tokenizers.wordpiece_decoding import DECODING
from mindgpt.tokenizers.wordpiece_files import (
    MASK,
    NAMES,
    PREFIX,
    RULES,
    WITHOUT_SPECIAL_TOKENS,
    WordPieceFiles,
    read_wordpiece,
    read_wordpiece_file,
    resolve_flags,
    special_tokens_of,
)
from mindgpt.tokenizers.wordpiece_text import (
    LONGEST_WORD,
    Edge,
    alphabet_of,
    bert_backend,
    edge,
    lower_and_decomposed,
    lower_final_sigma,
    space_between,
    uer_backend,
)

_NO_SPACE = (Edge.JOINED, "")
_NAMES_OF_RULES = {"uer": ", UER's rules", "bert4keras": ", bert4keras's rules", "gpt2_ml": ", GPT2_ML's rules"}


class WordPieceTokenizer(LibraryTokenizer):
    """Text to token ids and back, with the ids of Hugging Face's `BertTokenizer`: the fast one, which is the only one
    since transformers 5.

    `[CLS]` begins a text and `[SEP]` ends it: they are `bos_token` and `eos_token`, and a call puts them around a text.
    The name of a special token in a text, such as `[SEP]`, is encoded as that token.

    Args:
        vocab_file: a vocabulary, one token a line. No other file is read; use `from_pretrained` for a folder.
        tokenizer_file: a tokenizer.json instead.
        files: what `read_wordpiece` has read, instead of files.
        do_lower_case: read texts in lower case. None: as a tokenizer.json says, else True.
        strip_accents: read é as e. None: as a tokenizer.json says, else like `do_lower_case`.
        tokenize_chinese_chars: each Chinese character is a word. None: as a tokenizer.json says, else True.
        rules: "transformers", or "uer" for the ids of UER-py's and TencentPretrain's tokenizer. There the name of a
            special token in a text is text: `[SEP]` is `[`, `sep`, `]`. Of the characters that Unicode calls "other",
            control and format characters (Cc, Cf) are dropped and unassigned and private ones (Cn, Co) are kept. A word
            of more than 200 characters is unknown, instead of 100. "bert4keras" and "gpt2_ml" give UER's ids, too, but
            no special tokens go around a text, and it is written as these programs write it (`wordpiece_decoding.py`).
            bert4keras makes the whole text lower case before it is split, which concerns a capital sigma alone.
        bos_token, eos_token, unk_token, pad_token, mask_token: special tokens by name; None: the vocabulary's `[CLS]`,
            `[SEP]`, `[UNK]`, `[PAD]` and `[MASK]`. Without `[PAD]`, the id of `eos_token` pads.
        additional_special_tokens: special tokens without a role.
        padding_side: "right" or "left", for calls that do not say.
        model_max_length: length that `truncation=True` truncates to, for calls without `max_length`.

    Raises:
        UserError: no file or both are named, one is missing or broken, the vocabulary lacks a special token, or a value
            is not allowed.
    """

    FILES = ("vocab.txt", "tokenizer_config.json")  # that `save_pretrained` writes
    kind = "WordPiece"

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        *,
        tokenizer_file: str | os.PathLike[str] | None = None,
        files: WordPieceFiles | None = None,
        do_lower_case: bool | None = None,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool | None = None,
        rules: Literal["transformers", "uer", "bert4keras", "gpt2_ml"] = "transformers",
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        mask_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        padding_side: Literal["right", "left"] = "right",
        model_max_length: int | None = None,
    ):
        files = files or _named_file(vocab_file, tokenizer_file)
        self.rules = one_of("rules", rules, RULES)
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        named = special_tokens_of(files, named)
        flags = resolve_flags(files, do_lower_case, strip_accents, tokenize_chinese_chars, rules)
        self.do_lower_case, self.strip_accents, self.tokenize_chinese_chars = flags
        backend = self._make_backend(files, named["unk_token"] or "")
        add_known_tokens(backend, files.added, files.place)
        self.mask_token = mask_token or (MASK if MASK in files.vocab else None)
        super().__init__(backend, named, padding_side, model_max_length)
        self.add_tokens([*([self.mask_token] if self.mask_token else []), *additional_special_tokens], True)
        bos, eos = ([], []) if rules in WITHOUT_SPECIAL_TOKENS else ([self.bos_token], [self.eos_token])
        first = [*bos, "$A", *eos]
        backend.post_processor = processors.TemplateProcessing(
            single=first,
            pair=[*first, "$B:1", *(f"{token}:1" for token in eos)],
            special_tokens=[
                (name, self._id_of_special(name)) for name in dict.fromkeys((self.bos_token, self.eos_token))
            ],
        )

    def _make_backend(self, files: WordPieceFiles, unknown: str) -> Tokenizer:
        """The library's tokenizer, without tokens beside the vocabulary."""
        if files.backend is not None and self.do_lower_case is None:
            return files.backend
        model = models.WordPiece(
            files.vocab,
            unk_token=unknown,
            max_input_chars_per_word=LONGEST_WORD[self.rules],
            continuing_subword_prefix=PREFIX,
        )
        lower_case = bool(self.do_lower_case)
        if self.rules == "transformers":
            return bert_backend(model, lower_case, self.strip_accents, bool(self.tokenize_chinese_chars))
        return uer_backend(model, lower_case, in_lower_case=self.rules == "bert4keras")

    def __str__(self) -> str:
        """See `BaseTokenizer`."""
        case = {True: ", lower case", False: ", upper and lower case", None: ""}[self.do_lower_case]
        return super().__str__() + case + _NAMES_OF_RULES.get(self.rules, "")

    @property
    def prompt_special_tokens(self) -> Literal["bos", "none"]:
        """See `BaseTokenizer`: as in training, where `[SEP]` ends a text."""
        return "none" if self.rules in WITHOUT_SPECIAL_TOKENS else "bos"

    @property
    def splits_at_spaces(self) -> bool:
        """See `BaseTokenizer`. True for BERT's words, unless an added token contains spaces."""
        added = self._backend.get_added_tokens_decoder().values()
        return self.do_lower_case is not None and not any(any(map(str.isspace, token.content)) for token in added)

    # ---- encoding ------------------------------------------------------------------------------------------------

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """See `BaseTokenizer`. The library spreads a batch over the cores."""
        if self.rules != "transformers" and self.do_lower_case:
            in_lower_case = lower_and_decomposed if self.rules == "bert4keras" else lower_final_sigma
            texts = [in_lower_case(text) if isinstance(text, str) else text for text in texts]
        return super().encode_batch(texts, max_length, add_special_tokens)

    @property
    def document_start(self) -> list[int]:
        """See `BaseTokenizer`."""
        return [] if self.rules in WITHOUT_SPECIAL_TOKENS else [self.bos_token_id]

    def _with_special_tokens(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """See `BaseTokenizer`: [CLS] A [SEP], and B [SEP] of type 1; or A, and B, alone."""
        around = self.rules not in WITHOUT_SPECIAL_TOKENS
        if around:
            yield self.bos_token_id, 0, 1
        for kind, ids in enumerate(ids for ids in texts if ids is not None):
            yield from ((number, kind, 0) for number in ids)
            if around:
                yield self.eos_token_id, kind, 1

    # ---- decoding ------------------------------------------------------------------------------------------------

    def token_text(self, token_id: int, previous: int | None) -> bytes:
        """See `BaseTokenizer`. A part of a word follows the part before it without its `##`; one that follows no word
        keeps it, to be seen. For the spaces between words see `space_between`. Of bert4keras and GPT2_ML it is what the
        token adds before their rules for whole texts."""
        if self.writes_whole_texts:
            token = self._token_of(token_id)
            append = DECODING[self.rules].append
            joined = append("", (None if previous is None else self._token_of(previous)) or "")
            return b"" if token is None else append(joined, token)[len(joined) :].encode()
        text, _, first, last = self._piece(token_id)
        if previous is None:
            return text.encode()
        before = self._piece(previous)
        if text.startswith(PREFIX):
            return text.encode() if before.begins_anew else text[len(PREFIX) :].encode()
        return b" " * space_between(before.last, first) + text.encode()

    def token_bytes(self, token_id: int) -> bytes:
        """See `BaseTokenizer`. Without `##` and spaces."""
        return self._piece(token_id).text.removeprefix(PREFIX).encode()

    @property
    def writes_whole_texts(self) -> bool:
        """See `BaseTokenizer`."""
        return self.rules in DECODING

    def text_decoder(self, previous: int | None = None) -> TextDecoder:
        """See `BaseTokenizer`. bert4keras and GPT2_ML write what is new without regard to the token before it."""
        if not self.writes_whole_texts:
            return super().text_decoder(previous)
        return WholeTextDecoder(DECODING[self.rules], self._token_of)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """See `BaseTokenizer`."""
        if not self.writes_whole_texts:
            return super()._decode(ids, skip_special_tokens)
        left_out = set(self.all_special_ids) if skip_special_tokens else ()
        decoder = self.text_decoder()
        return (decoder.add(*(number for number in ids if number not in left_out)) + decoder.end()).decode()

    def _decode_spaced(self, ids: list[int], skip_special_tokens: bool) -> str:
        """A space between any two words, ASCII punctuation joined to the word before it, as transformers does."""
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        return decoders.WordPiece(prefix=PREFIX, cleanup=True).decode([token for token in tokens if token is not None])

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens of the vocabulary spell."""
        return self.decode(self.convert_tokens_to_ids(list(tokens)))

    def _piece(self, token_id: int) -> "_Written":
        """How a token is written, kept for the next time."""
        found = self._pieces.get(token_id)
        if found is None:
            found = self._pieces[token_id] = self._written(self._token_of(int(token_id)))
        return found

    def _written(self, token: str | None) -> "_Written":
        if not token:
            return _Written("", True, _NO_SPACE, _NO_SPACE)
        if token == self.unk_token:
            return _Written(token, True, (Edge.UNKNOWN, ""), (Edge.UNKNOWN, ""))
        if token in self.all_special_tokens:
            return _Written(token, True, _NO_SPACE, _NO_SPACE)
        text = token.removeprefix(PREFIX) or token
        return _Written(token, False, (edge(text[0]), text), (edge(text[-1]), text[-1]))

    # ---- vocabulary and special tokens ---------------------------------------------------------------------------

    def add_tokens(self, tokens: str | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """See `BaseTokenizer`. Texts are split at these tokens."""
        new = super().add_tokens(tokens, special_tokens)
        self._pieces: dict[int, _Written] = {}
        # The library gives an added token as its rules spell it, with spaces around Chinese characters.
        self._added = {number: token.content for number, token in self._backend.get_added_tokens_decoder().items()}
        return new

    def _token_of(self, token_id: int) -> str | None:
        return self._added.get(token_id) or super()._token_of(token_id)

    def vocab_hash(self) -> str:
        """See `BaseTokenizer`. A tokenizer.json that the library has made lacks the white space at the ends of tokens
        (U+2028), which no text is encoded to."""
        pairs = [(token.rstrip(), number) for token, number in self.get_vocab().items() if token.rstrip()]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    @property
    def cls_token(self) -> str:
        """`bos_token`, as BERT calls it."""
        return self.bos_token

    @property
    def sep_token(self) -> str:
        """`eos_token`, as BERT calls it."""
        return self.eos_token

    @property
    def cls_token_id(self) -> int:
        return self.bos_token_id

    @property
    def sep_token_id(self) -> int:
        return self.eos_token_id

    @property
    def mask_token_id(self) -> int | None:
        return None if self.mask_token is None else self._id_of(self.mask_token)

    # ---- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "WordPieceTokenizer":
        """Open a folder with vocab.txt or tokenizer.json, or a vocabulary file by its own name.

        tokenizer.json is preferred, as in transformers. Special tokens and settings are taken from
        tokenizer_config.json, special_tokens_map.json and added_tokens.json if present; nothing in them is executed.

        Args:
            path: the folder, or a file. Nothing is downloaded.
            overrides: arguments of the class that take precedence over the files.

        Raises:
            UserError: a file is missing or broken, or the files do not belong together.
        """
        files = read_wordpiece(expanded_path(path))
        return cls(files=files, **{**files.settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt and tokenizer_config.json; transformers' `BertTokenizer` opens the folder too.

        A tokenizer whose rules are those of a tokenizer.json, not BERT's, is written as tokenizer.json as well. Other
        tokenizer files of this kind in the folder are renamed, since they would be read with the new ones.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = expanded_path(folder)
        make_folder(folder)
        for name in ("tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
            set_aside(folder / name)
        own_rules = self.do_lower_case is None
        added = self._backend.get_added_tokens_decoder()
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast" if own_rules else "BertTokenizer",
            "do_lower_case": self.do_lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "rules": None if self.rules == RULES[0] else self.rules,
            "cls_token": self.bos_token,
            "sep_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
            "mask_token": self.mask_token,
            "padding_side": self.padding_side,
            "model_max_length": self.model_max_length,
            "added_tokens_decoder": {str(number): _token_settings(token) for number, token in sorted(added.items())},
        }
        self.save_vocabulary(folder)
        if own_rules:
            write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", {name: v for name, v in settings.items() if v is not None})

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str]:
        """Write vocab.txt alone, as `<filename_prefix>-vocab.txt`; returns its path. Added tokens are not in it.

        Raises:
            UserError: the folder or the file cannot be written.
        """
        file = Path(save_directory) / (f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        tokens = {number: token for token, number in self._backend.get_vocab(with_added_tokens=False).items()}
        write_text(file, "".join(f"{tokens.get(number, '')}\n" for number in range(max(tokens) + 1)))
        return (str(file),)

    # ---- training ------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str | Path],
        vocab_size: int,
        *,
        min_frequency: int = 2,
        do_lower_case: bool = True,
        show_progress: bool = False,
    ) -> "WordPieceTokenizer":
        """Train a WordPiece vocabulary: pairs that occur most often are merged, as in byte-level BPE.

        The ids are `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`, `[MASK]`, the characters that continue a word (`##a`), the
        characters, the merges in the order learned. The most frequent characters are taken if `vocab_size` has no room
        for all; others are unknown. The vocabulary of a small text may be smaller than asked for: see `len` of the
        result.

        Args:
            texts: texts (str) or files (pathlib.Path), streamed twice; an iterator of texts is held in memory.
            vocab_size: number of tokens, at least 7.
            min_frequency: how often a pair must occur to be merged.
            do_lower_case: read texts in lower case, here and later.

        Raises:
            UserError: `vocab_size` or `min_frequency` is too small, the texts are empty, or a file cannot be read.
        """
        special = [NAMES["pad_token"], NAMES["unk_token"], NAMES["bos_token"], NAMES["eos_token"], MASK]
        if vocab_size < len(special) + 2:
            raise UserError(f"vocab_size must be at least {len(special) + 2}; it is {vocab_size}.")
        if min_frequency < 1:
            raise UserError(f"min_frequency must be at least 1; it is {min_frequency}.")
        backend = bert_backend(models.WordPiece(unk_token=NAMES["unk_token"]), do_lower_case, None, True)
        texts = list(texts) if isinstance(texts, Iterator) else texts
        alphabet, continuing = alphabet_of(texts_to_learn_from(texts), backend.normalizer, vocab_size - len(special))
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            # Left to itself, the library numbers characters that continue a word in an order that changes.
            special_tokens=[*special, *(PREFIX + character for character in continuing)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=show_progress,
        )
        backend.train_from_iterator(texts_to_learn_from(texts), trainer)
        vocab = backend.get_vocab(with_added_tokens=False)
        return cls(files=WordPieceFiles(vocab, None, {}, {}, Path("what was learned")), do_lower_case=do_lower_case)


class _Written(NamedTuple):
    """How a token is written.

    Attributes:
        text: the token, with its `##`.
        begins_anew: nothing can continue it: it is a special token, or none of the vocabulary.
        first: the edge at its beginning, and the token without `##`.
        last: the edge at its end, and its last character.
    """

    text: str
    begins_anew: bool
    first: tuple[Edge, str]
    last: tuple[Edge, str]


def _named_file(vocab_file: PathLike | None, tokenizer_file: PathLike | None) -> WordPieceFiles:
    if bool(vocab_file) == bool(tokenizer_file):
        raise UserError(
            "A WordPiece tokenizer is read from vocab_file or from tokenizer_file. "
            "WordPieceTokenizer.from_pretrained opens a folder."
        )
    file = Path(vocab_file or tokenizer_file or "")
    if file.is_dir():
        raise UserError(f"{file} is a folder; WordPieceTokenizer.from_pretrained opens it.")
    return read_wordpiece_file(file)


def _token_settings(token: AddedToken) -> dict[str, Any]:
    """A token as tokenizer_config.json spells it."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}
