"""How bert4keras and GPT2_ML write a text of WordPiece tokens: by rules for the text as a whole.

bert4keras: `Tokenizer.decode` (bert4keras/tokenizers.py). GPT2_ML: what its demo prints (gpt2-ml, scripts/demo.py).
"""

import re

from mindgpt.tokenizers.text_decoder import WholeTextRules
from mindgpt.tokenizers.wordpiece_text import is_chinese, is_punctuation

# The punctuation of Chinese texts that bert4keras lists: full-width forms, CJK symbols, dashes, quotes, the middle dot;
# and some ASCII.
_NO_SPACE_AFTER = (
    "\uff01-\uff0d\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64"
    "\u3000-\u3003\u3008-\u3011\u3014-\u301f\u3030\u303e\u303f"
    "\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f\ufe51\ufe54\u00b7"
    r"+\-/={(<\["
)
_SPACES = re.compile(" +")
_CONTRACTION = re.compile("' (re|m|s|t|ve|d|ll) ")
_SPACE_AFTER_PUNCTUATION = re.compile(f"([{_NO_SPACE_AFTER}]) ")
_NUMBER = re.compile(r"(\d\.) (\d)")


def _append_by_bert4keras(joined: str, token: str) -> str:
    """One more token. `[CLS]` and all others in square brackets have no text; Chinese stands without spaces,
    punctuation has one after it, and any other word one before it unless it follows Chinese."""
    token = token.strip()
    if token[:1] == "[" and token[-1:] == "]":
        return joined
    if token.startswith("##"):
        return joined + token[2:]
    if len(token) == 1 and is_chinese(token):
        return joined + token
    if len(token) == 1 and is_punctuation(token):
        return f"{joined}{token} "
    return joined + token if joined and is_chinese(joined[-1]) else f"{joined} {token}"


def _tidy_by_bert4keras(joined: str) -> str:
    """The text of joined tokens: `don't go` and `3.14` without their spaces, none after Chinese punctuation."""
    text = _SPACES.sub(" ", joined)
    text = _CONTRACTION.sub(r"'\1 ", text)
    text = _SPACE_AFTER_PUNCTUATION.sub(r"\1", text)
    return _NUMBER.sub(r"\1\2", text).strip()


BERT4KERAS = WholeTextRules(
    _append_by_bert4keras,
    _tidy_by_bert4keras,
    unsure=re.compile(r"(?<=') [a-z]{1,2}\Z"),  # `don' t`, of which a word to come makes `don't`
)

GPT2_ML = WholeTextRules(
    append=lambda joined, token: joined + token.strip(),
    tidy=lambda joined: joined.replace("[UNK]", "").replace("##", ""),
    unsure=re.compile(r"#?(\[(U(NK?)?)?)?\Z"),
)

DECODING = {"bert4keras": BERT4KERAS, "gpt2_ml": GPT2_ML}
"""The rules of writing by the `rules` of a tokenizer; those that are not in it write token by token."""
