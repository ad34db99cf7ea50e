"""What a CPU does better than by MindSpore's operators; `models/acceleration.py` is the one module that imports it."""

from mindgpt.models.cpu.kernel_cells import KERNEL_CELLS
from mindgpt.models.cpu.kernel_layers import KernelLosses, kernels_fit
from mindgpt.models.cpu.kernels import why_no_library
from mindgpt.models.cpu.operators import replace_operators

__all__ = ["KERNEL_CELLS", "KernelLosses", "kernels_fit", "replace_operators", "why_no_library"]
