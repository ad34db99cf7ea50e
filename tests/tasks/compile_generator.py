"""Compile the graphs of generation for one simulated Ascend card, which computes nothing.

python compile_generator.py YAML      # under mindgpt.runtime.simulated_ascend, with DUMP_ENVIRONMENT
"""

import json
import sys
from pathlib import Path

import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import run_program
from mindgpt.config.loader import load_config
from mindgpt.models import model_class
from mindgpt.models.gpt2 import gpt2
from mindgpt.models.gpt2.gpt2_cache import KeyValueCache
from mindgpt.models.gpt2.gpt2_tensor_parallel import keep_shard
from mindgpt.planning.planned_step import GRAPHS
from mindgpt.runtime.compiled_graph import CompiledGraph
from mindgpt.runtime.ranks import world_size
from mindgpt.tasks.session import prepare

CHUNK, CAPACITY = 32, 128  # tokens of a prompt read at once, slots of the cache


def main() -> None:
    """Print a JSON list: the floating-point operations of matrix products in each graph, the fewest first."""
    config, _ = load_config(sys.argv[1])
    prepare(config)
    with no_init_parameters():  # at its true width, a model's random values take longer than its graphs
        model = model_class(config.model.arch.type)(GPT2Config.from_section(config.model.config))
    model.set_train(False)
    if world_size() > 1:
        keep_shard(model.backbone, world_size())
    network, dtype = model.config, model.backbone.embedding.compute
    heads = network.num_heads // world_size()
    cache = KeyValueCache(network.num_layers, heads, network.head_size, dtype, 1, CAPACITY)
    ids, token, place = (Tensor(np.zeros(shape, np.int32)) for shape in ((1, CHUNK), (1, 1), (1,)))
    gpt2.CHUNK = CHUNK
    gpt2.Prefill(model.backbone, cache).compile(ids, ids, ids, place)
    hidden = Tensor(np.zeros((CHUNK, network.hidden_size)), model.backbone.hidden_dtype)
    gpt2.LastLogits(model.backbone, model.head, cache).compile(hidden, place, place, place)
    gpt2.Decode(model.backbone, model.head, cache).compile(token, token, place)
    print(json.dumps(sorted(CompiledGraph(file).product_flops for file in Path(GRAPHS).rglob("*_validate_*.ir"))))


if __name__ == "__main__":
    run_program(main)
