"""When checkpoints are written, which are kept, and what a killed writer leaves."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.run_folder import Step as StepNumber
from mindgpt.checkpoints.run_folder import by_step, checkpoints_in
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.callback_sections import CheckpointMonitorSection
from mindgpt.config.errors import UserError
from mindgpt.io.processes import MACHINE
from mindgpt.train import checkpoint_monitor
from mindgpt.train.checkpoint_monitor import CheckpointMonitor, files_to_continue
from mindgpt.train.progress import RunProgress
from tests.last_checkpoint import last_checkpoint


class Network(nn.Cell):
    """Two weights, one of them frozen."""

    def __init__(self):
        super().__init__()
        self.free = Parameter(Tensor([1.0, 2.0], ms.float32), name="free")
        self.frozen = Parameter(Tensor([3.0], ms.float32), name="frozen", requires_grad=False)


class Step(nn.Cell):
    """What the monitor sees of a train step: the network, optimizer state, sums of unfinished accumulation."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network
        self.moment = Parameter(Tensor([4.0, 5.0], ms.float32), name="adam_m.free", requires_grad=False)
        self.sums = Parameter(Tensor([0.0, 0.0], ms.float32), name="accu_grads.free", requires_grad=False)


@pytest.fixture
def monitor(tmp_path):
    """A function that runs a training of 2 epochs of 5 steps under a monitor; it returns the names that are left."""

    def run(steps=10, ended=True, rank=0, is_sharded=False, begin=0, after_step=lambda step: None, **settings):
        network = Network()
        section = CheckpointMonitorSection(prefix="x", **settings)
        config = GPT2Config(num_layers=1, hidden_size=8, num_heads=1, vocab_size=10, seq_length=4)
        callback = CheckpointMonitor(
            section, RunProgress(2, 5), tmp_path / "output", network, config, rank, is_sharded=is_sharded
        )
        state = SimpleNamespace(cur_step_num=begin, train_network=Step(network))
        context = SimpleNamespace(original_args=lambda: state)
        callback.on_train_begin(context)
        for _ in range(steps):
            state.cur_step_num += 1
            network.free.set_data(network.free + 1)
            callback.on_train_step_end(context)
            after_step(state.cur_step_num)
        if ended:
            callback.on_train_end(context)
        return sorted(file.name for file in (tmp_path / "output" / "checkpoint" / f"rank_{rank}").glob("*.ckpt"))

    return run


def names(*numbers, rank=0):
    return sorted(f"x_rank_{rank}-{number}.ckpt" for number in numbers)


def test_save_interval_and_last_step(monitor):
    assert monitor(save_checkpoint_steps=3, keep_checkpoint_max=0) == names("1_3", "2_1", "2_4", "2_5")


def test_the_last_step_is_saved_once_and_the_oldest_are_deleted(monitor, tmp_path):
    assert monitor(save_checkpoint_steps=2, keep_checkpoint_max=3, save_trainable_params=True) == names(
        "2_1", "2_3", "2_5"
    )
    for kind in ("network", "trainable"):
        folder = tmp_path / "output" / f"checkpoint_{kind}" / "rank_0"
        kept = {f"x_rank_0-{number}-{kind}.ckpt" for number in ("2_1", "2_3", "2_5")}
        assert {file.name for file in folder.iterdir()} == kept | {"config.json", "meta.json"}


def test_sharded_model_keeps_a_complete_checkpoint_while_the_next_is_written(monitor):
    """At any moment another card may have written one checkpoint less."""
    assert monitor(save_checkpoint_steps=2, keep_checkpoint_max=1, is_sharded=True) == names("2_3", "2_5")
    assert monitor(save_checkpoint_steps=2, keep_checkpoint_max=0, rank=1, is_sharded=True) == names(
        "1_2", "1_4", "2_1", "2_3", "2_5", rank=1
    )


def test_steps_0_means_only_at_the_end(monitor):
    assert monitor(save_checkpoint_steps=0, rank=3) == names("2_5", rank=3)


def test_save_checkpoint_seconds(monitor, monkeypatch):
    clock = iter(range(0, 1000, 40))  # every look at it is 40 s later
    monkeypatch.setattr(checkpoint_monitor.time, "monotonic", lambda: next(clock))
    # Looks: at the start (0), then one a step; one more when saved. 100 s have passed at steps 3, 6 and 9.
    assert monitor(save_checkpoint_steps=0, save_checkpoint_seconds=100, keep_checkpoint_max=0, ended=False) == names(
        "1_3", "2_1", "2_4"
    )


def test_checkpoint_contents(monitor, tmp_path):
    monitor(save_checkpoint_steps=0, save_trainable_params=True)

    def read(folder, name):
        file = CheckpointFile(tmp_path / "output" / folder / "rank_0" / name)
        return {entry: file.read(entry).tolist() for entry in file.entries}

    network = {"free": [11.0, 12.0], "frozen": [3.0]}
    whole = {**network, "adam_m.free": [4.0, 5.0], "epoch_num": 2, "step_num": 10}
    assert read("checkpoint", "x_rank_0-2_5.ckpt") == whole
    assert read("checkpoint_network", "x_rank_0-2_5-network.ckpt") == network
    assert read("checkpoint_trainable", "x_rank_0-2_5-trainable.ckpt") == {"free": [11.0, 12.0]}
    for folder in ("checkpoint", "checkpoint_network", "checkpoint_trainable"):
        assert GPT2Config.from_pretrained(tmp_path / "output" / folder / "rank_0").hidden_size == 8


def test_an_error_of_the_disk_leaves_the_last_one(monitor, tmp_path, monkeypatch):
    def fails(path, values):
        if path.name.endswith("1_4.ckpt"):
            raise UserError(f"Cannot write {path}: No space left on device.")
        save_checkpoint(path, values)

    monkeypatch.setattr(checkpoint_monitor, "save_checkpoint", fails)
    with pytest.raises(UserError, match="No space left"):
        monitor(save_checkpoint_steps=2, keep_checkpoint_max=1)
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    assert last_checkpoint(folder).name == "x_rank_0-1_2.ckpt"
    assert CheckpointFile(last_checkpoint(folder)).read("free").tolist() == [3.0, 4.0]


# ---- async_save ------------------------------------------------------------------------------------------------------


def test_saving_in_the_background_writes_the_same_files(monitor, tmp_path):
    settings = {"save_checkpoint_steps": 2, "keep_checkpoint_max": 3, "save_trainable_params": True}
    files = []
    for wanted in (False, True):
        monitor(async_save=wanted, **settings)
        output = tmp_path / "output"
        files.append({path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()})
        output.rename(tmp_path / f"output-{wanted}")
    assert len(files[0]) == 3 * (3 + 2)
    assert files[0] == files[1]


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(monitor, tmp_path, monkeypatch):
    """Writing takes as long as the test says; the weights that it writes are those of its step."""
    begins, may_write, steps = threading.Event(), threading.Event(), []

    def waits(path, values):
        begins.set()
        assert may_write.wait(60)
        save_checkpoint(path, values)

    def after_step(step):
        steps.append(step)
        if step == 3:  # the checkpoint of step 2 is being written, and the next save is at step 4
            assert begins.wait(60)
            assert not list((tmp_path / "output").rglob("*_2.ckpt"))
            may_write.set()
        if step == 4:
            assert len(list((tmp_path / "output" / "checkpoint").rglob("*-1_2.ckpt"))) == 1

    monkeypatch.setattr(checkpoint_monitor, "save_checkpoint", waits)
    settings = {"save_checkpoint_steps": 2, "keep_checkpoint_max": 0, "save_network_params": False}
    left = monitor(async_save=True, after_step=after_step, **settings)
    assert steps == list(range(1, 11))
    assert left == names("1_2", "1_4", "2_1", "2_3", "2_5")
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    values = [CheckpointFile(folder / f"x_rank_0-{at}.ckpt").read("free").tolist() for at in ("1_2", "1_4", "2_5")]
    assert values == [[3.0, 4.0], [5.0, 6.0], [11.0, 12.0]]


def test_an_error_in_the_background_ends_the_training(monitor, tmp_path, monkeypatch):
    def fails(path, values):
        if path.name.endswith("1_4.ckpt"):
            raise UserError(f"Cannot write {path}: No space left on device.")
        save_checkpoint(path, values)

    monkeypatch.setattr(checkpoint_monitor, "save_checkpoint", fails)
    done = []
    with pytest.raises(UserError, match="No space left"):
        monitor(save_checkpoint_steps=2, async_save=True, after_step=done.append)
    assert 4 <= len(done) <= 5  # the save after the failed one would be that of step 6
    assert last_checkpoint(tmp_path / "output" / "checkpoint" / "rank_0").name == "x_rank_0-1_2.ckpt"


def test_a_sharded_model_keeps_two_spare_checkpoints(monitor):
    """One card may have written the newest while another has only copied the one before."""
    settings = {"save_checkpoint_steps": 2, "keep_checkpoint_max": 1, "is_sharded": True, "async_save": True}
    assert monitor(**settings) == names("2_1", "2_3", "2_5")


def test_the_newest_checkpoint_is_the_highest_step(tmp_path):
    others = ("note-99_1.txt", "model.ckpt", ".a-99_9.ckpt.tmp-1-2")
    for name in ("a-2_9.ckpt", "a-2_10.ckpt", "a-10_1.ckpt", "z-1_1.ckpt", *others):
        (tmp_path / name).write_text("")
    assert last_checkpoint(tmp_path).name == "a-10_1.ckpt"
    assert checkpoints_in(tmp_path / "none") == []


# ---- kill -9 ---------------------------------------------------------------------------------------------------------

_KILLED_HALF_WAY = """
import os, sys
import numpy as np
from mindgpt.checkpoints.mindspore_format import write_checkpoint
def items():
    yield "free", np.zeros(100_000, np.float32)
    os.kill(os.getpid(), 9)
write_checkpoint(sys.argv[1], items())
"""


def test_the_next_writer_removes_leftovers_of_a_killed_one(repo, tmp_path):
    path = tmp_path / "x-1_1.ckpt"
    save_checkpoint(path, {"free": np.ones(3, np.float32)})
    for target in (path, tmp_path / "x-1_10.ckpt"):
        assert subprocess.run([sys.executable, "-c", _KILLED_HALF_WAY, target], cwd=repo).returncode == -9
    assert CheckpointFile(path).read("free").tolist() == [1, 1, 1]
    assert last_checkpoint(tmp_path) == path
    left = {file.name for file in tmp_path.iterdir()} - {path.name}
    assert len(left) == 2
    (mine,) = (name for name in left if name.startswith(".x-1_1.ckpt.tmp-"))
    (other,) = left - {mine}
    dead = mine.split("tmp-")[1].split("-")[0]
    alive = mine.replace(f"tmp-{dead}-", f"tmp-{os.getpid()}-")
    elsewhere = mine.replace(MACHINE, "00000000")  # the number of a process of another machine says nothing
    for name in (alive, elsewhere):
        (tmp_path / name).write_text("being written")
    save_checkpoint(path, {"free": np.zeros(3, np.float32)})
    assert {file.name for file in tmp_path.iterdir()} == {path.name, other, alive, elsewhere}
    assert CheckpointFile(path).read("free").tolist() == [0, 0, 0]


# ---- several runs in one folder --------------------------------------------------------------------------------------


def test_a_shorter_run_in_a_used_folder_replaces_nothing_and_is_the_newest(monitor, tmp_path):
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    longer = monitor(save_checkpoint_steps=5, keep_checkpoint_max=0)
    before = {name: (folder / name).read_bytes() for name in longer}
    both = monitor(steps=5, save_checkpoint_steps=2, keep_checkpoint_max=1)
    assert both == sorted([*longer, "x_rank_0_1-1_5.ckpt"])
    assert {name: (folder / name).read_bytes() for name in longer} == before
    assert last_checkpoint(folder).name == "x_rank_0_1-1_5.ckpt"
    assert list(by_step(folder)) == [StepNumber(1, 5)]
    network = folder.parents[1] / "checkpoint_network" / "rank_0"
    assert last_checkpoint(network).name == "x_rank_0_1-1_5-network.ckpt"
    record = json.loads((folder / "meta.json").read_text())
    assert record == {
        "last_epoch": 1, "last_step": 5, "last_ckpt_file": "x_rank_0_1-1_5.ckpt", "files": ["x_rank_0_1-1_5.ckpt"]
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"last_ckpt_file": 3}', '{"last_ckpt_file": "gone.ckpt"}'])
def test_without_a_usable_meta_json_all_checkpoints_count_as_one_run(tmp_path, content):
    for name in ("x_rank_0-2_1.ckpt", "x_rank_0-10_1.ckpt"):
        (tmp_path / name).write_text("")
    (tmp_path / "meta.json").write_text(content)
    assert last_checkpoint(tmp_path).name == "x_rank_0-10_1.ckpt"


def test_mindformers_meta_json_is_read(tmp_path):
    """It holds the last checkpoint alone, maybe with its path on another machine."""
    for name in ("x_rank_0-2_1.ckpt", "x_rank_0-10_1.ckpt"):
        (tmp_path / name).write_text("")
    note = {"last_epoch": 2, "last_step": 1, "last_ckpt_file": "/cache/output/x_rank_0-2_1.ckpt"}
    (tmp_path / "meta.json").write_text(json.dumps(note))
    assert last_checkpoint(tmp_path).name == "x_rank_0-2_1.ckpt"


def test_a_resumed_run_keeps_its_names_and_deletes_only_its_own(monitor, tmp_path):
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    monitor(save_checkpoint_steps=5)
    monitor(steps=4, ended=False, save_checkpoint_steps=2, keep_checkpoint_max=2)
    assert files_to_continue(folder, "x_rank_0") == (
        [folder / "x_rank_0_1-1_2.ckpt", folder / "x_rank_0_1-1_4.ckpt"],
        "x_rank_0_1",
    )
    left = monitor(begin=4, steps=6, save_checkpoint_steps=2, keep_checkpoint_max=2)
    assert left == sorted([*names("1_5", "2_5"), "x_rank_0_1-2_3.ckpt", "x_rank_0_1-2_5.ckpt"])
