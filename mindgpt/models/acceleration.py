"""The hook for `models/cpu`: what a device can do better than by MindSpore's operators.

No other module imports that folder. Without it, and without the three lines of `_room` that name it, everything works
on operators.
"""

from types import ModuleType
from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import nn

if TYPE_CHECKING:
    from mindgpt.models.gpt2.gpt2 import InferenceCells

USE_KERNELS = True
"""Whether `inference_cells` and `loss_cell` may return kernels; tests of MindSpore's operators set it to False."""


def _room() -> ModuleType | None:
    """The folder for the current device, if there is one."""
    if ms.get_context("device_target") == "CPU":
        from mindgpt.models import cpu

        return cpu
    return None


def accelerate(cell: nn.Cell) -> None:
    """Replace operators of a `GPT2Model` or `LMHead` that has just been built. Its parameters keep names, shapes and
    values."""
    if room := _room():
        room.replace_operators(cell)


def inference_cells(backbone: nn.Cell) -> "InferenceCells | None":
    """The cells of generation by kernels that fit a `GPT2Model`, whose layers LoRA or tensor parallelism may have
    replaced; None: there are none, and its own operators do the work."""
    room = _room() if USE_KERNELS else None
    return room.KERNEL_CELLS if room and room.kernels_fit(backbone) else None


def loss_cell(network: nn.Cell) -> nn.Cell | None:
    """A cell that computes `GPT2LMHeadModel.summed_loss` of a network by kernels; None as of `inference_cells`, or
    since a row is several documents, which the kernels do not know."""
    room = _room() if USE_KERNELS and network.backbone.documents is None else None
    return room.KernelLosses(network) if room and room.kernels_fit(network.backbone) else None


def why_no_kernels() -> str | None:
    """Why the current device has kernels that cannot be used; None: they can, or it has none."""
    room = _room()
    return room.why_no_library() if room else None
