"""Device, ranks and precision."""

import json
import os
import shutil
import subprocess
import sys

import mindspore as ms
import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.execution_sections import ContextSection
from mindgpt.config.model_sections import GPT2Section
from mindgpt.runtime import device, precision, ranks, targets

# ---- the device ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "there", "target"),
    [
        (None, True, "Ascend"),
        (None, False, "CPU"),
        ("CPU", True, "CPU"),
        ("CPU", False, "CPU"),
        ("Ascend", True, "Ascend"),
    ],
)
def test_choose_target(monkeypatch, wanted, there, target):
    monkeypatch.setattr(targets, "is_ascend_available", lambda: there)
    assert targets.choose_target(wanted) == target


def test_a_missing_device_is_refused(monkeypatch):
    monkeypatch.setattr(targets, "is_ascend_available", lambda: False)
    with pytest.raises(UserError, match="no Ascend card.*--device_target CPU"):
        targets.choose_target("Ascend")


def test_simulated_ascend_counts_as_ascend(monkeypatch):
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    assert targets.is_ascend_available()


_PREPARED = """
import json, os, sys
import mindspore as ms
from mindgpt.config.execution_sections import ContextSection
from mindgpt.runtime.device import prepare_device
from pathlib import Path
Path("kernel_meta").mkdir(exist_ok=True)
notes = prepare_device(ContextSection(**json.loads(sys.argv[1])), "output", seed=5)
Path("rank_0", sys.argv[2]).mkdir(parents=True)
Path("mine.txt").write_text("")
names = ("device_target", "mode", "enable_graph_kernel", "save_graphs")
print(json.dumps([notes, {name: ms.get_context(name) for name in names}, ms.get_seed()]))
"""


@pytest.fixture
def prepared(repo, tmp_path):
    """A process of its own, since the settings are a process's, in whose working directory `rank_0/<name>` is made:
    `prepared(section, name)` -> what it prints."""

    def run(section, name):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MS_")}
        done = subprocess.run(
            [sys.executable, "-c", _PREPARED, section, name], cwd=tmp_path, env=environment | {"PYTHONPATH": str(repo)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    return run


def test_context_and_notes_of_a_prepared_process(prepared, tmp_path):
    """The context, the notes, and a tidy folder."""
    section = '{"mode": 1, "max_device_memory": "8GB", "memory_optimize_level": "O0"}'
    notes, context, seed = prepared(section, "om")
    assert notes == [
        "device: CPU",
        "on CPU, context.max_device_memory, context.memory_optimize_level have no effect",
    ]
    assert context == {"device_target": "CPU", "mode": 1, "enable_graph_kernel": False, "save_graphs": 0}
    assert seed == 5
    # What MindSpore leaves where it runs is moved; what was there before, or is not MindSpore's, stays.
    assert sorted(os.listdir(tmp_path)) == ["kernel_meta", "mine.txt", "output"]
    assert (tmp_path / "output" / "compile" / "rank_0" / "om").is_dir()


def test_a_broken_pipe_does_not_end_the_generation_of_kernels(repo, tmp_path):
    """Such as a client of the server that goes away: a signal handler of MindSpore's ended it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MS_", "MINDGPT_CACHE"))}
    environment |= {"PYTHONPATH": str(repo), "MINDGPT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, repo / "tests" / "runtime" / "broken_pipe.py"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "broken"] * 2, done.stderr[-2000:]


def test_a_folder_of_checkpoints_is_not_moved(prepared, tmp_path):
    """`directory: ./` puts checkpoints into ./rank_0, where MindSpore has its dumps (field report R4)."""
    section = '{"device_target": "CPU"}'
    prepared(section, "gpt2_rank_0-1_1.ckpt")
    assert os.listdir(tmp_path / "rank_0") == ["gpt2_rank_0-1_1.ckpt"]
    shutil.rmtree(tmp_path / "rank_0")
    for name in ("om", "ir"):  # nor is what was moved replaced
        prepared(section, name)
        assert os.listdir(tmp_path / "output" / "compile" / "rank_0") == ["om"]
    assert os.listdir(tmp_path / "rank_0") == ["ir"]


def test_deterministic_is_set_on_ascend_only(monkeypatch):
    asked = []
    monkeypatch.setattr(device.ms, "set_deterministic", asked.append)
    device._prepare_ascend(ContextSection())
    assert asked == []
    device._prepare_ascend(ContextSection(deterministic=True))
    assert asked == [True]
    section = ContextSection(deterministic=True, enable_graph_kernel=False)
    assert device._prepare_cpu(section) == ["on CPU, context.deterministic has no effect"]
    assert asked == [True]


def test_explicit_fusion_needs_its_package(monkeypatch):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install decorator"):
        device._prepare_cpu(ContextSection(enable_graph_kernel=True))


# ---- ranks -----------------------------------------------------------------------------------------------------------


def test_without_a_cluster_this_is_the_only_process(monkeypatch, capsys):
    for name in ("RANK_ID", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    ranks.say("hello")
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.parametrize(("number", "size"), [("1", None), ("7", None), ("2", "2")])
def test_a_rank_out_of_range_is_refused(monkeypatch, number, size):
    """It would be silent, and its work lost (field report R6)."""
    monkeypatch.setenv("RANK_ID", number)
    monkeypatch.delenv("MS_SIMULATION_LEVEL", raising=False)
    monkeypatch.setenv("MS_WORKER_NUM", size) if size else monkeypatch.delenv("MS_WORKER_NUM", raising=False)
    with pytest.raises(UserError, match=f"RANK_ID is {number}, but .*unset RANK_ID.*msrun_launcher"):
        ranks.say("nobody would see this")


def test_only_rank_0_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK_ID", "3")
    monkeypatch.setenv("MS_WORKER_NUM", "4")
    assert (ranks.rank(), ranks.world_size()) == (3, 4)
    ranks.say("hello")
    assert capsys.readouterr().out == ""


# ---- precision -------------------------------------------------------------------------------------------------------

HALF = {
    "param_init_type": "bfloat16",
    "compute_dtype": "bfloat16",
    "layernorm_compute_type": "float16",
    "softmax_compute_type": "float16",
}


def test_ascend_obeys_every_dtype(monkeypatch):
    monkeypatch.setattr(precision.ms, "get_context", lambda name: "Ascend")
    found = precision.precision_of(GPT2Section(**HALF))
    assert found == precision.Precision(ms.bfloat16, ms.bfloat16, ms.float16, ms.float16)
    assert precision.precision_of(GPT2Section(**HALF, reorder_and_upcast_attn=True)).softmax == ms.float32
    assert precision.replaced_on_cpu(GPT2Section(**HALF, use_flash_attention=True)) == []


@pytest.mark.usefixtures("cpu")
def test_a_cpu_computes_in_float32_and_says_so():
    section = GPT2Section(**HALF, use_flash_attention=True)
    assert precision.precision_of(section) == precision.Precision(ms.float32, ms.float32, ms.float32, ms.float32)
    stored_in_half = GPT2Section(**HALF | {"param_init_type": "float16"})
    assert precision.precision_of(stored_in_half).param == ms.float16
    assert precision.replaced_on_cpu(section) == [
        "on CPU, bfloat16 and float16 compute runs as float32",
        "on CPU, bfloat16 weights are stored as float32",
        "on CPU, flash attention runs as the plain kernel",
    ]
    assert precision.replaced_on_cpu(GPT2Section(param_init_type="float16")) == []
