"""The file that `context.ascend_config.parallel_speed_up_json_path` names: switches of MindSpore's Ascend compiler.

They change the order and the fusion of computation and messages, not results. MindSpore reads the file itself; it is
checked here first, since MindSpore ends with a traceback.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.section import nearest, shown
from mindgpt.io.files import read_json

_KINDS = (bool, str)  # True: all kinds of messages; or their names, joined by commas
SWITCHES: dict[str, tuple[type, ...]] = {
    "recompute_comm_overlap": _KINDS,
    "recomputation_communication_overlap": _KINDS,
    "matmul_grad_comm_overlap": _KINDS,
    "grad_matmul_communication_overlap": _KINDS,
    "pp_1f1b_overlap": (str,),
    "compute_communicate_fusion_level": (int,),
    "computation_communication_fusion_level": (int,),
    "dataset_broadcast_opt_level": (int,),
    **dict.fromkeys(
        [
            "enable_task_opt",
            "enable_communication_fusion",
            "enable_grad_comm_opt",
            "grad_computation_allreduce_overlap",
            "recompute_allgather_overlap_fagrad",
            "grad_fa_allgather_overlap",
            "interleaved_matmul_comm",
            "bias_add_comm_swap",
            "allreduce_and_biasadd_swap",
            "enable_opt_shard_comm_opt",
            "computation_allgather_overlap",
            "enable_begin_end_inline_opt",
            "enable_concat_eliminate_opt",
            "interleaved_layernorm_comm",
            "enable_allreduce_slice_to_reducescatter",
            "enable_interleave_split_concat_branch",
            "enable_interleave_parallel_branch",
            "enable_offloading_packed_experts",
            "enable_flash_attention_load_balance",
        ],
        (bool,),
    ),
}
"""MindSpore's switches (2.9 and 2.10, `mindspore.set_context`), each with the types of its values."""

_NAMES = {bool: "true or false", str: "text", int: "a whole number"}


def check_speed_up_file(path: str) -> None:
    """Check that a file of switches is one.

    Raises:
        UserError: it is not there, is no JSON object, or has switches or values that MindSpore does not have.
    """
    where = "context.ascend_config.parallel_speed_up_json_path"
    if not Path(path).is_file():
        raise UserError(f"{where}: there is no file {path}. Name one, or leave the key out")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object of switches, not {shown(content)} ({where})")
    if problems := list(_problems(content)):
        raise UserError("\n".join(f"{path}: {problem} ({where})" for problem in problems))


def _problems(switches: dict[str, Any]) -> Iterator[str]:
    for name, value in switches.items():
        if name not in SWITCHES:
            yield f"{shown(name)} is no switch of MindSpore; {nearest(name, SWITCHES)}"
        elif type(value) not in SWITCHES[name]:
            allowed = " or ".join(_NAMES[kind] for kind in SWITCHES[name])
            yield f"{name} must be {allowed}, not {shown(value)}"
