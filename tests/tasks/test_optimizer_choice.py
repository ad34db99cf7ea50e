"""Training with another optimizer than AdamW, as a user types it."""

import json
import re

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.config.loader import load_config
from mindgpt.config.optimizer_sections import OPTIMIZER_KEYS
from mindgpt.train.schedules import learning_rates_of_run

SCHEDULE = "lr_schedule: {type: constant, learning_rate: 0.01, warmup_steps: 4}\n"


def yaml_with(toy, path, optimizer, schedule=SCHEDULE):
    text = toy.yaml.read_text()
    assert SCHEDULE in text
    path.write_text(text.replace(SCHEDULE, schedule + f"optimizer: {{{optimizer}}}\n"))
    return path


def test_adafactor_with_its_own_step_sizes(toy, succeed, tmp_path):
    config = yaml_with(toy, tmp_path / "adafactor.yaml", "type: adafactor, relative_step: True", schedule="")
    console = succeed("run_mindformer.py", "--config", config, "--train_dataset_dir", toy.train, cwd=tmp_path)
    assert "state bytes a parameter (AdamW would hold 8.00)" in console
    assert "learning rate: AdaFactor's relative step, highest 0.01 at step 1, 0.01 at the end" in console
    records = [json.loads(line) for line in (tmp_path / "output/log/train.jsonl").read_text().splitlines()]
    assert len(records) == 20
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-2] * 20, rel=1e-6)
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    checkpoint = tmp_path / "output/checkpoint/rank_0/toy_rank_0-2_10.ckpt"
    entries = CheckpointFile(checkpoint).entries
    table = "backbone.embedding.word_embedding.embedding_table"
    assert (entries[f"exp_avg_sq_row_{table}"].shape, entries[f"exp_avg_sq_col_{table}"].shape) == ((300,), (32,))
    row = CheckpointFile(checkpoint).read(f"exp_avg_sq_row_{table}")
    assert (row > 0).sum() > 20, "the tokens of the text have been followed"
    assert np.isfinite(row).all()
    again = succeed(
        "run_mindformer.py", "--config", config, "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
        "--load_checkpoint", checkpoint, cwd=tmp_path,
    )  # fmt: skip
    skipped = sum(name.startswith(("adafactor_", "exp_avg_sq_")) for name in entries)
    assert f"{skipped} skipped (optimizer state)" in again
    assert "'PPL'" in again


def test_every_yaml_of_the_guide_is_read(repo, tmp_path):
    guide = (repo / "docs/guide.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", guide[guide.index("## Optimizers") : guide.index("## Weights")], re.S)
    chosen = set()
    for block in blocks:
        (tmp_path / "x.yaml").write_text(block)
        config, _ = load_config(tmp_path / "x.yaml")
        learning_rates_of_run(config.lr_schedule, config.optimizer, 100)
        chosen |= {config.optimizer.type, config.lr_schedule and config.lr_schedule.type}
    assert {*OPTIMIZER_KEYS, "noam", "inverse_sqrt", "constant_with_cooldown"} <= chosen


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("type: Came", "bad.yaml:4: optimizer.type: must be one of adamw, adafactor, lion, sgd, not 'Came'"),
        ("type: lion, eps: 1.0e-8", "bad.yaml:4: optimizer.eps: has no effect on the optimizer 'lion', which obeys be"),
        ("type: adafactor, relative_step: True", "bad.yaml:3: lr_schedule: has no effect with optimizer.relative_step"),
    ],
)
def test_what_is_refused(toy, program, tmp_path, optimizer, message):
    lines = toy.yaml.read_text().split(SCHEDULE)[0].count("\n")
    config = yaml_with(toy, tmp_path / "bad.yaml", optimizer)
    done = program("run_mindformer.py", "--config", config, "--train_dataset_dir", toy.train, cwd=tmp_path)
    assert done.returncode == 2
    assert message.replace(":4:", f":{lines + 2}:").replace(":3:", f":{lines + 1}:") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
