"""A run whose vocabulary has padding is the run without, from the same weights of a file that has none."""

import json

import numpy as np
import pytest

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.padded_vocabulary import TOKENS
from mindgpt.config import UserError, load_config
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.tasks.model_setup import build_model

pytestmark = pytest.mark.usefixtures("cpu")

KEY = "model.model_config."
PADDING = ["model.model_config.vocab_size=304", "model.model_config.unpadded_vocab_size=300"]


@pytest.fixture(scope="module")
def start(cpu, toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "vocab_size": 300, "seq_length": 32}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(succeed, toy, start, tmp_path_factory):
    """The folders of a fine-tuning without padding and one with it."""
    folders = []
    for options in ([], PADDING):
        folder = tmp_path_factory.mktemp("run")
        said = succeed(
            "run_mindformer.py", "--config", toy.yaml, "--run_mode", "finetune", "--train_dataset_dir", toy.train,
            "--load_checkpoint", start, "--epochs", "1", "--options", "optimizer.weight_decay=0.1",
            "runner_config.epochs=1", *options, cwd=folder,
        )  # fmt: skip
        assert ("300 tokens; the token table of 300 rows gets 4 rows of padding" in said) == bool(options)
        folders.append(folder)
    return folders


def test_losses_and_weights_are_those_without_padding(runs):
    logs = [[json.loads(line) for line in (run / "output/log/train.jsonl").read_text().splitlines()] for run in runs]
    for key in ("loss", "grad_norm"):
        plain, padded = ([record[key] for record in log] for log in logs)
        assert len(plain) == 10
        np.testing.assert_allclose(padded, plain, rtol=1e-4)
    plain, padded = (CheckpointFile(max((run / "output/checkpoint").rglob("*.ckpt"))) for run in runs)
    table = padded.read(TOKENS)
    assert table.shape == (304, 32)
    np.testing.assert_allclose(table[:300], plain.read(TOKENS), atol=1e-4)
    assert not table[300:].any()


def test_a_padded_checkpoint_is_evaluated_and_read_on_without_its_padding(runs, succeed, toy):
    perplexities = []
    for run, options in zip(runs, ([], PADDING), strict=True):
        checkpoint = max((run / "output/checkpoint").rglob("*.ckpt"))
        said = succeed(
            "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
            "--load_checkpoint", checkpoint, *(["--options", *options] if options else []), cwd=run,
        )  # fmt: skip
        assert ("the token table of 304 rows is read without 4 of padding" in said) == bool(options)
        perplexities.append(float(said.split("'PPL': ")[1].split("}")[0]))
    np.testing.assert_allclose(perplexities[1], perplexities[0], rtol=1e-4)


def test_the_tool_removes_the_padding_of_a_run(runs, succeed, program, toy):
    folder = runs[1]
    arguments = ("--src_ckpt_dir", "output/checkpoint", "--dst_ckpt_dir")
    said = succeed(
        "tools/transform_ckpt.py", *arguments, "plain", "--vocab_size", "300", "--training_state", cwd=folder
    )
    assert "vocabulary: from 304 to 300 rows in 3 tensors" in said  # the weights and two moments of each
    plain = CheckpointFile(folder / "plain/rank_0/checkpoint_0.ckpt")
    assert {info.shape for name, info in plain.entries.items() if name.endswith(TOKENS)} == {(300, 32)}
    done = program("tools/transform_ckpt.py", *arguments, "less", "--vocab_size", "299", cwd=folder)
    assert done.returncode == 2
    assert (
        "its config has 300 tokens (unpadded_vocab_size), which all need their rows. Give 300, or more." in done.stderr
    )
    assert "Traceback" not in done.stderr and not (folder / "less").exists()


@pytest.fixture
def build(toy):
    def build(weights, mode="finetune", **values):
        overrides = {KEY + key: value for key, value in values.items()}
        return build_model(load_config(toy.yaml, {"run_mode": mode, "load_checkpoint": str(weights), **overrides})[0])

    return build


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vocab_size": 304, "unpadded_vocab_size": 299}, "table has 300 rows; .* unpadded_vocab_size 299 are tokens"),
        ({"vocab_size": 304, "unpadded_vocab_size": 301}, "added to a table of exactly 301"),
        ({"vocab_size": 304}, "vocab_size is 300 in the file and 304 in the YAML"),
    ],
    ids=str,
)
def test_rows_are_added_only_where_the_tokens_agree(build, start, values, words):
    with pytest.raises(UserError, match=words):
        build(start, **values)


def test_the_config_of_padded_weights_tells_of_the_padding(build, start, tmp_path, capsys):
    padded = {"vocab_size": 304, "unpadded_vocab_size": 300}
    GPT2LMHeadModel.from_pretrained(start, **padded).save_pretrained(tmp_path)
    for vocab_size, mode, rows in ((304, "finetune", 304), (300, "finetune", 300), (304, "predict", 300)):
        model, config = build(tmp_path, mode, vocab_size=vocab_size)
        assert config.model.config.vocab_size == rows == model.config.vocab_size
        assert config.model.config.token_count == 300 == model.config.token_count
        assert model.parameters_dict()[TOKENS].shape == (rows, 32)
        assert (model.head.without_padding is None) == (rows == 300)
    with pytest.raises(UserError, match="304 rows, of which 300 are tokens; .* unpadded_vocab_size 299"):
        build(tmp_path, vocab_size=304, unpadded_vocab_size=299)
