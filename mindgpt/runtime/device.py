"""Choosing and preparing the device a process runs on."""

import atexit
import importlib.util
import os
import signal
from pathlib import Path

import mindspore as ms

from mindgpt.config.errors import UserError
from mindgpt.config.execution_sections import ContextSection
from mindgpt.io.processes import available_cores, quota_binds
from mindgpt.io.user_cache import why_not_cached, work_folder
from mindgpt.runtime.kernel_cache import fetch_kernels, keep_kernels
from mindgpt.runtime.ranks import rank, world_size
from mindgpt.runtime.speed_up import check_speed_up_file
from mindgpt.runtime.targets import choose_target

# What MindSpore and CANN write into the working directory. A folder `rank_<r>` may also be one of checkpoints, so it is
# recognised by its content.
_LOG, _KERNELS = "dsa_transfrom.log", "kernel_meta"  # the first is MindSpore's own spelling
_IN_RANK_FOLDER = {"om", "ir_dump", "ir", "graph_cache", "verbose_ir_files", "somas_meta", "trace_code_graph"}

# MindFormers' too. At its own, 1000, MindSpore refuses to update 40 layers of half-precision weights.
_CALL_DEPTH = 10_000


_PRECISION = {"precision_mode": "must_keep_origin_dtype", "matmul_allow_hf32": False}
"""What a graph computes in is what the model says; the compiler of jit_level O2 would else take float16 for float32."""


def _tidy_up_at_exit(leftovers: Path) -> None:
    """At exit, move what MindSpore wrote into the working directory to `leftovers`. What existed before is left alone,
    and nothing is overwritten."""
    rank_folder = f"rank_{rank()}"
    written = [path for name in (_LOG, _KERNELS, rank_folder) if not (path := Path(name).resolve()).exists()]

    def move() -> None:
        for path in written:
            if not path.exists() or leftovers.is_relative_to(path):
                continue
            if path.name == rank_folder and not {entry.name for entry in path.iterdir()} <= _IN_RANK_FOLDER:
                continue
            leftovers.mkdir(parents=True, exist_ok=True)
            if path.name == _LOG or not (leftovers / path.name).exists():
                os.replace(path, leftovers / path.name)

    atexit.register(move)


def prepare_device(section: ContextSection, output_dir: str | Path, seed: int | None = None) -> list[str]:
    """Set MindSpore's context from the YAML section `context`. Call it before a model is built.

    MindSpore compiles in a work folder in the user's cache, which is removed with the process; graphs and kernels are
    cached for the next run. Dumps of failed compilations go to `output_dir`/compile.

    Args:
        section: the section `context`.
        output_dir: of the run.
        seed: for MindSpore's generators; None: not set.

    Returns:
        Lines for the user: the device, and settings that have no effect on it.

    Raises:
        UserError: there is no such device, or a setting needs a package that is missing.
    """
    target = choose_target(section.device_target)
    leftovers = Path(output_dir).resolve() / "compile"
    if world_size() > 1:
        leftovers /= f"rank_{rank()}"
    os.environ.setdefault("MS_COMPILER_CACHE_PATH", str(work_folder()))
    os.environ.setdefault("MS_OM_PATH", str(leftovers))
    _tidy_up_at_exit(leftovers)
    # MindSpore's kernel generator prints a line for every kernel unless this allows its own folder.
    os.environ.setdefault("AKG_WHITE_LIST_PATH", str(Path(ms.__file__).parent))
    device_id = _device_id(section)
    ms.set_device(target, *([] if device_id is None or target == "CPU" else [device_id]))
    ms.set_context(mode=section.mode)
    if section.max_call_depth is not None:
        ms.set_recursion_limit(section.max_call_depth)
    elif target == "Ascend":
        ms.set_recursion_limit(_CALL_DEPTH)
    if section.save_graphs:
        ms.set_context(save_graphs=section.save_graphs, save_graphs_path=section.save_graphs_path)
    notes = [f"device: {target}"]
    notes += _prepare_ascend(section) if target == "Ascend" else _prepare_cpu(section)
    if seed is not None:
        ms.set_seed(seed)
    return notes


def _device_id(section: ContextSection) -> int | None:
    """The card of this process: the launcher's choice if there are several processes, else the YAML's."""
    if world_size() > 1 and "DEVICE_ID" in os.environ:
        return int(os.environ["DEVICE_ID"])
    return section.device_id


def _prepare_ascend(section: ContextSection) -> list[str]:
    if section.max_device_memory is not None:
        ms.set_context(max_device_memory=section.max_device_memory)
    if section.memory_optimize_level is not None:
        ms.set_context(memory_optimize_level=section.memory_optimize_level)
    if section.jit_config.jit_level is not None:
        ms.set_context(jit_config={"jit_level": section.jit_config.jit_level})
    if section.enable_graph_kernel is not None:
        ms.set_context(enable_graph_kernel=section.enable_graph_kernel)
    if section.graph_kernel_flags is not None:
        ms.set_context(graph_kernel_flags=section.graph_kernel_flags)
    if section.deterministic:
        ms.set_deterministic(True)
    given = section.ascend_config.given()
    if file := given.get("parallel_speed_up_json_path"):
        check_speed_up_file(file)
    ms.set_context(ascend_config=_PRECISION | given)
    return []


def _block_broken_pipes() -> None:
    """Keep SIGPIPE away from MindSpore 2.10.

    Its handler takes any broken pipe or closed connection of this process for the end of the process that generates
    fused kernels; no other kernel can be compiled then. Writing still fails with EPIPE. Threads inherit the mask.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])


def _prepare_cpu(section: ContextSection) -> list[str]:
    """Fusion of element-wise operators is on by default; docs/performance.md has its effect."""
    fuse = section.enable_graph_kernel is not False and section.mode == 0
    if fuse and importlib.util.find_spec("decorator") is None:
        if section.enable_graph_kernel:
            raise UserError("context.enable_graph_kernel needs the package decorator: pip install decorator")
        fuse = False
    ms.set_context(enable_graph_kernel=fuse)
    notes = []
    if fuse:
        _block_broken_pipes()
    if quota_binds():
        ms.set_context(runtime_num_threads=available_cores())
    if reason := why_not_cached():
        notes.append(
            f"compiled graphs are not cached for the next run: {reason}; MINDGPT_CACHE=folder names another place"
        )
    if fuse:
        compile_dir = Path(os.environ["MS_COMPILER_CACHE_PATH"])
        fetch_kernels(compile_dir)
        atexit.register(keep_kernels, compile_dir)
    if section.graph_kernel_flags is not None:
        ms.set_context(graph_kernel_flags=section.graph_kernel_flags)
    only_ascend = {
        "max_device_memory": section.max_device_memory,
        "memory_optimize_level": section.memory_optimize_level,
        "jit_config": section.jit_config.jit_level,
        "deterministic": section.deterministic or None,
        "ascend_config": section.ascend_config.given() or None,
    }
    named = [f"context.{key}" for key, value in only_ascend.items() if value is not None]
    if named:
        notes.append(f"on CPU, {', '.join(named)} {'has' if len(named) == 1 else 'have'} no effect")
    return notes
