"""DeepSpeed's folders of a state dict, written from the description of the format and not from our reader.

ZeRO 1 and 2: the parameters of a group, one after another, padded to a multiple of 2 x world, cut into equal parts; the
padding at the end of the last part is left out. ZeRO 3: every parameter by itself is padded to a multiple of the world
and cut; a rank's file holds its part of each.
"""

import collections
import enum
import sys
import types
from pathlib import Path

import torch

State = dict[str, torch.Tensor]


class ZeroStageEnum(int, enum.Enum):
    """Pickled as a call of this name with a number, as DeepSpeed's class is."""

    weights = 2
    gradients = 3


def groups_of(held: State) -> list[State]:
    """As TencentPretrain: with weight decay, and without (biases, gammas and betas)."""
    without = {name: tensor for name, tensor in held.items() if name.endswith(("bias", "gamma", "beta"))}
    return [{name: tensor for name, tensor in held.items() if name not in without}, without]


def write_zero(
    folder: Path, held: State, stage: int, world: int, tied: dict[str, str], mp_rank: int = 0, mp_world: int = 1
) -> Path:
    """A folder as DeepSpeed's engine writes it. `tied`: shared name -> the name it is stored under."""
    tag = "250000"
    target = folder / tag
    target.mkdir(parents=True, exist_ok=True)
    (folder / "latest").write_text(tag)
    groups = groups_of({name: tensor for name, tensor in held.items() if name not in tied})
    for rank in range(world):
        of_rank = f"mp_rank_{mp_rank:02}"
        prefix = f"zero_pp_rank_{rank}_{of_rank}"
        parts = [part_2(group, rank, world) for group in groups] if stage < 3 else [part_3(groups, rank, world)]
        key = "single_partition_of_fp32_groups" if stage < 3 else "fp32_flat_groups"
        save(target / f"{prefix}_optim_states.pt", {
            "optimizer_state_dict": {
                "zero_stage": ZeroStageEnum(2 if stage < 3 else 3),
                "partition_count": [world] * len(groups) if stage < 3 else world,
                "loss_scaler": DynamicLossScaler(),
                key: parts,
            },
            "ds_version": "0.15.0",
        })  # fmt: skip
        if stage == 3 or rank == 0:
            shapes = [collections.OrderedDict((name, t.shape) for name, t in group.items()) for group in groups]
            module = {name: tensor.half() if stage < 3 else torch.empty(0) for name, tensor in held.items()}
            save(target / f"{prefix if stage == 3 else of_rank}_model_states.pt", {
                "module": module,
                "buffer_names": [],
                "param_shapes": shapes,
                "shared_params": tied,
                "frozen_param_shapes": None,
                "dp_world_size": world,
                "mp_world_size": mp_world,
                "ds_config": {"zero_optimization": {"stage": stage}},
                "loss_scaler": DynamicLossScaler(),
            })  # fmt: skip
    return folder


class DynamicLossScaler:
    """An object of a class of DeepSpeed's."""

    def __init__(self):
        self.cur_scale = 65536


def save(file: Path, content: dict) -> None:
    """`torch.save`, with the classes of this module under DeepSpeed's names."""
    names = {ZeroStageEnum: "deepspeed.runtime.zero.config", DynamicLossScaler: "deepspeed.runtime.fp16.loss_scaler"}
    modules = {}
    for made, name in names.items():
        module = modules.setdefault(name, types.ModuleType(name))
        setattr(module, made.__name__, made)
        made.__module__ = name
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.runtime.fp16"):
        modules.setdefault(name, types.ModuleType(name))
    sys.modules |= modules
    try:
        torch.save(content, file)
    finally:
        for name in modules:
            del sys.modules[name]


def part_2(group: State, rank: int, world: int) -> torch.Tensor:
    """The part of a group that a rank of ZeRO 1 or 2 saves."""
    flat = torch.cat([tensor.reshape(-1) for tensor in group.values()])
    size = -(-len(flat) // (2 * world)) * 2
    return flat[rank * size : (rank + 1) * size].clone()


def part_3(groups: list[State], rank: int, world: int) -> torch.Tensor:
    """The part of all parameters that a rank of ZeRO 3 saves."""
    parts = []
    for tensor in (tensor for group in groups for tensor in group.values()):
        size = -(-tensor.numel() // world)
        padded = torch.cat([tensor.reshape(-1), torch.full((size * world - tensor.numel(),), 777.0)])
        parts.append(padded[rank * size : (rank + 1) * size])
    return torch.cat(parts)
