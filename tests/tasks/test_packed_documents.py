"""`reset_attention_mask` and `reset_position_ids` through `run_mindformer.py`, against documents one by one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2LMHeadModel
from mindgpt.data.mindrecord import MindRecordWriter

END, TOKENS, ROWS = 9, 33, 24
SETTINGS = [f"model.model_config.{setting}" for setting in ("reset_attention_mask=True", "reset_position_ids=True")]
OPTIONS = [*SETTINGS, f"model.model_config.eos_token_id={END}"]


@dataclasses.dataclass(frozen=True)
class Data:
    """Documents packed into rows, and the same tokens with a row for each document.

    Attributes:
        packed, alone: MindRecord files.
        documents: the ids of each, with the one token after it, which is a target only.
    """

    packed: Path
    alone: Path
    documents: list[np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows in which two documents end where END is, and a third is cut off; 24 * 32 predicted tokens."""
    ids = np.random.default_rng(0).integers(0, 300, (ROWS, TOKENS)).astype(np.int32)
    ids[ids == END] = 10
    for row, ends in enumerate(np.random.default_rng(1).integers(3, 28, (ROWS, 2))):
        ids[row, ends] = END
    documents = []
    for row in ids:
        starts = [0, *(np.flatnonzero(row[:-1] == END) + 1), TOKENS - 1]
        documents += [row[first : last + 1] for first, last in zip(starts, starts[1:], strict=False) if last > first]
    assert sum(len(document) - 1 for document in documents) == ROWS * (TOKENS - 1)
    folder = tmp_path_factory.mktemp("packed")
    padded = np.zeros((len(documents), TOKENS), np.int32)
    mask = np.zeros_like(padded)
    for row, document in enumerate(documents):
        padded[row, : len(document)] = document
        mask[row, : len(document)] = 1
    write(folder / "packed.mindrecord", ids, np.ones_like(ids))
    write(folder / "alone.mindrecord", padded, mask)
    return Data(folder / "packed.mindrecord", folder / "alone.mindrecord", documents)


def write(file, ids, mask):
    with MindRecordWriter(file, ["input_ids", "attention_mask"]) as writer:
        writer.write({"input_ids": ids, "attention_mask": mask})


def test_evaluation_of_packed_rows_is_that_of_their_documents(toy, trained, data, succeed, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(trained.last_checkpoint).set_train()
    lengths = np.array([len(document) for document in data.documents])
    padded = np.zeros((len(lengths), TOKENS), np.int32)
    for row, document in zip(padded, data.documents, strict=True):
        row[: len(document)] = document
    attended = (np.arange(TOKENS) < lengths[:, None]).astype(np.int32)
    total = float(model.summed_loss(Tensor(padded), Tensor(attended))[0].asnumpy())
    expected = total / (ROWS * (TOKENS - 1))
    command = ["run_mindformer.py", "--config", toy.yaml, "--load_checkpoint", trained.last_checkpoint]
    command += ["--run_mode", "eval", "--eval_dataset_dir", data.packed]
    for options, equal in ((["--options", *OPTIONS], True), ([], False)):
        succeed(*command, *options, cwd=tmp_path)
        found = json.loads((tmp_path / "output" / "eval_result.json").read_text())
        assert found["tokens"] == ROWS * (TOKENS - 1)
        assert (found["loss"] == pytest.approx(expected, rel=1e-5)) == equal


def test_training_on_packed_rows_is_training_on_their_documents(toy, data, succeed, tmp_path):
    """Three updates, each by all rows: a loss is the mean over all tokens of all documents, and so is its gradient."""

    def losses(name, file, rows, *options):
        cwd = tmp_path / name
        cwd.mkdir()
        alike = [
            f"runner_config.batch_size={rows}",
            "runner_config.epochs=3",
            "train_dataset.data_loader.shuffle=False",
        ]
        command = ["run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", file, "--options", *alike]
        succeed(*command, *options, cwd=cwd)
        log = (cwd / "output" / "log" / "train.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in log]

    packed = losses("packed", data.packed, ROWS, *OPTIONS)
    alone = losses("alone", data.alone, len(data.documents))
    assert len(packed) == 3
    assert packed == pytest.approx(alone, rel=1e-5)
    assert packed != pytest.approx(losses("blind", data.packed, ROWS), rel=1e-4)


def test_what_cannot_be_told_apart_is_refused(toy, program, tmp_path):
    command = ["run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--options", *SETTINGS]
    for more, reason in (
        ([], "reset_attention_mask: needs eos_token_id"),
        ([f"model.model_config.eos_token_id={END}"], f"but model.model_config.eos_token_id is {END}"),
        (
            [f"model.model_config.eos_token_id={END}", "trainer.type=TextClassificationTrainer",
             "model.arch.type=GPT2ForSequenceClassification"],
            "is for packed rows of a language model",
        ),
    ):  # fmt: skip
        done = program(*command, *more, cwd=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert reason in done.stderr
