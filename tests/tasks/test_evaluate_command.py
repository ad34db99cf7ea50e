"""`run_mindformer.py --run_mode eval`, as a user types it: against training, transformers and the published recipe."""

import ast
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mindgpt.data.dataset import build_dataset
from mindgpt.tasks.evaluate import Perplexity
from tests.models.kernel_support import skip_without_kernels

PREFIX = "PerplexityMetric: "


def printed(console):
    """The values in the line that MindFormers printed too."""
    (line,) = (line for line in console.splitlines() if line.startswith(PREFIX))
    values = ast.literal_eval(line.removeprefix(PREFIX))
    assert list(values) == ["PerplexityMetric"]
    assert list(values["PerplexityMetric"]) == ["loss", "PPL"]
    return values["PerplexityMetric"]


@pytest.fixture(scope="module")
def evaluate(toy, succeed, tmp_path_factory):
    """Evaluate: (what it printed, the folder it ran in)."""

    def run(weights, data=toy.valid, *flags, env=None):
        cwd = tmp_path_factory.mktemp("eval")
        arguments = ["--config", toy.yaml, "--run_mode", "eval", "--epochs", 1, "--eval_dataset_dir", data]
        return succeed("run_mindformer.py", *arguments, "--load_checkpoint", weights, *flags, cwd=cwd, env=env), cwd

    return run


@pytest.fixture(scope="module")
def peer(trained, succeed, tmp_path_factory):
    """The trained weights in transformers, through the real converter."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    pytest.importorskip("torch", reason="the oracle is transformers on torch")
    folder = tmp_path_factory.mktemp("peer")
    succeed(
        "mindgpt/models/gpt2/convert_weight.py", "--reversed", "--mindspore_path", trained.last_checkpoint,
        "--torch_path", folder / "hf", cwd=folder,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel.from_pretrained(folder / "hf").eval()


def losses_of_rows(peer, data):
    """For each row of a data set the losses of its predicted tokens, by transformers, in float64."""
    import torch

    rows = []
    for ids, mask in build_dataset(data, batch_size=1, drop_remainder=False).create_tuple_iterator(output_numpy=True):
        tokens = torch.tensor(ids).long()
        with torch.no_grad():
            logits = peer(tokens[:, :-1], attention_mask=torch.tensor(mask[:, :-1])).logits.double()
        losses = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="none")
        rows.append(losses.numpy()[mask[0, 1:] == 1])
    return rows


@pytest.mark.parametrize("metadata", [{}, {"padding_target": True}], ids=["text", "padding_target"])
def test_data_whose_padding_is_a_target_is_reported(metadata):
    measure = object.__new__(Perplexity)
    measure.metric = SimpleNamespace(tokens=3, batch_means=False)
    measure.info = SimpleNamespace(metadata=metadata)
    lines = list(measure.lines({"loss": 1.0, "PPL": 2.7}, 1.0))
    assert any("made with --padding_target" in line for line in lines) == bool(metadata)


def test_a_run_s_folder_gives_the_number_that_training_gave(trained, evaluate):
    during = json.loads((trained.output / "log" / "eval.jsonl").read_text().splitlines()[-1])
    console, cwd = evaluate(trained.output / "checkpoint")
    assert printed(console) == pytest.approx({"loss": during["loss"], "PPL": during["PPL"]}, rel=1e-6)
    assert "the newest in" in console
    assert " is toy_rank_0-2_10.ckpt" in console
    assert [entry.name for entry in cwd.iterdir()] == ["output"]
    result = json.loads((cwd / "output" / "eval_result.json").read_text())
    assert {key: result[key] for key in ("loss", "PPL")} == printed(console)
    assert (cwd / "output" / "eval_config.yaml").exists()


def test_a_named_file_gives_the_perplexity_of_transformers(trained, toy, peer, evaluate):
    console, _ = evaluate(trained.output / "checkpoint_network" / "rank_0" / "toy_rank_0-2_10-network.ckpt")
    rows = losses_of_rows(peer, toy.valid)
    assert len(rows) % 8 != 0, "the last batch must be short"
    assert 0 < len(rows[-1]) < 32, "the last row must be padded"
    mean = np.concatenate(rows).mean()
    assert printed(console)["loss"] == pytest.approx(mean, rel=1e-4)
    assert printed(console)["PPL"] == pytest.approx(np.exp(mean), rel=1e-4)
    assert f"{sum(map(len, rows)):,} predicted tokens" in console


def test_without_the_kernels_it_is_the_same_and_said(trained, evaluate):
    skip_without_kernels()
    line = "takes longer than mindgpt's kernels would: MINDGPT_CPU_KERNELS is 0"
    by_kernels, _ = evaluate(trained.last_checkpoint)
    by_operators, _ = evaluate(trained.last_checkpoint, env={"MINDGPT_CPU_KERNELS": "0"})
    assert line not in by_kernels
    assert line in by_operators
    assert printed(by_operators) == pytest.approx(printed(by_kernels), rel=1e-4)


def test_data_of_the_published_recipe_gives_the_mean_of_batch_means(trained, toy, peer, evaluate, succeed, tmp_path):
    text = toy.train.with_suffix(".txt").read_text().splitlines()
    sections = [f" = Heading {number} = \n {' '.join(text[number * 5 : number * 5 + 5])} \n" for number in range(8)]
    (tmp_path / "wiki.tokens").write_text("\n".join(sections))
    succeed(
        "tools/dataset_preprocess/gpt2/wikitext2_data_process.py", "--input_file", "wiki.tokens", "--output_file",
        "wiki.mindrecord", "--max_length", 32, "--tokenizer_type", toy.tokenizer, "--compat", "mindformers",
        cwd=tmp_path,
    )  # fmt: skip
    rows = losses_of_rows(peer, tmp_path / "wiki.mindrecord")
    size = next(size for size in (4, 5, 6) if len(rows) % size)
    console, _ = evaluate(trained.last_checkpoint, tmp_path / "wiki.mindrecord", "--batch_size", size)
    batches = [np.concatenate(rows[start : start + size]).mean() for start in range(0, len(rows), size)]
    assert np.mean(batches) != pytest.approx(np.concatenate(rows).mean(), rel=1e-5), "the recipes must differ here"
    assert printed(console)["loss"] == pytest.approx(np.mean(batches), rel=1e-6)
    assert printed(console)["PPL"] == pytest.approx(np.exp(np.mean(batches)), rel=1e-5)
    (line,) = (line for line in console.splitlines() if line.startswith("loss is the mean of batch means"))
    weighted = ast.literal_eval(line.split("each token counted once: ")[1])
    assert weighted["loss"] == pytest.approx(np.concatenate(rows).mean(), rel=1e-6)
