"""Text as it comes: joined it is the whole text, nothing in it is half a character, and stop strings end it."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.generation.streaming import StopStrings, TextStream, TextStreamer
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.text_decoder import TextDecoder

TEXTS = [
    "a rose is a rose",
    "héllo wörld",
    "你好，世界",
    "🌹🌹 👩‍👩‍👧‍👦 e\u0301 नमस्ते",
    "\U0001f1e9\U0001f1ea",
]  # one of each kind of byte
TOKENIZER = GPT2Tokenizer.train(TEXTS * 5, 320, min_frequency=5)
TOKENIZER_WITH_ADDED = GPT2Tokenizer.train(TEXTS, 280)
TOKENIZER_WITH_ADDED._backend.add_tokens(
    ["<ü b>"]
)  # spelled with a character that stands for no byte, and one that does


class Pieces:
    """A tokenizer whose token i is the i-th piece."""

    writes_whole_texts = False

    def __init__(self, pieces):
        self.pieces = pieces

    def token_text(self, token_id, previous):
        return self.pieces[token_id]

    def text_decoder(self, previous=None):
        return TextDecoder(self.token_text, previous)


def streamed(tokenizer, ids, stops=()):
    stream = TextStream(tokenizer, StopStrings(stops))
    return [*map(stream.add, ids), stream.end()], stream.stopped


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 330), max_size=30))
def test_any_tokens_give_what_decode_gives(ids):
    for tokenizer in (TOKENIZER, TOKENIZER_WITH_ADDED):
        pieces, _ = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)


@settings(deadline=None, max_examples=300)
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("".join(TEXTS))), max_size=20))
def test_a_text_comes_in_whole_characters_and_as_soon_as_they_are_whole(text):
    ids = TOKENIZER.encode(text)
    pieces, _ = streamed(TOKENIZER, ids)
    assert "".join(pieces) == text
    data = b""
    for token, end in zip(ids, range(1, len(ids) + 1), strict=True):
        data += TOKENIZER.token_bytes(token)
        assert "".join(pieces[:end]) == data.decode("utf-8", "ignore")  # the bytes of the last, half character aside


def first_stop(text, stops):
    """The text before the stop string that is complete first, by looking at one character after the other."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_stop_strings_wherever_tokens_begin_and_end(data):
    alphabet = "ab é🌹"
    text = data.draw(st.text(alphabet, max_size=12))
    stops = data.draw(st.lists(st.text(alphabet, min_size=1, max_size=4), max_size=3))
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    tokens = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    pieces, stopped = streamed(Pieces(tokens), range(len(tokens)), stops)
    assert ("".join(pieces), stopped) == first_stop(text, stops)
    ends = [StopStrings(stops).end_with(Pieces(tokens), range(n + 1)) for n in range(len(tokens))]
    if stopped:  # the engine stops at the very token with which the stream does
        stream = TextStream(Pieces(tokens), StopStrings(stops))
        states = [stream.add(n) is not None and stream.stopped for n in range(len(tokens))]
        assert ends.index(True) == states.index(True)
    else:
        assert not any(ends)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    pieces, stopped = streamed(
        Pieces([b"one\n", b"\n", b"#", b"two", b"\n\n", b"## end"]), range(6), ["\n\n##", "\n\n\n"]
    )
    assert pieces == ["one", "", "", "\n\n#two", "", "", ""]
    assert stopped


def test_wrong_stop_strings():
    for wrong in ("text", ["a", ""], [3]):
        with pytest.raises(UserError, match="stop_strings: must be a list of texts"):
            StopStrings(wrong)


def test_a_streamer_is_used_as_transformers_uses_it(monkeypatch):
    ids = TOKENIZER.encode("你好 🌹 a rose")
    heard = []
    for skip_prompt in (False, True):
        streamer = TextStreamer(TOKENIZER, skip_prompt=skip_prompt, on_text=heard.append)
        streamer.put(np.array([ids[:3]]))
        for token in ids[3:]:
            streamer.put(np.array([token]))
        streamer.put(np.array([TOKENIZER.eos_token_id]))
        streamer.end()
        assert "".join(heard) == TOKENIZER.decode(ids[3 if skip_prompt else 0 :])
        heard.clear()
    eos = TOKENIZER.eos_token_id
    for skip, expected in ((True, "a rose"), (False, f"{TOKENIZER.eos_token}a rose")):
        streamer = TextStreamer(TOKENIZER, skip_special_tokens=skip, on_text=heard.append)
        streamer.put(np.array([[eos, *TOKENIZER.encode("a")]]))
        for token in TOKENIZER.encode(" rose"):
            streamer.put(np.array([token]))
        streamer.put(np.array([eos]))
        streamer.end()
        assert "".join(heard) == expected
        heard.clear()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    printer = TextStreamer(TOKENIZER, stop_strings=["rose"])
    printer.put(np.array([TOKENIZER.encode("a")]))
    for token in TOKENIZER.encode(" rose is a"):
        printer.put(np.array([token]))
    printer.end()
    assert sys.stdout.getvalue() == "a \n"
