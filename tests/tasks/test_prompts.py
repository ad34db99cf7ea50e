"""What `--predict_data` names, read file by file."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.tasks.prompts import read_prompts

TEXTS = ["你好", "two words"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", "\ufeff你好\r\n\n\ufefftwo words\n"),
        ("x.json", json.dumps(TEXTS)),
        ("x.json", json.dumps([{"prompt": TEXTS[0]}, {"text": TEXTS[1], "id": 3}], indent=1)),
        ("x.JSONL", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)),
        ("x.ndjson", "".join(json.dumps(text) + "\n" for text in TEXTS)),
        ("prompts", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)),
        ("x.csv", "prompt,,\n你好,,\ntwo words\n"),
    ],
)
def test_files_of_prompts(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    prompts = read_prompts([str(tmp_path / name)])
    assert [prompt.text for prompt in prompts] == TEXTS
    assert all(prompt.name.startswith(f"{tmp_path / name}:") for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", '{"prompt": "a"}\n', "x.txt holds JSON, not a prompt a line. Name it .json or .jsonl"),
        ("x.json", "[5]", "x.json:1: the prompt should be a text; it is a int"),
        ("x.json", '[{"a": "b"}]', "x.json:1: must have one of the keys 'prompt' and 'text'; it has: 'a'"),
        ("x.csv", "ask\nhi\n", "x.csv:2: must have one of the keys 'prompt' and 'text'; it has: 'ask'"),
        ("x.json", '["a", " "]', "x.json:1: an empty text is no prompt"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts([str(tmp_path / name)])
    with pytest.raises(UserError, match="there is no file lost.JSON"):
        read_prompts(["lost.JSON"])


def test_hidden_files_of_a_folder_are_no_prompts(tmp_path, capsys):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("a.txt", "._a.txt", ".ipynb_checkpoints/a-checkpoint.txt"):
        (tmp_path / name).write_text(name)
    assert [prompt.text for prompt in read_prompts([str(tmp_path)])] == ["a.txt"]
    assert "is a folder: its .txt, .json, .jsonl, .ndjson files are read" in capsys.readouterr().out
