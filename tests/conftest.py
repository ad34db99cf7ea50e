"""Fixtures and options of all tests: paths, MindSpore's settings, `--slow` and `--quick`."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests import programs, quick

os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "MINDGPT_CACHE" not in os.environ:  # tests of a session share compiled kernels, apart from the user's own
    _cache = tempfile.TemporaryDirectory(prefix="mindgpt-tests-")
    os.environ["MINDGPT_CACHE"] = _cache.name

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also the tests marked slow; start every program from nothing")
    parser.addoption("--quick", action="store_true", help="only tests that start no program and compile for no Ascend")


LONGEST = ("tasks", "benchmarks", "generation", "planning")  # run first, so that no worker is left with one at the end


def _place(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from mindgpt.runtime.simulated_ascend import is_cann_installed

    if config.getoption("--quick"):
        quick.refuse_programs()
        left_out = [item for item in items if item.get_closest_marker("long") or quick.starts_programs(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=_place)
    missing = {}
    if config.getoption("--slow"):
        programs.forks = False
    else:
        missing["slow"] = "slow: bash scripts/test.sh --slow"
    if not is_cann_installed() and not all(shutil.which(tool) for tool in ("gcc", "g++", "nm")):
        missing["needs_ascend"] = "simulated Ascend needs gcc, g++ and nm, or CANN"
    for item in items:
        for mark, reason in missing.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text beside the checkout; skips the test if it is absent."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}, which is not on this machine")
    return folder


@pytest.fixture(scope="session")
def gpt2_tokenizer_dir(shared_data) -> Path:
    """OpenAI's GPT-2 vocabulary: vocab.json and merges.txt."""
    return shared_data / "gpt2-tokenizer"


@pytest.fixture(scope="session", autouse=True)
def cpu():
    """MindSpore on the CPU in graph mode, as a run prepares it, but with a temporary folder for compiled kernels.

    Before the first test of a process: once MindSpore has computed, its device cannot be set.
    """
    from mindgpt.config.execution_sections import ContextSection
    from mindgpt.runtime.device import prepare_device

    with tempfile.TemporaryDirectory() as folder:
        prepare_device(ContextSection(device_target="CPU"), folder, seed=0)
        yield


@pytest.fixture(scope="module", autouse=True)
def isolated_module(cpu):
    """Gives each module the same seed, and resets what its runs set in MindSpore, such as graph-kernel fusion: which
    modules share a process is chance."""
    import mindspore as ms

    ms.set_seed(0)
    before = {name: ms.get_context(name) for name in ("mode", "enable_graph_kernel", "graph_kernel_flags")}
    yield
    for name, value in before.items():
        if ms.get_context(name) != value:
            ms.set_context(**{name: value})


@pytest.fixture(scope="module")
def unfused(isolated_module):
    """Without graph-kernel fusion: to compile twice as fast where other tests have fused graphs of the same cells, or
    to compare within 1e-5 (its tanh is off by 1.2e-4, docs/performance.md)."""
    import mindspore as ms

    ms.set_context(enable_graph_kernel=False)
