"""Text classification as a user types it: prepare, fine-tune, evaluate, predict; and what is refused."""

import json
import re

import numpy as np
import pytest
import yaml

from mindgpt.data.buckets import read_rows
from mindgpt.data.dataset import inspect

TOOL = "tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py"
VERDICTS = {"good": ("ships sail north", "new land"), "bad": ("lazy dog", "old fox")}


def table(rows, seed):
    """Sentences whose verdict one of two phrases at the end tells; of very different lengths."""
    draw = np.random.default_rng(seed)
    words = ["the", "quick", "brown", "over", "a", "while", "seven", "to"]
    lines = ["label\tsentence"]
    for _ in range(rows):
        label = int(draw.integers(2))
        filling = " ".join(draw.choice(words, draw.choice([1, 3, 14])))
        lines.append(f"{label}\t{filling} {draw.choice(VERDICTS['good' if label else 'bad'])}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def prepared(toy, trained, succeed, tmp_path_factory):
    """A folder with train.mindrecord, dev.mindrecord and txtcls.yaml, which starts from the toy language model."""
    folder = tmp_path_factory.mktemp("classification")
    for name, rows in (("train", 240), ("dev", 50)):
        (folder / f"{name}.tsv").write_text(table(rows, seed=rows))
        console = succeed(
            TOOL, "--dataset_name", "sst_2", "--input_file", f"{name}.tsv", "--output_file", f"{name}.mindrecord",
            "--max_length", 32, "--tokenizer_type", toy.tokenizer, cwd=folder,
        )  # fmt: skip
        assert f"{rows} rows (negative" in console
    values = yaml.safe_load(toy.yaml.read_text())
    values["trainer"] = {"type": "TextClassificationTrainer"}
    values["model"]["arch"] = {"type": "GPT2ForSequenceClassification"}
    values["runner_config"] = {"epochs": 4, "batch_size": 16}
    values["train_dataset"] = {"num_buckets": 2}
    values["eval_dataset"] = {"num_buckets": 1}
    values["run_mode"] = "finetune"
    values["load_checkpoint"] = str(trained.last_checkpoint)
    (folder / "txtcls.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def tuned(prepared, succeed):
    """The console of a fine-tuning in `prepared`, evaluating at its begin and end."""
    return succeed(
        "run_mindformer.py", "--config", "txtcls.yaml", "--train_dataset_dir", "train.mindrecord", "--do_eval", "True",
        "--eval_dataset_dir", "dev.mindrecord", "--options", "trainer.class_weights=balanced", "eval_epoch_interval=9",
        cwd=prepared,
    )  # fmt: skip


def checkpoints(prepared):
    return prepared / "output" / "checkpoint"


def test_a_new_head_learns_and_it_is_said(prepared, tuned):
    assert "not in the file: score.weight (new, and random)" in tuned
    assert "class weights: " in tuned
    lengths = re.search(r"train.mindrecord: 240 rows, padded to (\d+) or (\d+) tokens", tuned)
    assert [int(length) for length in lengths.groups()] == [16, 32]
    (said,) = re.findall(r"step (\d+): the first 16 rows of (?:16|32) tokens, compiling\n", tuned)
    assert len(re.findall(r"evaluation, batch 1: the first 16 rows of 32 tokens, compiling\n", tuned)) == 1
    log = [json.loads(line) for line in (prepared / "output" / "log" / "eval.jsonl").read_text().splitlines()]
    assert log[0]["ACC"] < 0.8
    assert log[-1]["ACC"] > 0.95
    config = json.loads((checkpoints(prepared) / "rank_0" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    kept = yaml.safe_load((prepared / "output" / "finetune_config.yaml").read_text())
    counts = np.bincount(read_rows(inspect(prepared / "train.mindrecord")).labels)
    assert kept["trainer"]["class_weights"] == pytest.approx(list(240 / (2 * counts)))


def test_eval_prints_acc_and_writes_the_result(prepared, tuned, succeed, tmp_path):
    console = succeed(
        "run_mindformer.py", "--config", prepared / "txtcls.yaml", "--run_mode", "eval", "--epochs", 1,
        "--eval_dataset_dir", prepared / "dev.mindrecord", "--load_checkpoint", checkpoints(prepared),
        "--options", "trainer.class_weights=balanced", cwd=tmp_path,
    )  # fmt: skip
    (line,) = (line for line in console.splitlines() if line.startswith("ACC: "))
    during = json.loads((prepared / "output" / "log" / "eval.jsonl").read_text().splitlines()[-1])
    assert float(line.removeprefix("ACC: ")) == during["ACC"]
    result = json.loads((tmp_path / "output" / "eval_result.json").read_text())
    confusion = np.array(result["confusion"])
    assert confusion.sum() == result["rows"] == 50
    assert np.trace(confusion) / 50 == result["ACC"] == during["ACC"]
    assert confusion.sum(1).tolist() == np.bincount(read_rows(inspect(prepared / "dev.mindrecord")).labels).tolist()
    assert result["label_names"] == ["negative", "positive"]
    assert {"loss", "F1", "macro_F1", "MCC"} <= set(result)


def test_predict_gives_names_and_the_probabilities_of_transformers(prepared, tuned, toy, succeed, tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    (tmp_path / "texts.txt").write_text("the quick lazy dog\n\na while the quick brown over seven to new land\n")
    console = succeed(
        "run_mindformer.py", "--config", prepared / "txtcls.yaml", "--run_mode", "predict", "--predict_batch_size", 2,
        "--load_checkpoint", checkpoints(prepared), "--tokenizer", toy.tokenizer,
        "--predict_data", "texts.txt", "a ships sail north ", "--options", "trainer.class_weights=balanced",
        cwd=tmp_path,
    )  # fmt: skip
    lines = (tmp_path / "output" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [entry["label"] for entry in predictions] == ["negative", "positive", "positive"]
    assert predictions[2]["text"] == "a ships sail north"
    assert f"{predictions[0]['label']} (negative {predictions[0]['probability']:.4f}, positive " in console
    succeed(
        "mindgpt/models/gpt2/convert_weight.py", "--reversed", "--mindspore_path",
        newest(prepared),
        "--torch_path", tmp_path / "hf", cwd=tmp_path,
    )  # fmt: skip
    peer = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(toy.tokenizer)
    for entry in predictions:
        with torch.no_grad():
            logits = peer(torch.tensor([tokenizer.encode(entry["text"])])).logits[0]
        expected = dict(zip(["negative", "positive"], logits.softmax(-1).tolist(), strict=True))
        assert entry["probabilities"] == pytest.approx(expected, abs=1e-4)


def newest(prepared):
    return max((checkpoints(prepared) / "rank_0").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def refused(program, prepared, *flags, mode="finetune"):
    """The message of a run that must end before it begins."""
    data = ("--eval_dataset_dir", "dev.mindrecord") if mode == "eval" else ("--train_dataset_dir", "train.mindrecord")
    flags = [*data, *flags] if "--train_dataset_dir" not in flags else flags
    done = program("run_mindformer.py", "--config", "txtcls.yaml", "--run_mode", mode, *flags, cwd=prepared)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_another_number_of_labels_is_refused(prepared, program):
    message = refused(program, prepared, "--options", "model.model_config.num_labels=3")
    assert "train.mindrecord has 2 labels (negative, positive), but model.model_config.num_labels is 3" in message


def test_ranks_of_a_sharded_model_read_the_whole_batch_in_one_length(prepared, monkeypatch):
    from mindgpt.config import load_config
    from mindgpt.config.no_effect import Run
    from mindgpt.config.strategy import Strategy
    from mindgpt.tasks import datasets, labelled_data

    values = {
        "train_dataset.data_loader.dataset_dir": str(prepared / "train.mindrecord"),
        "parallel_config": {"data_parallel": 3, "model_parallel": 2},
        "runner_config.batch_size": 4,
        "runner_config.gradient_accumulation_steps": 2,
    }
    config, _ = load_config(str(prepared / "txtcls.yaml"), values)
    for module in (labelled_data, datasets):
        monkeypatch.setattr(module, "strategy", lambda: Strategy.SEMI_AUTO)
    dataset, _, _ = labelled_data.labelled_training_data(config)
    notes = list(config.notes_without_effect(Run(config, "Ascend", Strategy.SEMI_AUTO)))
    assert any(note.startswith("train_dataset.num_buckets has no effect") for note in notes)
    batches = list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert {ids.shape for ids, _, _ in batches} == {(3 * 4 * 2, 32)}
    assert len(batches) == 240 // 24


def test_evaluating_a_language_model_as_a_classifier_is_refused(prepared, program):
    assert "missing in the file: score.weight [2, 32]" in refused(program, prepared, mode="eval")


def test_labels_in_another_order_are_refused(prepared, tuned, toy, program, succeed):
    succeed(
        TOOL, "--dataset_name", "sst_2", "--input_file", "dev.tsv", "--output_file", "turned.mindrecord",
        "--label_names", "positive", "negative", "--tokenizer_type", toy.tokenizer, cwd=prepared,
    )  # fmt: skip
    flags = ("--eval_dataset_dir", "turned.mindrecord", "--load_checkpoint", checkpoints(prepared))
    done = program("run_mindformer.py", "--config", "txtcls.yaml", "--run_mode", "eval", *flags, cwd=prepared)
    assert done.returncode == 2
    assert "was trained to tell apart negative, positive, in this order" in done.stderr
    assert "--label_names negative positive" in done.stderr


def test_one_class_only_is_refused(prepared, program, toy, succeed):
    (prepared / "one.tsv").write_text("sentence\tlabel\n" + "new land\t1\n" * 20)
    console = succeed(
        TOOL, "--dataset_name", "sst_2", "--input_file", "one.tsv", "--output_file", "one.mindrecord",
        "--tokenizer_type", toy.tokenizer, cwd=prepared,
    )  # fmt: skip
    assert "warning: no row has the label 'negative'" in console
    message = refused(program, prepared, "--train_dataset_dir", "one.mindrecord")
    assert "one.mindrecord: all 20 rows have the label 'positive': there is nothing to learn" in message


def test_rows_longer_than_the_model_are_refused(prepared, program, toy, succeed):
    (prepared / "long.tsv").write_text("sentence\tlabel\n" + "new land " * 40 + "\t1\n" + "old fox\t0\n" * 20)
    succeed(
        TOOL, "--dataset_name", "sst_2", "--input_file", "long.tsv", "--output_file", "long.mindrecord",
        "--tokenizer_type", toy.tokenizer, cwd=prepared,
    )  # fmt: skip
    message = refused(program, prepared, "--train_dataset_dir", "long.mindrecord")
    assert re.search(r"the longest row has \d+ tokens, more than .*seq_length 32.*--max_length 32", message)


def test_mindformers_own_data_train(prepared, succeed, tmp_path):
    """All rows padded to one length, no note of labels' names: as MindFormers 1.5 wrote them."""
    from mindspore.mindrecord import FileWriter

    rows = read_rows(inspect(prepared / "train.mindrecord"))
    writer = FileWriter(str(tmp_path / "mf.mindrecord"), 1)
    columns = ("input_ids", "attention_mask", "labels")
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in columns}, "txtcls")
    for row in range(64):
        ids, mask, label = rows.batch(np.array([row]), 32, 1)
        writer.write_raw_data([dict(zip(columns, (ids[0], mask[0], label), strict=True))])
    writer.commit()
    values = yaml.safe_load((prepared / "txtcls.yaml").read_text())
    values["train_dataset"] |= {"input_columns": list(columns)}
    values["metric"] = {"type": "Accuracy", "eval_type": "classification"}
    values["train_dataset_task"] = {"type": "TextClassificationDataset"}
    (tmp_path / "mf.yaml").write_text(yaml.safe_dump(values))
    console = succeed(
        "run_mindformer.py", "--config", "mf.yaml", "--train_dataset_dir", "mf.mindrecord", "--epochs", 1,
        cwd=tmp_path,
    )  # fmt: skip
    assert "mf.mindrecord: 64 rows, padded to" in console
    losses = [json.loads(line)["loss"] for line in (tmp_path / "output/log/train.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
