"""Ranks of a sharded model start with their own shards, and read no others (simulated Ascend)."""

import json
import sys

import numpy as np
import pytest
import yaml

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.gpt2_views import HuggingFaceView
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.strategy_format import read_strategy
from mindgpt.checkpoints.tensor_source import tensors
from mindgpt.checkpoints.transform import transform
from mindgpt.checkpoints.weights import save_checkpoint
from tests.checkpoints.test_sharded_checkpoint import write_strategy
from tests.programs import run_simulated

pytestmark = pytest.mark.needs_ascend
SIZES = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 304, "seq_length": 32}
SETTINGS = {
    "run_mode": "train",
    "use_parallel": True,
    "parallel": {"parallel_mode": 1},
    "parallel_config": {
        "data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 2, "optimizer_shard": True
    },
    "runner_config": {"batch_size": 8},
    "lr_schedule": {"type": "constant", "learning_rate": 0.01},
    "train_dataset": {"input_columns": ["input_ids", "attention_mask"]},
    "model": {"model_config": SIZES},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory, cpu):
    """The weights of a toy model in four formats."""
    folder, draw = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES))
    values = {name: draw.standard_normal(p.shape).astype(np.float32) for name, p in model.parameters_dict().items()}
    ckpt = folder / "ckpt" / "x.ckpt"
    save_checkpoint(ckpt, values)
    model.config.save_pretrained(ckpt.parent, type(model).__name__)
    held = CheckpointFile(ckpt)
    for name in ("plain", "hf"):
        (folder / name).mkdir()
    write_safetensors(folder / "plain" / "x.safetensors", held.entries, tensors(held))
    theirs, tied = HuggingFaceView(held), "transformer.wte.weight"
    write_safetensors(
        folder / "hf" / "model.safetensors",
        theirs.entries | {"lm_head.weight": theirs.entries[tied]},
        [*tensors(theirs), ("lm_head.weight", theirs.read(tied))],
    )
    content = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 304, "n_positions": 32}
    (folder / "hf" / "config.json").write_text(json.dumps(content))
    by_rows = {name: ([4], [0, *([-1] * (len(info.shape) - 1))], 0, 0) for name, info in held.entries.items()}
    write_strategy(folder / "run" / "strategy" / "ckpt_strategy_rank_0.ckpt", by_rows)
    assert read_strategy(folder / "run" / "strategy").ranks == 4
    transform(ckpt, folder / "run" / "checkpoint", target_strategy=folder / "run" / "strategy")
    return [ckpt, folder / "plain" / "x.safetensors", folder / "hf", folder / "run" / "checkpoint"]


@pytest.mark.parametrize(
    ("rank", "dtype"),  # a rank of the last stage, and of the first
    [
        (7, "float16"),
        pytest.param(7, "float32", marks=pytest.mark.slow),
        pytest.param(2, "float32", marks=pytest.mark.slow),
        pytest.param(2, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_rank_has_mindspores_shards_and_reads_no_more(repo, files, tmp_path, rank, dtype):
    network = SIZES | {"param_init_type": dtype, "compute_dtype": "bfloat16" if dtype == "bfloat16" else "float16"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS | {"model": {"model_config": network}}))
    program = repo / "tests" / "tasks" / "start_rank.py"
    done = run_simulated([sys.executable, program, "run.yaml", *files], rank, 8, cwd=tmp_path, python_path=[repo])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["made"] == []
    assert found["rounded"] == []
    assert found["loaded"] == {str(file): [] for file in files}
    assert found["read"] == found["held"]
