"""The whole of wiki.valid.tokens through the commands: its perplexity against transformers' on the same blocks."""

import ast
import sys

import numpy as np
import pytest

from tests import programs

torch = pytest.importorskip("torch", reason="the oracle needs torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

LENGTH = 256


def command(repo, folder, program, *arguments):
    ended = programs.run([sys.executable, repo / program, *arguments], folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def reference_loss(model, path):
    """Mean negative log-likelihood of every real token that has one before it in its block."""
    from mindspore.mindrecord import FileReader

    total, count = 0.0, 0
    rows = list(FileReader(str(path)).get_next())
    for start in range(0, len(rows), 4):
        ids = torch.tensor(np.stack([row["input_ids"] for row in rows[start : start + 4]])).long()
        mask = torch.tensor(np.stack([row["attention_mask"] for row in rows[start : start + 4]])).long()
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits[:, :-1]
        rows_of_logits, targets = logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
        losses = torch.nn.functional.cross_entropy(rows_of_logits, targets, reduction="none")
        total += (losses * mask[:, 1:].reshape(-1)).sum(dtype=torch.float64).item()
        count += mask[:, 1:].sum().item()
    return total / count, count


def test_perplexity_of_all_blocks(repo, shared_data, gpt2_tokenizer_dir, tmp_path):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": LENGTH, "initializer_range": 0.5}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    model.save_pretrained(tmp_path / "hf")
    text, data = shared_data / "wikitext-2" / "wiki.valid.tokens", tmp_path / "valid.mindrecord"
    tool = "tools/dataset_preprocess/gpt2/wikitext2_data_process.py"
    arguments = ["--max_length", LENGTH, "--tokenizer_type", gpt2_tokenizer_dir]
    command(repo, tmp_path, tool, "--input_file", text, "--output_file", data, *arguments)
    convert = "mindgpt/models/gpt2/convert_weight.py"
    command(repo, tmp_path, convert, "--torch_path", "hf", "--mindspore_path", "model.ckpt")
    options = ["seq_length=256", "hidden_size=32", "num_layers=2", "num_heads=2", "compute_dtype=float32"]
    printed = command(
        repo,
        tmp_path,
        "run_mindformer.py",
        *("--config", repo / "configs/gpt2/pretrain_gpt2_small_fp16.yaml", "--run_mode", "eval", "--epochs", 1),
        *("--device_target", "CPU", "--load_checkpoint", "model.ckpt", "--eval_dataset_dir", data, "--batch_size", 16),
        *("--options", *(f"model.model_config.{option}" for option in options)),
    )
    line = next(line for line in printed.splitlines() if line.startswith("PerplexityMetric: "))
    values = ast.literal_eval(line.removeprefix("PerplexityMetric: "))["PerplexityMetric"]
    loss, tokens = reference_loss(model, data)
    assert tokens > 240_000, "the whole file"
    assert values["PPL"] == pytest.approx(np.exp(loss), rel=1e-4)
    assert values["PPL"] > 1.2 * 50257, "far from the uniform answer, which any broken model would give"
