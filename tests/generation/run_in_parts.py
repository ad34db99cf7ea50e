"""One of several CPU processes that run toy models in tensor parallelism; rank 0 prints a JSON list, an item a model.

python run_in_parts.py FOLDER ...      # of the models; under scripts/msrun_launcher.sh
"""

import json
import sys
from typing import Any

import numpy as np
from mindspore import Tensor

from mindgpt.checkpoints.weights import load_weights, open_weights
from mindgpt.config.execution_sections import ContextSection
from mindgpt.config.strategy import Strategy
from mindgpt.generation import GenerationSettings, Generator
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_tensor_parallel import ShardOfWeights, keep_shard
from mindgpt.runtime.collectives import join
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.ranks import rank, say, world_size

PROMPTS = [[5, 7, 11], [3] * 20, [1, 2, 3, 4, 5, 6, 7]]


def main(folders: list[str]) -> None:
    prepare_device(ContextSection(device_target="CPU"), "output", seed=0)
    if world_size() > 1:
        join(Strategy.TENSOR_PARALLEL)
    say("results: " + json.dumps([run(folder) for folder in folders]))


def run(folder: str) -> dict[str, Any]:
    """What this process's shard of a model computes with the others', and how much of the weights it holds."""
    weights = open_weights(folder)
    model = GPT2LMHeadModel(weights.config)
    if world_size() > 1:
        axes = keep_shard(model.backbone, world_size())
        load_weights(model, ShardOfWeights(weights.source, axes, world_size(), rank()))
    else:
        load_weights(model, weights)
    model.set_train(False)
    logits = model(Tensor(np.array(PROMPTS[:1], np.int32))).asnumpy()
    new = Generator(model).generate(PROMPTS, GenerationSettings(max_new_tokens=12, eos_token_id=None))
    held = sum(parameter.size for parameter in model.get_parameters())
    return {"logits": logits.tolist(), "new": new, "held": held}


if __name__ == "__main__":
    main(sys.argv[1:])
