"""Semi-automatic parallelism with data_parallel alone: each rank has the whole model, and rank 0 writes it."""

import json
import sys

import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.run_folder import record_checkpoints
from mindgpt.checkpoints.weights import save_checkpoint
from tests.programs import run_simulated

pytestmark = pytest.mark.needs_ascend


@pytest.fixture
def card(repo, toy, tmp_path):
    """Start as one of two ranks: `card(rank, {parallel_config}, arguments)` -> the finished process."""

    def run(rank, layout, *arguments):
        command = [
            sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
            "--use_parallel", "True", *arguments, "--options", "parallel.parallel_mode=1", "parallel_config=" + layout,
        ]  # fmt: skip
        done = run_simulated(command, rank, 2, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_rank_0_writes_the_model_and_all_resume_from_it(card, tmp_path):
    checkpoints = tmp_path / "output" / "checkpoint"
    for rank in (1, 0):
        card(rank, "{data_parallel: 2}")
        assert [folder.name for folder in checkpoints.glob("rank_*")] == ["rank_0"] * (rank == 0)
    (path,) = (checkpoints / "rank_0").glob("*.ckpt")
    file = CheckpointFile(path)
    state = json.loads(file.texts["training_state"]) | {"step": 4}
    later = path.with_name("toy_rank_0-1_4.ckpt")
    entries = {name: file.read(name) for name in file.entries}
    save_checkpoint(later, {**entries, "training_state": json.dumps(state)})
    record_checkpoints(path.parent, [path, later])
    resumed = [card(rank, "{data_parallel: 2}", "--resume_training", "True") for rank in (1, 0)]  # 1 prints nothing
    assert f"resuming from {later.relative_to(tmp_path)}, after step 4" in resumed[1].stdout


@pytest.mark.slow
def test_every_rank_writes_its_shards_where_the_optimizer_is_sharded(card, tmp_path):
    card(1, "{data_parallel: 2, optimizer_shard: True}")
    assert [folder.name for folder in (tmp_path / "output" / "checkpoint").iterdir()] == ["rank_1"]
