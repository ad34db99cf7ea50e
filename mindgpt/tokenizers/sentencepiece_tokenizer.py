"""SentencePiece tokenizers (Kudo & Richardson 2018), by the `sentencepiece` package: tokenizer.model, spiece.model."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tokenizers import AddedToken

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import atomic_write, make_folder, write_json
from mindgpt.tokenizers.library_tokenizer import checked_texts
from mindgpt.tokenizers.sentencepiece_files import model_source, open_model, read_model, read_sentencepiece
from mindgpt.tokenizers.tokenizer import BaseTokenizer

_SPACE = "▁"  # U+2581, which stands for a space in a piece

# Appended to a serialized model: `normalizer_spec { add_dummy_prefix: false }`. Protocol Buffers merge a message that
# occurs twice, and the package has had no option for it in all versions.
_WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(BaseTokenizer):
    """Text to token ids and back, with the ids of the `sentencepiece` package.

    Where the name of a special or added token occurs in a text, it is encoded as that token. What follows such a name
    begins without the space that SentencePiece puts before a text (`add_dummy_prefix`), as in transformers' Llama
    (`legacy=False`), so that no space comes from nowhere.

    Decoding shows special tokens by name, the unknown one, too, unless they are skipped; the leading space of a text
    is dropped if the model puts one there.

    Args:
        model_file: the SentencePiece model. No other file is read; use `from_pretrained` for a tokenizer folder.
        model: a serialized SentencePiece model instead of a file.
        bos_token, eos_token, unk_token, pad_token: special tokens by name; None: the model's own. Those that the model
            lacks are added, with the next free ids.
        additional_special_tokens: special tokens without a role.
        added_tokens: tokens by id that are added to those of the model, or that give one of its own more meaning.
        add_bos_token, add_eos_token: put these around every text that is encoded with `add_special_tokens`.
        pairs_as_bert: no `bos_token` before the second of two texts.
        tokenizer_class: transformers' class, which `save_pretrained` writes.
        padding_side: "right" or "left", for calls that do not say.
        model_max_length: length that `truncation=True` truncates to, for calls without `max_length`.

    Raises:
        UserError: the package is not installed, the file is missing or broken, or added tokens do not fit the model.
    """

    FILES = ("tokenizer.model", "tokenizer_config.json")  # that `save_pretrained` writes
    kind = "SentencePiece"

    def __init__(
        self,
        model_file: str | os.PathLike[str] | None = None,
        *,
        model: bytes | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        added_tokens: Mapping[int, AddedToken] | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        pairs_as_bert: bool = False,
        tokenizer_class: str | None = None,
        padding_side: Literal["right", "left"] = "right",
        model_max_length: int | None = None,
    ):
        if model_file is not None and model is None:
            model = read_model(model_file)
        elif model_file is not None or model is None:
            raise UserError("SentencePieceTokenizer takes one of model_file and model; from_pretrained opens a folder.")
        source = model_source(model_file)
        self._content = model
        self._model = open_model(self._content, source)
        self._model_inside = open_model(self._content + _WITHOUT_DUMMY_PREFIX, source)
        self._begins_with_space = self._model.normalize("a").startswith(_SPACE)
        self._strips_spaces = not self._model.normalize(" a ").endswith(_SPACE)
        self._ids = {self._model.id_to_piece(number): number for number in range(self._model.vocab_size())}
        self._tokens = {number: token for token, number in self._ids.items()}
        self._added: dict[str, AddedToken] = {}  # every token at which texts are split
        for number, token in sorted((added_tokens or {}).items()):
            self._add_at(number, token, source)
        self._add([self._tokens[number] for number in self._tokens if self._is_special(number)], special=True)
        own = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        super().__init__(
            {role: token or self._own_token(role.removesuffix("_token")) for role, token in own.items()},
            padding_side,
            model_max_length,
        )
        self.add_tokens(additional_special_tokens, special_tokens=True)
        self.add_bos_token, self.add_eos_token, self.pairs_as_bert = add_bos_token, add_eos_token, pairs_as_bert
        self.tokenizer_class = tokenizer_class

    def _is_special(self, number: int) -> bool:
        """Whether it is one of the model's control tokens or its unknown token."""
        size = self._model.vocab_size()
        return number < size and (self._model.is_control(number) or self._model.is_unknown(number))

    def _own_token(self, role: str) -> str | None:
        number = getattr(self._model, f"{role}_id")()
        return self._tokens[number] if number >= 0 else None

    @property
    def prompt_special_tokens(self) -> Literal["bos", "none"]:
        """See `BaseTokenizer`: what goes around any text, but for the end-of-text token, as the text is to go on."""
        return "bos" if self.add_bos_token else "none"

    # ---- vocabulary ----------------------------------------------------------------------------------------------

    def get_vocab(self) -> dict[str, int]:
        """See `BaseTokenizer`. Pieces are spelled with `▁` for a space and `<0x0A>` for a byte."""
        return dict(self._ids)

    @property
    def vocab_size(self) -> int:
        """As `len`: the highest id + 1, added tokens included."""
        return max(self._tokens) + 1

    def add_tokens(self, tokens: str | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """See `BaseTokenizer`. Texts are split at these tokens."""
        return self._add([tokens] if isinstance(tokens, str) else tokens, special_tokens)

    def _add(self, tokens: Sequence[str | AddedToken], special: bool) -> int:
        before = len(self._ids)
        for token in tokens:
            added = token if isinstance(token, AddedToken) else AddedToken(token, special=special)
            name = added.content
            if name not in self._added or (special and not self._added[name].special):
                self._added[name] = added
            if name not in self._ids:
                number = max(self._tokens) + 1
                self._ids[name], self._tokens[number] = number, name
        names = sorted(self._added, key=len, reverse=True)
        self._splitter = re.compile("|".join(_pattern(self._added[name]) for name in names) or "(?!)")
        return len(self._ids) - before

    def _add_at(self, number: int, token: AddedToken, source: str) -> None:
        """Add a token with this id."""
        if self._ids.setdefault(token.content, number) != number or (
            self._tokens.setdefault(number, token.content) != token.content
        ):
            raise UserError(
                f"{source}: the added token {token.content!r} should have id {number}, but the model has "
                f"{self._tokens.get(number)!r} there. Model and added tokens do not belong together."
            )
        self._added[token.content] = token

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once, those with a role first."""
        others = sorted((token for token, added in self._added.items() if added.special), key=self._ids.__getitem__)
        return list(dict.fromkeys([*self.special_tokens_map.values(), *others]))

    def _id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def _token_of(self, token_id: int) -> str | None:
        return self._tokens.get(token_id)

    @property
    def splits_at_spaces(self) -> bool:
        """See `BaseTokenizer`. False: most models put a space before every text that they encode."""
        return False

    # ---- encoding ------------------------------------------------------------------------------------------------

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """See `BaseTokenizer`. The library spreads a batch over the cores."""
        texts = checked_texts(texts)
        plain = [number for number, text in enumerate(texts) if not self._splitter.search(text)]
        rows: list[list[int]] = [[] for _ in texts]
        for number, ids in zip(plain, self._model.encode([texts[number] for number in plain]), strict=True):
            rows[number] = ids
        for number in set(range(len(texts))) - set(plain):
            rows[number] = self._split_and_encode(texts[number])
        if not add_special_tokens:
            return rows if max_length is None else [ids[:max_length] for ids in rows]
        room = None if max_length is None else max_length - self.num_special_tokens_to_add()
        if room is not None and room < 0:
            raise UserError(f"max_length {max_length} is too short for the special tokens this tokenizer adds.")
        return [self.build_inputs_with_special_tokens(ids[:room]) for ids in rows]

    def _split_and_encode(self, text: str) -> list[int]:
        """The ids of a text that holds the names of added tokens."""
        ids: list[int] = []
        start = 0
        for match in self._splitter.finditer(text):
            ids += self._encode_part(text[start : match.start()], first=start == 0)
            found = match.group()
            ids.append(self._ids[found if found in self._added else found.strip()])
            start = match.end()
        return ids + self._encode_part(text[start:], first=start == 0)

    def _encode_part(self, text: str, first: bool) -> list[int]:
        """The ids of what is between two names. A model that strips spaces keeps that after a name as one `▁`."""
        if not text or (self._strips_spaces and not text.strip()):
            return []
        keeps_space = self._strips_spaces and text[0].isspace() and self._begins_with_space
        return (self._model if first or keeps_space else self._model_inside).encode(text)

    @property
    def document_start(self) -> list[int]:
        """See `BaseTokenizer`."""
        return [self.bos_token_id] if self.add_bos_token else []

    def _with_special_tokens(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """See `BaseTokenizer`."""
        for kind, ids in enumerate(ids for ids in texts if ids is not None):
            if self.add_bos_token and not (kind and self.pairs_as_bert):
                yield self.bos_token_id, kind, 1
            yield from ((number, kind, 0) for number in ids)
            if self.add_eos_token:
                yield self.eos_token_id, kind, 1

    # ---- decoding ------------------------------------------------------------------------------------------------

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens spell; bytes that are not valid UTF-8 become U+FFFD."""
        return self.decode(self.convert_tokens_to_ids(list(tokens)))

    def token_bytes(self, token_id: int) -> bytes:
        """See `BaseTokenizer`: within a text, so with the space that a piece begins with."""
        number = int(token_id)
        token = self._tokens.get(number)
        if token is None:
            return b""
        if number < self._model.vocab_size():
            if self._model.is_byte(number):
                return bytes([int(token[3:5], 16)])
            if not self._is_special(number):
                return token.replace(_SPACE, " ").encode()
        return token.encode()

    def token_text(self, token_id: int, previous: int | None) -> bytes:
        """See `BaseTokenizer`: the space that the model puts before a text is dropped at its beginning."""
        data = self.token_bytes(token_id)
        begins = previous is None or (previous == self.bos_token_id != self.eos_token_id)
        return data[1:] if begins and self._begins_with_space and data.startswith(b" ") else data

    # ---- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "SentencePieceTokenizer":
        """Open a folder with tokenizer.model or spiece.model, or such a file.

        Special tokens and settings are taken from tokenizer_config.json, special_tokens_map.json and added_tokens.json
        if present (`sentencepiece_files` has the conventions), the rest from the model.

        Args:
            path: the folder, or a file in it. Nothing is downloaded.
            overrides: arguments of the class that take precedence over the files.

        Raises:
            UserError: as the class; or the files name a class of transformers that gives other ids than the model.
        """
        file, settings = read_sentencepiece(expanded_path(path))
        return cls(file, **{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.model and tokenizer_config.json, each atomically.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = expanded_path(folder)
        make_folder(folder)
        added = {self._ids[name]: token for name, token in self._added.items()}
        flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
        config = {
            "tokenizer_class": self.tokenizer_class,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "added_tokens_decoder": {
                str(number): {"content": token.content} | {name: getattr(token, name) for name in flags}
                for number, token in sorted(added.items())
            },
            **({"cls_token": self.bos_token, "sep_token": self.eos_token} if self.pairs_as_bert else {}),
            **self.special_tokens_map,
        }
        with atomic_write(folder / "tokenizer.model") as file:
            file.write(self._content)
        write_json(folder / "tokenizer_config.json", {name: v for name, v in config.items() if v is not None})


def _pattern(token: AddedToken) -> str:
    """A regular expression that matches an added token, with the spaces that it takes."""
    before = r"\s*" * token.lstrip + r"(?<!\w)" * token.single_word
    after = r"(?!\w)" * token.single_word + r"\s*" * token.rstrip
    return before + re.escape(token.content) + after
