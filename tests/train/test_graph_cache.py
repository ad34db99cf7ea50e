"""The graph cache: a later run computes bit for bit the same, and never with another network's graph."""

import gzip
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.runtime import graph_cache
from mindgpt.runtime.graph_fingerprint import fingerprint
from mindgpt.train.optimizers import AdamW
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import TrainStep

PROGRAM = """
import sys, zlib
import numpy as np, mindspore as ms
from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.execution_sections import ContextSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.runtime.device import prepare_device
from mindgpt.train.optimizers import AdamW
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import TrainStep
prepare_device(ContextSection(device_target="CPU", enable_graph_kernel=False), sys.argv[1], seed=3)
model = GPT2LMHeadModel(GPT2Config(num_layers=1, hidden_size=32, num_heads=2, vocab_size=67, seq_length=12)).set_train()
scale = ScaleSenseSection(type="dynamic", loss_scale_value=1e38, scale_factor=1e30, scale_window=2)
optimizer = AdamW(model.trainable_params(), LearningRateTable(np.full(9, float(sys.argv[2]))))
step = TrainStep(model, optimizer, scale, 1.0).set_train()
for seed in range(5):
    rows = np.random.RandomState(seed).randint(0, 67, (2, 9)).astype(np.int32)
    loss, skipped, scale, rate, norm = step(ms.Tensor(rows), ms.Tensor(np.ones_like(rows)))
    weights = zlib.crc32(b"".join(p.asnumpy().tobytes() for p in step.get_parameters()))
    print(loss.asnumpy().tobytes().hex(), bool(skipped), scale, rate, norm.asnumpy().tobytes().hex(), weights)
"""
READ, NOT_THERE = "Use the compilation cache", "Failed to load the compilation cache"  # in MindSpore's log


def run(tmp_path, name: str, rate: str = "0.01", **variables: str) -> tuple[list[str], str]:
    """The lines of the program's steps, and its log."""
    environment = os.environ | {"MINDGPT_CACHE": str(tmp_path / "cache"), "GLOG_v": "2"} | variables
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / name), rate]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_a_later_run_reads_the_graph_and_computes_the_same(tmp_path):
    never_kept, log = run(tmp_path, "never", MS_COMPILER_CACHE_ENABLE="0")
    assert READ not in log and not (tmp_path / "cache" / graph_cache.cache_folder().name).exists()
    first, log = run(tmp_path, "first")
    assert log.count(NOT_THERE) == log.count(READ) == 1
    again, log = run(tmp_path, "again")
    assert NOT_THERE not in log and log.count(READ) == 1
    assert never_kept == first == again
    skipped = [line.split()[1] for line in first]
    assert skipped == ["True", "False", "False", "True", "False"]  # both branches of the update were taken
    other_rate, log = run(tmp_path, "other", rate="0.02")
    assert log.count(NOT_THERE) == 1
    assert other_rate[0].split()[0] == first[0].split()[0] and other_rate[-1] != first[-1]
    kept = list((tmp_path / "cache" / graph_cache.cache_folder().name).iterdir())
    assert len(kept) == 2 and not list(tmp_path.glob("*/compile/rank_0/graph_cache/*.mindir"))


SETTINGS = {"rate": 0.01, "clip": 1.0, "beta1": 0.9, "decay": 0.1, "window": 100, "seed": 0, "columns": 9, "eps": 1e-5}
SETTINGS |= {"dropout": 0.1, "layers": 2, "training": True, "frozen": False}


def digest(changed_weights: bool = False, **changes) -> str | None:
    settings = SETTINGS | changes
    ms.set_seed(settings["seed"])
    rates = {f"{name}_dropout_rate": settings["dropout"] for name in ("hidden", "attention", "embedding")}
    sizes = {"num_layers": settings["layers"], "hidden_size": 32, "num_heads": 2, "vocab_size": 67, "seq_length": 12}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **rates, layernorm_epsilon=settings["eps"]))
    if changed_weights:
        for value in model.get_parameters():
            value.set_data(value + 1.0)
    if settings["frozen"]:
        model.backbone.layernorm.gamma.requires_grad = False
    rates = LearningRateTable(np.full(9, settings["rate"]))
    optimizer = AdamW(model.trainable_params(), rates, settings["beta1"], weight_decay=settings["decay"])
    scale = ScaleSenseSection(type="dynamic", loss_scale_value=64, scale_factor=2, scale_window=settings["window"])
    step = TrainStep(model, optimizer, scale, settings["clip"]).set_train(settings["training"])
    return fingerprint(step, [ms.Tensor(np.zeros((2, settings["columns"]), np.int32))])


def test_equal_networks_have_equal_digests_whatever_their_weights():
    assert digest() == digest() == digest(changed_weights=True) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0.02},
        {"clip": 2.0},
        {"clip": None},
        {"beta1": 0.8},
        {"decay": 0.0},
        {"window": 50},
        {"seed": 1},  # of the dropout masks
        {"columns": 8},
        {"eps": 1e-6},
        {"dropout": 0.2},
        {"layers": 1},
        {"training": False},
        {"frozen": True},
    ],
    ids=str,
)
def test_everything_that_determines_a_graph_changes_its_digest(change):
    assert digest(**change) not in (digest(), None)


def test_settings_of_mindspore_change_the_digest(monkeypatch):
    before = digest()
    monkeypatch.setenv("MS_DEV_SOME_SWITCH", "1")
    assert digest() != before


def test_a_users_own_cells_are_not_cached():
    """Its source may be another next time, and nobody would know."""

    class Own(ms.nn.Cell):
        def construct(self, x):
            return x + 1

    assert fingerprint(ms.nn.SequentialCell(ms.nn.ReLU()), []) is not None
    assert fingerprint(ms.nn.SequentialCell(Own()), []) is None


def test_a_damaged_file_is_not_read(tmp_path):
    path = tmp_path / "cache" / "graph.mindir.gz"
    graph = bytes(range(256)) * 50
    graph_cache._write(path, graph)
    assert graph_cache._read(path) == graph
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:40], b"", whole[:60] + b"\0" + whole[61:], gzip.compress(graph)[:-1]):
        path.write_bytes(damaged)
        assert graph_cache._read(path) is None


def test_two_processes_do_not_exchange_graphs_through_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path))
    with graph_cache._exchange_folder() as folder:
        assert folder is not None
        with graph_cache._exchange_folder() as other:  # an open file of its own, as another process has
            assert other is None
        graph_cache._provide(folder, b"graph")
    assert not list(folder.glob("*.mindir"))
