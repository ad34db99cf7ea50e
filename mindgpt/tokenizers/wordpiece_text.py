"""How WordPiece reads and writes text: the rules of UER-py, and the spaces between tokens of a text."""

import enum
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

# What BERT takes for Chinese characters (`_is_chinese_char`, Devlin et al. 2018, tokenization.py).
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
LONGEST_WORD = {"transformers": 100, "uer": 200, "bert4keras": 200, "gpt2_ml": 200}
"""Characters of the longest word, by rules; a longer one is unknown."""


def bert_backend(
    model: models.WordPiece, lower_case: bool, strip_accents: bool | None, chinese_characters: bool
) -> Tokenizer:
    """WordPiece with the rules of Hugging Face's `BertTokenizer`."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lower_case
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def uer_backend(model: models.WordPiece, lower_case: bool, in_lower_case: bool = False) -> Tokenizer:
    """WordPiece with the rules of UER-py's `BertTokenizer` (uer/utils/tokenizers.py), a variant of BERT's.

    Dropped are control and format characters (Cc, Cf) and no others. The characters of a category are those that
    Python knows, as there. The name of a special token in a text is text.

    Args:
        in_lower_case: texts that are to be read in lower case come as `lower_and_decomposed` returns them.
    """
    backend = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(_one_of_class("Cc", "Cf", keep="\t\n\r", more="\ufffd")), "")
    ]
    if lower_case:
        accents = normalizers.Replace(Regex(_one_of_class("Mn")), "")
        steps += [accents] if in_lower_case else [normalizers.NFD(), accents, normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(steps)
    alone = _one_of_class("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", more="$+<=>^`|~", ranges=_CHINESE)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(alone), "isolated")]
    )
    backend.encode_special_tokens = True
    return backend


_PARTING = "".join(f"{chr(first)}-{chr(last)}" for first, last in _CHINESE)
_WORD_WITH_SIGMA = re.compile(rf"[^\s{_PARTING}]*\u03a3[^\s{_PARTING}]*")


def lower_final_sigma(text: str) -> str:
    """`text` with each word that holds a capital sigma in lower case. Which small letter that is depends on its place
    in the word; Python's lower case knows it and the library's does not."""
    if "\u03a3" not in text:
        return text
    text = "".join(c for c in text if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cf"))
    return _WORD_WITH_SIGMA.sub(lambda word: word[0].lower(), text)


def lower_and_decomposed(text: str) -> str:
    """The first step of bert4keras: the whole text in lower case, with accents as characters of their own (NFD)."""
    return unicodedata.normalize("NFD", text.lower())


@cache
def _one_of_class(*categories: str, keep: str = "", more: str = "", ranges: Iterable[tuple[int, int]] = ()) -> str:
    """A regular expression for a character of these Unicode categories, as Python knows them, of `more` or `ranges`."""
    numbers = [n for n in range(sys.maxunicode + 1) if unicodedata.category(chr(n)) in categories]
    runs: list[list[int]] = []
    for number in sorted({*numbers, *map(ord, more)} - {*map(ord, keep)}):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in (*runs, *ranges)) + "]"


def alphabet_of(texts: Iterable[str], normalizer: normalizers.Normalizer, room: int) -> tuple[list[str], list[str]]:
    """The characters to learn a vocabulary of: the most frequent ones, sorted.

    Args:
        normalizer: is applied to the texts.
        room: tokens that the characters may have. One that can be inside a word has two tokens.

    Returns:
        The characters, and those of them that can continue a word.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    alphabet, continuing = [], []
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if character.isspace():
            continue
        inside = not _stands_alone(character)
        if room < 1 + inside:
            break
        room -= 1 + inside
        alphabet.append(character)
        continuing += [character] * inside
    return sorted(alphabet), sorted(continuing)


def _stands_alone(character: str) -> bool:
    """Whether BERT's rules make a character a word of its own."""
    return is_chinese(character) or is_punctuation(character)


@lru_cache(maxsize=1 << 16)
def is_chinese(character: str) -> bool:
    """Whether BERT takes a character for Chinese."""
    return any(first <= ord(character) <= last for first, last in _CHINESE)


@lru_cache(maxsize=1 << 16)
def is_punctuation(character: str) -> bool:
    """Whether BERT takes a character, which is no space, for punctuation: Unicode's, and every ASCII symbol."""
    ascii_symbol = "!" <= character <= "~" and not character.isalnum()
    return ascii_symbol or unicodedata.category(character).startswith("P")


# ---- spaces between tokens -------------------------------------------------------------------------------------------


class Edge(enum.Enum):
    """What a token's first or last character is, as far as spaces next to it are concerned."""

    WORD = "a letter or digit of a script that puts spaces between words"
    UNKNOWN = "an unknown word"
    JOINED = "Chinese and all else that stands without spaces"
    OPENING = "stands before a word, without a space between: ( [ $ #"
    CLOSING = "stands after a word, without a space between: , . ! ) ] %"
    APART = "has spaces on both sides: a double quote, &"


_ASCII = {
    **dict.fromkeys("([{$#@", Edge.OPENING),
    **dict.fromkeys(",.!?;:)]}%+", Edge.CLOSING),
    **dict.fromkeys('"&', Edge.APART),
}
_BY_CATEGORY = {"Ps": Edge.OPENING, "Pi": Edge.OPENING, "Pe": Edge.CLOSING, "Pf": Edge.CLOSING}
_BEFORE_DIGITS = frozenset(".,:+")  # no space follows these before a digit: 3.14, 1,000, 10:30
_FOUR_DIGITS = re.compile(r"\d{4}")
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # written with spaces
_IS_HANGUL = re.compile(f"[{_HANGUL}]")


@lru_cache(maxsize=1 << 16)
def edge(character: str) -> Edge:
    """The `Edge` that a character is."""
    category = unicodedata.category(character)
    if _IS_HANGUL.match(character):
        return Edge.WORD
    if unicodedata.east_asian_width(character) in "WF":
        return Edge.JOINED
    if category[0] in "LM" or category in ("Nd", "Nl"):
        return Edge.WORD
    if character.isascii():
        return _ASCII.get(character, Edge.JOINED)
    return Edge.JOINED if character == "\u2019" else _BY_CATEGORY.get(category, Edge.JOINED)


def space_between(left: tuple[Edge, str], right: tuple[Edge, str]) -> bool:
    """Whether a space stands between two tokens.

    Words are separated, Chinese is not, and punctuation keeps the side on which English has no space. Two tokens do not
    tell all: `3.14`, `10:30` and `1,000` are taken for numbers, so `in 2020, 15 people` loses its space; `May 5, 2010`
    keeps it, since digits between commas come in threes.

    Args:
        left: the edge at which the first token ends, and its last character.
        right: the edge at which the second token begins, and its text.
    """
    (before, last), (after, text) = left, right
    if Edge.JOINED in (before, after) or before is after is Edge.UNKNOWN:
        return False
    if before is Edge.OPENING or after is Edge.CLOSING:
        return False
    if last in _BEFORE_DIGITS and text[:1].isdigit():
        return last == "," and _FOUR_DIGITS.match(text) is not None
    return True
