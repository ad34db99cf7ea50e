"""Simulated Ascend: a network compiles as one rank of several, with that rank's own shards."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.io.user_cache import user_cache
from mindgpt.runtime import simulated_ascend
from mindgpt.runtime.simulated_ascend import is_cann_installed, run_simulated, simulated_environment

PROGRAM = """
import sys
import mindspore as ms, numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend")
init()
ms.set_auto_parallel_context(
    parallel_mode="semi_auto_parallel", device_num=get_group_size(), global_rank=get_rank(), full_batch=True
)

class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.arange(8 * 12, dtype=np.float32).reshape(8, 12)), name="weight")
        self.matmul = ops.MatMul().shard(((2, 1), (1, int(sys.argv[1]))))

    def construct(self, x):
        return self.matmul(x, self.weight)

net = Net()
net.compile(Tensor(np.zeros((4, 8), np.float32)))
np.save("slice.npy", net.weight.asnumpy())
"""


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


def test_each_rank_has_its_shard(program, tmp_path):
    result = run_simulated([sys.executable, program, "2"], rank=3, size=4, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    whole = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    np.testing.assert_array_equal(np.load(tmp_path / "slice.npy"), whole[:, 6:])  # rank 3 is the second of columns
    assert not [path for path in user_cache().iterdir() if path.name.startswith(".")]


def test_an_illegal_strategy_is_refused_with_the_message_of_mindspore(program, tmp_path):
    result = run_simulated([sys.executable, program, "5"], rank=0, size=4, cwd=tmp_path, timeout=120)
    assert result.returncode != 0
    assert "cannot be divisible by strategy value 5" in result.stdout + result.stderr


def test_child_processes_end_with_the_program(tmp_path):
    child = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(61.5)'], "
        f"stdout=open(r'{tmp_path / 'out'}', 'w')); print('started', flush=True); time.sleep(61.5)"
    )
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        run_simulated([sys.executable, "-c", child], rank=0, size=1, timeout=2)
    assert b"started" in stopped.value.stdout
    sleeping = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "time.sleep(61.5)" not in sleeping


def test_without_a_compiler_the_message_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs gcc, g\+\+, nm, which this machine does not have"):
        simulated_environment(0, 1)
    assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(simulated_ascend, "_HEADERS", "#error no\n")
    with pytest.raises(UserError, match="building the CANN stub library failed"):
        simulated_environment(0, 1)
    assert not list(tmp_path.iterdir())


def test_an_installed_cann_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert not is_cann_installed()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libascendcl.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/cann")
    assert is_cann_installed()
    environment = simulated_environment(1, 8)
    assert environment["ASCEND_HOME_PATH"] == str(tmp_path)
    assert environment["LD_LIBRARY_PATH"] == "/of/cann"
    assert (environment["RANK_ID"], environment["RANK_SIZE"], environment["MS_SIMULATION_LEVEL"]) == ("1", "8", "0")


def test_cluster_variables_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    environment = simulated_environment(0, 4)
    assert "MS_ROLE" not in environment
    assert environment["MS_WORKER_NUM"] == "4"
    assert os.environ["MS_WORKER_NUM"] == "2"


def test_an_invalid_rank_is_a_value_error():
    with pytest.raises(ValueError, match="rank 4 of 4"):
        simulated_environment(4, 4)
