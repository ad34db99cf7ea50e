"""LoRA (Hu et al. 2021): a frozen linear layer plus a trained update of low rank.

    add_lora(model, PetSection(lora_rank=8, lora_alpha=16))   # before the model is first called
    model.trainable_params()                                  # the factors, and a classification head

Shape letters: r rank, in/out widths of a linear layer.
"""

import math
import re
from collections.abc import Iterable

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.models.dropout import dropout
from mindgpt.models.gpt2.gpt2_modules import Linear
from mindgpt.models.random_weights import UniformWeights
from mindgpt.pet.names import FACTOR_A, FACTOR_B, SCORE, shown_paths

_LINEAR_ATTRIBUTES = (  # that a LoRALinear takes over from the layer that it replaces
    *("in_size", "out_size", "weight", "bias", "compute"),
    *("matmul", "matmul_is_out_in", "add", "cast"),
)


class LoRALinear(Linear):
    """y = x W + b + scaling * dropout(x) A^T B^T: the layer `base` with an update of rank r (section 4.1 of the paper).

    Weight, bias and operators are those of `base`, under the same names. The factors are float32 regardless of the
    weights' dtype. A is initialised as in PEFT and MindFormers (Kaiming uniform with slope sqrt(5)), B is zero, so
    training starts from the pretrained model.

    Args:
        base: the layer to adapt.
        settings: rank, scaling and dropout.
    """

    def __init__(self, base: Linear, settings: PetSection):
        nn.Cell.__init__(self)  # not Linear's, which would create another weight
        for name in _LINEAR_ATTRIBUTES:
            setattr(self, name, getattr(base, name))
        rank = settings.lora_rank
        # Kaiming uniform with slope sqrt(5); the bound is that of the whole factor also for a shard of it.
        a = initializer(UniformWeights(1 / math.sqrt(base.in_size)), (rank, base.in_size), ms.float32)
        b = initializer("zeros", (base.out_size, rank), ms.float32)
        self.mindpet_delta_lora_a = Parameter(a, name=FACTOR_A)
        self.mindpet_delta_lora_b = Parameter(b, name=FACTOR_B)
        self.scaling = settings.scaling
        self.lora_dropout = dropout(settings.lora_dropout)
        self.lora_a_matmul = ops.MatMul(transpose_b=True)
        self.lora_b_matmul = ops.MatMul(transpose_b=True)
        self.lora_mul = ops.Mul()
        self.lora_add = ops.Add()

    def construct(self, x: Tensor) -> Tensor:
        """x: (rows, in) in any float dtype -> (rows, out) in the compute dtype."""
        y = super().construct(x)
        x = self.lora_dropout(self.cast(x, self.compute))
        low = self.lora_a_matmul(x, self.cast(self.mindpet_delta_lora_a, self.compute))  # (rows, r)
        low = self.lora_mul(low, self.scaling)
        update = self.lora_b_matmul(low, self.cast(self.mindpet_delta_lora_b, self.compute))  # (rows, out)
        return self.lora_add(y, update)


def add_lora(model: nn.Cell, settings: PetSection) -> list[str]:
    """Add LoRA to the linear layers that `settings.target_modules` matches, and freeze everything else.

    The factors stay trainable, and so do a classification head and, with `bias: lora_only`, the biases of these layers.
    Call it before the model is first called, and so compiled.

    Returns:
        The paths of the layers.

    Raises:
        UserError: the expression matches no layer, or one that cannot take LoRA; or the model already has LoRA or has
            been called.
    """
    if model.compile_cache:
        raise UserError("The model has been called, and is compiled: add LoRA before its first call.")
    targets = find_targets(model, settings.target_modules)
    for path, linear in targets.items():
        _replace(model, path, LoRALinear(linear, settings))
    trained = {f"{path}.{factor}" for path in targets for factor in (FACTOR_A, FACTOR_B)} | {SCORE}
    if settings.bias == "lora_only":
        trained |= {f"{path}.bias" for path in targets}
    for parameter in model.get_parameters():
        parameter.requires_grad = parameter.name in trained
    return list(targets)


def find_targets(model: nn.Cell, pattern: str) -> dict[str, Linear]:
    """The linear layers of `model` whose paths a regular expression matches, by path; see `PetSection`.

    Raises:
        UserError: as `add_lora`.
    """
    with_weights = {path: cell for path, cell in model.cells_and_names() if list(cell.get_parameters(expand=False))}
    linears = {path: cell for path, cell in with_weights.items() if isinstance(cell, Linear)}
    if any(isinstance(cell, LoRALinear) for cell in linears.values()):
        raise UserError("The model has LoRA already; build it again to add other factors.")
    regex = re.compile(pattern)
    found = [path for path in with_weights if regex.fullmatch(path)]
    if not found:
        found = [path for path in with_weights if regex.match(path.rpartition(".")[2])]
    unfit = [path for path in found if path not in linears]
    if found and not unfit:
        return {path: linears[path] for path in found}
    wrong = f"matches {shown_paths(unfit)}, which cannot take LoRA" if found else "matches no layer"
    raise UserError(
        f"model.model_config.pet_config.target_modules: {pattern!r} {wrong}. The layers that can: "
        f"{shown_paths(linears)}. For all of them write '.*(dense[123]|projection|mapping)'."
    )


def _replace(model: nn.Cell, path: str, cell: LoRALinear) -> None:
    """Replace the cell at `path` by `cell`, and prefix its parameters' names with the path."""
    parent = model
    *above, name = path.split(".")
    for part in above:
        parent = parent[int(part)] if isinstance(parent, nn.CellList) else getattr(parent, part)
    setattr(parent, name, cell)
    for own_name, parameter in cell.parameters_and_names():
        parameter.name = f"{path}.{own_name}"


def trained_values(parameters: Iterable[Parameter]) -> str:
    """A line for the user: the number of trained values, and their share of all."""
    parameters = list(parameters)
    trained = sum(parameter.size for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.size for parameter in parameters)
    return f"trained: {trained:,} of {total:,} values ({100 * trained / total:.3g} %)"
