"""`reset_attention_mask` and `reset_position_ids` through `run_mindformer.py`, against documents one by one."""

import json

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2LMHeadModel
from mindgpt.data.mindrecord import MindRecordWriter

END, TOKENS = 9, 33
SETTINGS = [f"model.model_config.{setting}" for setting in ("reset_attention_mask=True", "reset_position_ids=True")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """24 rows of 33 tokens, in which documents end where END is, and a file of them."""
    ids = np.random.default_rng(0).integers(0, 300, (24, TOKENS)).astype(np.int32)
    ids[ids == END] = 10
    for row, end in enumerate(np.random.default_rng(1).integers(3, 28, (24, 2))):
        ids[row, end] = END
    file = tmp_path_factory.mktemp("packed") / "rows.mindrecord"
    with MindRecordWriter(file, ["input_ids", "attention_mask"]) as writer:
        writer.write({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return file, ids


def test_evaluation_and_training_of_packed_rows(toy, trained, packed, succeed, tmp_path):
    file, ids = packed
    model = GPT2LMHeadModel.from_pretrained(trained.last_checkpoint).set_train()
    total = 0.0
    for row in ids:
        starts = [0, *(np.flatnonzero(row[:-1] == END) + 1), TOKENS - 1]
        for first, last in zip(starts, starts[1:], strict=False):
            if last > first:
                total += float(model.summed_loss(Tensor(row[None, first : last + 1]))[0].asnumpy())
    expected = total / (24 * (TOKENS - 1))
    options = ["--options", *SETTINGS, f"model.model_config.eos_token_id={END}"]
    command = ["run_mindformer.py", "--config", toy.yaml, "--load_checkpoint", trained.last_checkpoint]
    succeed(*command, "--run_mode", "eval", "--eval_dataset_dir", file, *options, cwd=tmp_path)
    found = json.loads((tmp_path / "output" / "eval_result.json").read_text())
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["tokens"] == 24 * (TOKENS - 1)

    alike = ["train_dataset.data_loader.shuffle=False", "runner_config.batch_size=24", "runner_config.epochs=1"]
    succeed(*command, "--run_mode", "finetune", "--train_dataset_dir", file, *options, *alike, cwd=tmp_path)
    first, *_ = (tmp_path / "output" / "log" / "train.jsonl").read_text().splitlines()
    assert json.loads(first)["loss"] == pytest.approx(expected, rel=1e-5)


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
