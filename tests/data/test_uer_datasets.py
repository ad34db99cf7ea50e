"""Data sets of UER-py's preprocess.py: every layout gives the rows that the text gives; anything else is refused."""

import io
import os
import pickle

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import write_blocks
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.text import Piece
from mindgpt.data.uer_datasets import read_windows

TEXTS = ["a b c d e f", "g h a", "b", "c d e f g h", "h g f e d c b a h g f e d c", "a b"]


def rows_of(path):
    dataset = build_dataset(path, batch_size=1, drop_remainder=False)
    return [
        [column[0].tolist() for column in row] for row in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    ]


def windows_of(tokenizer, length=5):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for start in range(0, len(ids), length):
            yield ids[start : start + length]


LAYOUTS = {  # a window and its length, padding included -> what UER-py pickled
    "since May 2022": lambda ids, length: ((ids, length - len(ids)), [min(len(ids), length - 1)]),
    "April 2022": lambda ids, length: ((ids, length - len(ids)), min(len(ids), length - 1)),
    "before": lambda ids, length: (ids + [0] * (length - len(ids)), min(len(ids), length - 1)),
}


def write(path, values, protocol=None):
    path.write_bytes(b"".join(pickle.dumps(value, protocol) for value in values))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_give_the_rows_of_the_text(wordpiece, tmp_path, layout, protocol):
    windows = list(windows_of(wordpiece))
    assert {len(window) for window in windows} >= {1, 3, 4, 5}
    path = write(tmp_path / "x.pt", (layout(window, 5) for window in windows), protocol)
    assert list(read_windows(path)) == windows


@pytest.mark.parametrize("padding_target", [[], ["--padding_target"]])
def test_the_tool_writes_the_rows_of_the_text(text_tool, wordpiece, wordpiece_dir, tmp_path, padding_target):
    path = write(tmp_path / "x.pt", (LAYOUTS["since May 2022"](window, 5) for window in windows_of(wordpiece)))
    common = ("--tokenizer_type", wordpiece_dir, *padding_target)
    text_tool("--input_file", path, "--output_file", tmp_path / "a.mindrecord", *common)
    write_blocks(
        [Piece(text, True) for text in TEXTS],
        wordpiece,
        tmp_path / "b.mindrecord",
        max_length=5,
        recipe="t",
        packing="none",
        padding_target=bool(padding_target),
    )
    assert rows_of(tmp_path / "a.mindrecord") == rows_of(tmp_path / "b.mindrecord")
    metadata = inspect(tmp_path / "a.mindrecord").metadata
    assert (metadata["recipe"], metadata["block_length"]) == ("uer dataset", 5)
    assert metadata.get("padding_target", False) is bool(padding_target)


class Command:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def with_persistent_id():
    class Persistent(pickle.Pickler):
        def persistent_id(self, obj):
            return "elsewhere" if obj == [7] else None

    buffer = io.BytesIO()
    Persistent(buffer).dump(([7], 1))
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_commands_is_refused_and_not_run(text_tool, wordpiece_dir, tmp_path, protocol):
    trap = tmp_path / "trap"
    good = (([5, 6, 7], 0), [2])
    path = write(tmp_path / "x.pt", [good, ((Command(trap), 0), [2])], protocol)
    with pytest.raises(UserError, match=r"window 2 holds \w+\.mkdir, where .* Nothing of the file was executed"):
        text_tool("--input_file", path, "--output_file", tmp_path / "x.mindrecord", "--tokenizer_type", wordpiece_dir)
    assert sorted(os.listdir(tmp_path)) == ["x.pt"]
    pickle.loads(pickle.dumps(Command(trap)))
    assert trap.is_dir()  # the trap works


GOOD = pickle.dumps((([5, 6, 7], 0), [2]))
BROKEN = {
    "empty": (b"", "is empty"),
    "torch": (b"PK\x03\x04" + b"\0" * 40, "not a data set but a file of torch.save"),
    "persistent": (with_persistent_id(), "window 1 holds an object outside the file"),
    "cut short": (GOOD + GOOD[:-4], "window 2 is truncated, or no pickle"),
    "text": (b"some text\n", "window 1 is truncated, or no pickle"),
    "other processor": (pickle.dumps(([5, 6], [(1, 5)], [1], [2])), "not of preprocess.py's --data_processor lm"),
    "not whole numbers": (pickle.dumps((([5, 6.5], 0), [1])), "not of preprocess.py's --data_processor lm"),
    "truth value": (pickle.dumps((([5, True], 0), [1])), "not of preprocess.py's --data_processor lm"),
    "negative": (pickle.dumps((([5, -6], 0), [1])), "not of preprocess.py's --data_processor lm"),
    "wrong count": (pickle.dumps((([5, 6, 7], 0), [1])), "counts 1 tokens, but holds 3 and 0 of padding"),
    "huge padding": (pickle.dumps((([5], 10**12), [1])), "counts 1 tokens, but holds 1 and 1000000000000 of"),
    "another length": (GOOD + pickle.dumps((([5, 6], 0), [1])), "window 2 has 2 tokens, and those before have 3"),
    "huge id": (pickle.dumps((([5, 900], 0), [1])), r"holds the token id 900, but the tokenizer has \d+ tokens"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_explained(text_tool, wordpiece_dir, tmp_path, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    out = tmp_path / "out"
    arguments = ["--input_file", tmp_path / "x.pt", "--output_file", out / "x.mindrecord"]
    with pytest.raises(UserError, match=message):
        text_tool(*arguments, "--tokenizer_type", wordpiece_dir)
    assert not out.exists() or os.listdir(out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_length", 9], r"holds windows of 3 tokens \(seq_length 2\), not of 9"),
        (["--packing", "full"], "--packing has no effect: the windows"),
        (["--special_tokens", "none"], "--special_tokens has no effect"),
        (["--input_file", "x.pt", "y.txt"], "cannot be converted together"),
    ],
)
def test_arguments_without_effect_are_refused(text_tool, wordpiece_dir, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(GOOD)
    (tmp_path / "y.txt").write_text("text")
    common = ["--input_file", "x.pt", "--output_file", "x.mindrecord", "--tokenizer_type", wordpiece_dir]
    with pytest.raises(UserError, match=message):
        text_tool(*common, *arguments)
    assert sorted(os.listdir(tmp_path)) == ["x.pt", "y.txt"]
    if arguments == ["--packing", "full"]:  # by name, with another suffix
        (tmp_path / "x.pt").rename(tmp_path / "x.bin")
        text_tool("--input_file", "x.bin", *common[2:], "--read_as", "uer")
        assert inspect("x.mindrecord").num_rows == 1
