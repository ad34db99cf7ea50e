"""Save the slices of a toy training step as one simulated Ascend card of several does.

python save_slices.py YAML FOLDER      # under mindgpt.runtime.simulated_ascend

Every parameter, optimizer state included, begins with values that follow from its name alone (`whole`), so that a test
knows what the slices of all cards must make together.
"""

import sys
import zlib
from pathlib import Path

import numpy as np


def whole(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def main(yaml: str, folder: str) -> None:
    from mindspore import Tensor

    from mindgpt.config.loader import load_config
    from mindgpt.models import model_class
    from mindgpt.models.gpt2.gpt2_config import GPT2Config
    from mindgpt.models.weights import save_checkpoint
    from mindgpt.pet.lora import add_lora
    from mindgpt.runtime.collectives import join_cut
    from mindgpt.runtime.device import prepare_device
    from mindgpt.runtime.ranks import rank
    from mindgpt.tasks.cards import compile_cut, cut_of, lay_out, layout_of, train_step, zeros_for
    from mindgpt.train.checkpoints import parameters_of_step
    from mindgpt.train.optimizers import build_optimizer
    from mindgpt.train.schedules import LearningRateTable

    config, _ = load_config(yaml, {"output_dir": folder})
    prepare_device(config.context, folder, seed=0)
    join_cut(cut_of(config))
    model = model_class(config.model.arch.type)(GPT2Config.from_section(config.model.config))
    if config.model.config.pet_config is not None:
        add_lora(model, config.model.config.pet_config)
    layout = layout_of(config, padding=True)
    trained = lay_out(config, model, layout, cut_of(config).stage)
    optimizer = build_optimizer(config.optimizer, trained, LearningRateTable(np.full(10, 1e-4)))
    step = train_step(config, model, optimizer, cut=True)
    step.set_train()
    for name, parameter in parameters_of_step(step).items():
        if "backbone." in name or "score." in name:
            parameter.set_data(Tensor(whole(name, parameter.shape)))
    tokens = config.model.config.seq_length
    compile_cut(step, zeros_for([(8, tokens + 1)] * 2), layout)
    held = Path(folder, "checkpoint", f"rank_{rank()}")
    save_checkpoint(held / f"toy_rank_{rank()}-1_4.ckpt", parameters_of_step(step))
    model.config.save_pretrained(held, type(model).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
