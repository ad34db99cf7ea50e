"""GPT2_ML as a user types it: the shipped YAML files at toy size, from random weights to text.

The oracle is GPT2_ML in PyTorch, on the weights that a run has left.
"""

import ast
import json
import math
import random
import runpy
import sys

import mindspore.dataset as ds
import numpy as np
import pytest

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_ml_names import tensorflow_table
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.tasks.main import main
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer

pytest.importorskip("torch")
from tests.models.gpt2_ml_reference import loss_and_gradients, reference_logits

pytestmark = pytest.mark.usefixtures("cpu", "unfused")

SENTENCES = ["天地玄黄", "宇宙洪荒", "日月盈昃", "辰宿列张", "寒来暑往", "秋收冬藏"]
SPECIAL = ["[PAD]", *(f"[unused{number}]" for number in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, "。", *"".join(SENTENCES)]
ROWS, LAYERS, LENGTH = 8, 2, 20  # a row of the data is four sentences with their ends, and [SEP]
PRETRAINED = "pretrained/checkpoint"
OPTIONS = (
    "context.enable_graph_kernel=False", f"model.model_config.num_layers={LAYERS}", "model.model_config.num_heads=4",
    "model.model_config.hidden_size=32", f"model.model_config.vocab_size={len(TOKENS)}",
    f"model.model_config.seq_length={LENGTH}", "model.model_config.max_position_embeddings=32",
    "model.model_config.initializer_range=0.2", "model.model_config.hidden_dropout_rate=0.0",
)  # fmt: skip
CLASSIFIER = (
    "trainer.type=TextClassificationTrainer", "model.arch.type=GPT2ForSequenceClassification",
    "model.model_config.num_labels=2", "metric.type=Accuracy",
)  # fmt: skip


def tool(repo, path, *words):
    runpy.run_path(str(repo / "tools" / path))["main"](list(map(str, words)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, repo):
    """A tokenizer, rows of text, and texts with labels."""
    folder = tmp_path_factory.mktemp("gpt2_ml")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    WordPieceTokenizer(folder / "vocab.txt", rules="bert4keras").save_pretrained(folder / "tokenizer")
    pick = random.Random(0)
    lines = ["。".join(pick.choices(SENTENCES, k=4)) + "。" for _ in range(ROWS)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = ("--tokenizer_type", folder / "tokenizer", "--output_file")
    tool(
        repo, "dataset_preprocess/text_to_mindrecord.py", "--input_file", folder / "text.txt", "--document_per", "line",
        "--packing", "none", "--max_length", LENGTH + 1, *given, folder / "text.mindrecord",
    )  # fmt: skip
    labelled = [f"{int(line[0] in '天宇日')}\t{line[:5]}" for line in lines * 4]
    (folder / "labelled.tsv").write_text("label\ttext_a\n" + "\n".join(labelled) + "\n", encoding="utf-8")
    tool(
        repo, "dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py", "--dataset_name", "chnsenticorp",
        "--input_file", folder / "labelled.tsv", "--max_length", LENGTH, *given, folder / "labelled.mindrecord",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def run(repo, folder):
    """Run the program in this process: `run(file of configs/gpt2_ml, flags, options=...)` -> what it printed."""

    def run(name, *flags, options=()):
        words = ["--config", repo / f"configs/gpt2_ml/{name}_fp16.yaml", *flags, "--options", *OPTIONS, *options]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.chdir(folder)
            for variable in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
                patch.delenv(variable, raising=False)
            patch.setattr(sys, "argv", ["run_mindformer.py", *map(str, words)])
            main()
        assert end.value.code == 0

    return run


@pytest.fixture(scope="module")
def pretrained(run, folder):
    """The losses of a pretraining from random weights; its output is in `pretrained/`."""
    run(
        "pretrain_gpt2_ml_base", "--train_dataset_dir", "text.mindrecord", "--output_dir", "pretrained",
        "--epochs", 40, "--batch_size", ROWS, options=("lr_schedule.learning_rate=0.02", "lr_schedule.warmup_steps=5"),
    )  # fmt: skip
    return losses(folder / "pretrained")


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "log" / "train.jsonl").read_text().splitlines()]


def theirs(path):
    """The weights of a run, or of a file, under TensorFlow's names, and their config."""
    file = path if path.is_file() else next((path / "rank_0").glob("*.ckpt"))
    held = CheckpointFile(file)
    weights = {row.name: row.fuse([held.read(name) for name in row.ours]) for row in tensorflow_table(LAYERS)}
    return weights, GPT2Config.from_pretrained(file.parent)


def expected_loss(path, data):
    """What PyTorch computes of all rows with the weights of a run."""
    rows = [row["input_ids"] for row in ds.MindDataset(str(data)).create_dict_iterator(1, output_numpy=True)]
    assert {len(row) for row in rows} == {LENGTH + 1}
    return loss_and_gradients(*theirs(path), np.stack(rows))[0]


def metric(printed, name):
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{name}: "))
    return ast.literal_eval(line.removeprefix(f"{name}: "))


def evaluated(run, capsys, name, weights):
    run(name, "--run_mode", "eval", "--eval_dataset_dir", "text.mindrecord", "--load_checkpoint", weights)
    return metric(capsys.readouterr().out, "PerplexityMetric")["PerplexityMetric"]


def test_pretraining_learns_and_evaluation_says_what_pytorch_says(pretrained, run, folder, capsys):
    assert pretrained[-1] < 0.5 * pretrained[0]
    found = evaluated(run, capsys, "pretrain_gpt2_ml_base", PRETRAINED)
    loss = expected_loss(folder / PRETRAINED, folder / "text.mindrecord")
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["PPL"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_fine_tuning_goes_on_from_the_weights(pretrained, run, folder):
    run(
        "finetune_gpt2_ml_base", "--train_dataset_dir", "text.mindrecord", "--load_checkpoint", PRETRAINED,
        "--output_dir", "finetuned", "--epochs", 3, "--batch_size", ROWS, options=("lr_schedule.learning_rate=0.01",),
    )  # fmt: skip
    found = losses(folder / "finetuned")
    assert found[0] == pytest.approx(expected_loss(folder / PRETRAINED, folder / "text.mindrecord"), rel=1e-5)
    assert found[-1] < found[0]
    config = theirs(folder / "finetuned/checkpoint")[1]
    assert (config.variant, config.hidden_act) == ("gpt2_ml", "gelu_erf")


def test_lora_is_merged_into_weights_of_which_pytorch_says_the_same(pretrained, run, repo, folder, capsys, monkeypatch):
    run(
        "finetune_gpt2_ml_base_lora", "--train_dataset_dir", "text.mindrecord", "--load_checkpoint", PRETRAINED,
        "--output_dir", "lora", "--epochs", 5, "--batch_size", ROWS, options=("lr_schedule.learning_rate=0.02",),
    )  # fmt: skip
    with_factors = evaluated(run, capsys, "finetune_gpt2_ml_base_lora", "lora/checkpoint")
    words = ["--src_ckpt_path_or_dir", folder / "lora/checkpoint", "--dst_ckpt_dir", folder / "merged"]
    monkeypatch.setattr(sys, "argv", ["transform_ckpt_lora.py", *map(str, words), "--prefix", "merged_"])
    runpy.run_path(str(repo / "tools/transform_ckpt_lora.py"))["main"]()
    (merged,) = (folder / "merged").rglob("*.ckpt")
    assert with_factors["loss"] == pytest.approx(expected_loss(merged, folder / "text.mindrecord"), rel=1e-5)
    assert with_factors["loss"] < losses(folder / "lora")[0]


def test_a_classifier_learns_from_the_weights(pretrained, run, capsys):
    run(
        "finetune_gpt2_ml_base", "--train_dataset_dir", "labelled.mindrecord", "--load_checkpoint", PRETRAINED,
        "--output_dir", "classifier", "--epochs", 8, "--batch_size", ROWS,
        options=("lr_schedule.learning_rate=0.02", *CLASSIFIER),
    )  # fmt: skip
    run(
        "finetune_gpt2_ml_base", "--run_mode", "eval", "--eval_dataset_dir", "labelled.mindrecord",
        "--load_checkpoint", "classifier/checkpoint", options=CLASSIFIER,
    )  # fmt: skip
    assert metric(capsys.readouterr().out, "ACC") > 0.9


def test_greedy_text_is_that_of_recomputing_the_whole_row(pretrained, run, folder):
    """By the rules of the end token: the first 。 that is the fourth new token or a later one."""
    least, most = 4, 12
    prompts = ["天地", "宇宙洪荒。日月", "寒"]
    run(
        "predict_gpt2_ml_base", "--load_checkpoint", PRETRAINED, "--tokenizer", "tokenizer", "--predict_data", *prompts,
        "--output_dir", "text",
        options=(
            "model.model_config.do_sample=False", f"model.model_config.min_new_tokens={least}",
            f"model.model_config.max_new_tokens={most}",
        ),
    )  # fmt: skip
    (weights, config), lengths = theirs(folder / PRETRAINED), []
    lines = (folder / "text/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for prompt, line in zip(prompts, lines, strict=True):
        ids, new = list(map(TOKENS.index, prompt)), []
        while len(new) < most and not (len(new) >= least and TOKENS[new[-1]] == "。"):
            new.append(int(reference_logits(weights, config, np.array([ids + new]))[0, -1].argmax()))
        assert json.loads(line)["generated_text"] == prompt + "".join(TOKENS[number] for number in new)
        lengths.append(len(new))
    assert len(set(lengths)) > 1 and min(lengths) < most, "there must be texts that their ends have ended"
