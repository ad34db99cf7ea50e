"""Save the slices of a toy training step as one simulated Ascend card of several does.

python save_shards.py YAML FOLDER [OTHERS]      # under mindgpt.runtime.simulated_ascend

In FOLDER/checkpoint/rank_<r>: what this card holds after its step is compiled. In OTHERS/rank_<r>, if given: what the
other cards of its pipeline stage hold, without compiling for them. They compile the same graph, so that each cuts the
same tensors by the same layouts, and only its place among them differs; MindSpore's own function cuts for each.

Every parameter, optimizer state included, begins with values that follow from its name alone (`whole`), so that a test
knows what the slices of all cards must make together.
"""

import sys
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


def whole(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def is_parameter(name: str) -> bool:
    """Whether a tensor begins with the values of `whole`: weights and the optimizer's state."""
    return "backbone." in name or "score." in name


def slice_of(name: str, shape: tuple[int, ...], layout: tuple[Any, ...], card: int, cards: range) -> np.ndarray:
    """The part of a parameter that a card holds.

    Args:
        shape: the whole parameter's.
        layout: as MindSpore has it of the compiled step.
        cards: of the pipeline stage.
    """
    from mindspore import Tensor
    from mindspore.parallel import _tensor

    matrix, tensor_map, *_ = layout

    def part(other: int) -> int:
        return int(
            _tensor._get_tensor_slice_index(matrix, _tensor._get_tensor_strategy(matrix, tensor_map), tensor_map, other)
        )

    # Optimizer sharding: those that hold the same part share it out, in the order of their ranks.
    same = [other for other in cards if part(other) == part(card)] if tensor_map else []
    with mock.patch.object(_tensor, "get_rank", lambda group: same.index(card) % _tensor.get_group_size(group)):
        return _tensor._load_tensor_by_layout(Tensor(whole(name, shape)), layout, card).asnumpy()


def main(yaml: str, folder: str, others: str | None = None) -> None:
    from mindspore import Tensor

    from mindgpt.checkpoints.gpt2_config import GPT2Config
    from mindgpt.checkpoints.weights import save_checkpoint
    from mindgpt.config.loader import load_config
    from mindgpt.models import model_class
    from mindgpt.pet.lora import add_lora
    from mindgpt.planning.planned_step import shapes_of_batch
    from mindgpt.runtime.collectives import ranks_per_stage
    from mindgpt.runtime.ranks import rank
    from mindgpt.tasks.session import prepare
    from mindgpt.tasks.training_step import build_step, compile_sharded, zeros_for
    from mindgpt.train.checkpoint_monitor import parameters_of_step

    config, _ = load_config(yaml, {"output_dir": folder})
    prepare(config)
    model = model_class(config.model.arch.type)(GPT2Config.from_section(config.model.config))
    if config.model.config.pet_config is not None:
        add_lora(model, config.model.config.pet_config)
    step, layout = build_step(config, model, np.full(10, 1e-4), padding=True)
    step.set_train()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters_of_step(step).items()}
    for name, parameter in parameters_of_step(step).items():
        if is_parameter(name):
            parameter.set_data(Tensor(whole(name, parameter.shape)))
    compile_sharded(step, zeros_for(shapes_of_batch(config)), layout)

    def save(held: Path, card: int, parameters: dict[str, Any]) -> None:
        save_checkpoint(held / f"toy_rank_{card}-1_4.ckpt", parameters)
        model.config.save_pretrained(held, type(model).__name__)

    own = parameters_of_step(step)
    save(Path(folder, "checkpoint", f"rank_{rank()}"), rank(), own)
    first = rank() // ranks_per_stage() * ranks_per_stage()
    cards = range(first, first + ranks_per_stage())
    cut = [name for name in own if is_parameter(name) and name in step.parameter_layout_dict]
    for card in cards if others else ():
        if card != rank():
            parts = {name: slice_of(name, shapes[name], step.parameter_layout_dict[name], card, cards) for name in cut}
            save(Path(others, f"rank_{card}"), card, {**own, **parts})


if __name__ == "__main__":
    main(*sys.argv[1:])
