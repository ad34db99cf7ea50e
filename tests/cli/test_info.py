"""`mindgpt info` on every kind of file, and on files that are damaged or of no kind."""

import json
import math
import shutil
from pathlib import Path

import pytest

from mindgpt.checkpoints.conversion import convert
from mindgpt.checkpoints.conversion_source import ConversionOptions
from mindgpt.cli.info import lines
from mindgpt.cli.run_modes import command_from
from mindgpt.config.errors import UserError
from mindgpt.config.loader import dump_config
from mindgpt.tasks.describe import describe, tensors_of

SMALL = {"size": "1 layer, hidden 32, 2 heads", "positions": 64, "vocab_size": 300}
PARAMETERS = 300 * 32 + 64 * 32 + (4 * (32 * 32 + 32) + 2 * 32 * 128 + 128 + 32 + 4 * 32) + 2 * 32


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """The toy model in other formats."""
    base = tmp_path_factory.mktemp("formats")
    convert(small.model / "model.ckpt", base / "hf", None, ConversionOptions())
    shutil.copy(small.model / "model.ckpt", base / "alone.ckpt")
    return base


def check(facts, **expected):
    assert {key: facts[key] for key in expected} == expected


@pytest.mark.parametrize("named", ["model", "model/model.ckpt"])
def test_our_folder_and_file(small, named):
    facts = describe(str(small.model.parent / named))
    check(facts, kind="weights", family="GPT-2", parameters=PARAMETERS, dtype="float32", **SMALL)
    assert facts["stored_as"].endswith("MindSpore's, with MindFormers' names")
    assert (facts["written_by"], facts["tokenizer"]) == ("mindgpt", "byte-level BPE")


def test_a_hugging_face_folder(folders):
    facts = describe(str(folders / "hf"))
    check(facts, kind="weights", family="GPT-2", parameters=PARAMETERS, dtype="float32", **SMALL)
    assert facts["stored_as"].endswith("Hugging Face's")
    assert facts["tokenizer"] == "byte-level BPE"  # copied with the weights


def test_tensors_are_those_of_the_file_and_none_is_read(small, monkeypatch):
    from mindgpt.checkpoints.mindspore_format import CheckpointFile

    def read(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(CheckpointFile, "read", read)
    monkeypatch.setattr(CheckpointFile, "read_box", read, raising=False)
    tensors = tensors_of(str(small.model))
    assert sum(math.prod(one["shape"]) for one in tensors) == describe(str(small.model))["parameters"]


def test_weights_without_config_say_so(folders, tmp_path):
    file = Path(shutil.copy(folders / "alone.ckpt", tmp_path / "x.ckpt"))
    facts = describe(str(file))
    check(facts, kind="weights", parameters=PARAMETERS, config="none beside the weights, so the network is not known")


def test_a_tokenizer(small):
    facts = describe(str(small.tokenizer))
    check(facts, kind="tokenizer", tokenizer="byte-level BPE", tokens=300)
    assert facts["special_tokens"]["eos_token"] == "<|endoftext|>"
    assert describe(str(small.tokenizer / "tokenizer.json"))["tokens"] == 300


def test_a_text_and_a_config_alone(small, tmp_path):
    assert describe(str(small.text))["kind"] == "text"
    shutil.copy(small.model / "config.json", tmp_path)
    check(describe(str(tmp_path)), kind="config of a network, without weights", parameters=PARAMETERS, **SMALL)


def test_mindrecord_and_yaml(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path / "cache"))
    config = command_from("finetune", ["--model", str(small.model), "--data", str(small.text)]).config
    rows = config.train_dataset.data_loader.dataset_dir
    facts = describe(rows)
    check(facts, kind="MindRecord", made_by="mindgpt", recipe="text", block_length=65, vocab_size=300)
    assert facts["vocab_sha256"] == describe(str(small.tokenizer))["vocab_sha256"]
    assert describe(str(Path(rows).parent))["rows"] > facts["rows"]  # the folder: validation too
    (tmp_path / "x.yaml").write_text(dump_config(config))
    check(
        describe(str(tmp_path / "x.yaml")), kind="configuration", run_mode="finetune", epochs=3, parameters=PARAMETERS
    )


def test_a_size():
    facts = describe("gpt3_1.3b")
    check(facts, kind="size of a model", family="GPT-3 of ModelScope (Chinese)")
    assert 1.2e9 < facts["parameters"] < 1.4e9


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.bin", b"\x00\x01no zip", "x.bin"),
        ("x.safetensors", b"\xff" * 40, "not a whole safetensors file"),
        ("x.ckpt", b"\xff" * 40, "x.ckpt"),
        ("x.mindrecord", b"\x01" * 40, "is not a MindRecord file"),
        ("x.yaml", b"run_mod: train\n", "did you mean 'run_mode'?"),
        ("x.png", b"\x89PNG", "of no kind that mindgpt knows"),
        ("x.ckpt", b"", "is empty (0 bytes)"),
        ("x.txt", b"\xff\xfe\x00\xd8", "x.txt"),
    ],
)
def test_what_is_unknown_or_damaged(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        describe(str(tmp_path / name))
    assert expected in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_weights_that_are_cut_short(folders, small, tmp_path, name):
    source = folders / "hf" if name == "model.safetensors" else small.model
    for file in (name, "config.json"):
        shutil.copy(source / file, tmp_path)
    cut(tmp_path / name)
    with pytest.raises(UserError, match=name):
        describe(str(tmp_path))


def test_a_folder_of_nothing_known(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="nothing that mindgpt knows is in this folder; it holds a.png"):
        describe(str(tmp_path))


def test_the_command_describes_all_it_can_and_exits_with_2(mindgpt, small, capsys):
    assert mindgpt("info", "--json", "nope.ckpt", small.tokenizer) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == "tokenizer"
    assert err.startswith("error: nope.ckpt: there is no such file or folder")
    assert err.count("\n") == 1
    assert mindgpt("info", small.model) == 0
    assert f"  parameters        {PARAMETERS:,}\n" in capsys.readouterr().out


def test_lines_for_a_person():
    facts = {"path": "x", "kind": "k", "bytes": 2**20, "loss": 1.23456789, "names": ["a", "b"], "more": {"c": 1000}}
    assert lines(facts) == [
        "x: k",
        "  bytes             1,048,576 (1.0 MiB)",
        "  loss              1.23457",
        "  names             a, b",
        "  more              c 1,000",
    ]
