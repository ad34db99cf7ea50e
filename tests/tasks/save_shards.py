"""Save the shards of a toy training step as one of several simulated Ascend ranks.

python save_shards.py YAML FOLDER [OTHERS]      # under mindgpt.runtime.simulated_ascend

In FOLDER/checkpoint/rank_<r>: the shards of this rank after its step is compiled. In OTHERS/rank_<r>, if given: the
shards of the other ranks of its pipeline stage, without compiling for them. They compile the same graph, so each shards
the same tensors by the same layouts, and only its place among them differs; MindSpore's own function does the sharding.

Every parameter, including optimizer state, begins with values that depend on its name alone (`whole`), so that a test
knows the result of merging all shards; a half-precision weight begins with its master copy, rounded. A
half-precision model's tied table, which a pipeline stores in float32, begins with what would be its master copy.
"""

import sys
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

TIED = "backbone.embedding.word_embedding.embedding_table"


def whole(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """The values of a parameter."""
    if dtype == np.float16:
        return whole(f"master.{name}", shape).astype(dtype)
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def is_parameter(name: str) -> bool:
    """Whether a tensor begins with the values of `whole`: weights and the optimizer's state."""
    return "backbone." in name or "score." in name


def shard_of(values: np.ndarray, layout: tuple[Any, ...], number: int, ranks: range) -> np.ndarray:
    """The shard of a parameter that rank `number` holds.

    Args:
        values: of the whole parameter.
        layout: MindSpore's, of the compiled step.
        ranks: of the pipeline stage.
    """
    from mindspore import Tensor
    from mindspore.parallel import _tensor

    matrix, tensor_map, *_ = layout

    def part(other: int) -> int:
        return int(
            _tensor._get_tensor_slice_index(matrix, _tensor._get_tensor_strategy(matrix, tensor_map), tensor_map, other)
        )

    # Optimizer sharding: the ranks that hold the same shard divide it, in their order.
    same = [other for other in ranks if part(other) == part(number)] if tensor_map else []
    with mock.patch.object(_tensor, "get_rank", lambda group: same.index(number) % _tensor.get_group_size(group)):
        return _tensor._load_tensor_by_layout(Tensor(values), layout, number).asnumpy()


def main(yaml: str, folder: str, others: str | None = None) -> None:
    import mindspore as ms
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
    start = {
        name: whole(f"master.{name}", tuple(parameter.shape))
        if name == TIED and config.model.config.param_init_type == "float16" and parameter.dtype == ms.float32
        else whole(name, tuple(parameter.shape), ms.dtype_to_nptype(parameter.dtype))
        for name, parameter in parameters_of_step(step).items()
        if is_parameter(name)
    }
    for name, parameter in parameters_of_step(step).items():
        if name in start:
            parameter.set_data(Tensor(start[name]))
    compile_sharded(step, zeros_for(shapes_of_batch(config)), layout)

    def save(folder: Path, number: int, parameters: dict[str, Any]) -> None:
        save_checkpoint(folder / f"toy_rank_{number}-1_4.ckpt", parameters)
        model.config.save_pretrained(folder, type(model).__name__)

    own = parameters_of_step(step)
    save(Path(folder, "checkpoint", f"rank_{rank()}"), rank(), own)
    first = rank() // ranks_per_stage() * ranks_per_stage()
    ranks = range(first, first + ranks_per_stage())
    sharded = [name for name in start if name in step.parameter_layout_dict]
    for number in ranks if others else ():
        if number != rank():
            layouts = step.parameter_layout_dict
            shards = {name: shard_of(start[name], layouts[name], number, ranks) for name in sharded}
            save(Path(others, f"rank_{number}"), number, {**own, **shards})


if __name__ == "__main__":
    main(*sys.argv[1:])
