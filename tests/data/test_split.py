"""Splitting a text in two: nothing is lost, and no character is split."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.split import split_file, split_text


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one\ntwo\nthree\nfour\nfive\nsix\n", "one\ntwo\nthree\nfour\n"),
        ("anarchism originated as a term of abuse", "anarchism originated "),  # as text8: one line, no line end
        ("first used against\nearly working class radicals", "first used against\nearly "),
        ("你好世界。今天天气很好。我们去公园散步吧。", "你好世界。今天天气很好。"),
        ("天地玄黄宇宙洪荒", "天地玄黄"),
        ("abcde\u0301\u0302fgh", "abcde\u0301\u0302"),
        ("abc👩\u200d💻fg", "abc👩\u200d💻"),
        ("abc👍🏽fgh", "abc👍🏽"),
    ],
)
def test_split_positions(text, first):
    for size in (1, 2, 7, 1000):
        chunks = [text[place : place + size] for place in range(0, len(text), size)]
        assert ["".join(part) for part in split_text(chunks.copy, 0.5)] == [first, text[len(first) :]]


@pytest.mark.parametrize(("text", "fraction"), [("", 0.1), ("a", 0.5), (" \n \n ", 0.5), ("e\u0301", 0.5), ("ab", 1.0)])
def test_unsplittable_texts_are_refused(text, fraction):
    with pytest.raises(UserError, match="too short|between 0 and 1"):
        split_text(lambda: [text], fraction)


def test_a_file_of_one_line(tmp_path):
    text = "anarchism originated as a term " * 5000
    (tmp_path / "t8").write_text(text)
    train, valid = split_file(tmp_path / "t8", tmp_path / "parts", 0.1)
    assert train.read_text() + valid.read_text() == text
    assert len(valid.read_text()) == pytest.approx(0.1 * len(text), abs=20)


def test_the_parts_may_replace_the_text(tmp_path):
    text = "".join(f"line {number}\n" for number in range(100_000))
    (tmp_path / "train.txt").write_text(text)
    train, valid = split_file(tmp_path / "train.txt", tmp_path, 0.1)
    assert train.read_text() + valid.read_text() == text
    assert len(valid.read_text()) == pytest.approx(0.1 * len(text), abs=20)


def test_the_texts_of_a_json_file(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"body": f"text {number}"} for number in range(10)]))
    train, valid = split_file(tmp_path / "x.json", tmp_path, 0.5, field="body")
    assert train.read_text() + valid.read_text() == "".join(f"text {number}\n\n" for number in range(10))
    (tmp_path / "x.json").rename(tmp_path / "x.txt")
    with pytest.raises(UserError, match="x.txt holds JSON"):
        split_file(tmp_path / "x.txt", tmp_path, 0.5)
