"""A process of the dry run: compiles the training step of one simulated rank, and writes what its graph holds.

    python -m mindgpt.planning.planned_step CONFIG.yaml FACTS.json

`mindgpt.planning.dry_run` starts it with the environment of that rank; no data and no weights are read.
"""

import json
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError, run_program
from mindgpt.config.layout import rows_of_step
from mindgpt.config.loader import load_config
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.models import model_class
from mindgpt.pet.lora import add_lora
from mindgpt.runtime.collectives import strategy
from mindgpt.runtime.compiled_graph import CompiledGraph
from mindgpt.runtime.mindspore_errors import without_trace
from mindgpt.tasks.datasets import skip_padding_mask
from mindgpt.tasks.session import prepare
from mindgpt.tasks.training_step import build_step, compile_sharded, zeros_for
from mindgpt.train.step import AccumulatingTrainStep

_SMALL = 1024  # values: counters and factors, which keep theirs
_STATE = re.compile(r"(exp_avg_sq_row_|exp_avg_sq_col_|[^.]*\.?)(.*)")  # an optimizer's prefix, and its weight

GRAPHS = "graphs"
"""The folder, in the working directory, into which MindSpore writes the text of the graphs."""


def compile_step(config: RunConfig) -> tuple[nn.Cell, nn.Cell]:
    """The model and the training step of a run on this rank, compiled."""
    model_config, sharded = GPT2Config.from_section(config.model.config), strategy() is Strategy.SEMI_AUTO
    # With this, MindSpore shards the shapes of parameters, those of the optimizer too, and makes no values.
    with no_init_parameters():
        model = model_class(config.model.arch.type)(model_config)
        if model_config.pet_config is not None:
            add_lora(model, model_config.pet_config)
    skip_padding_mask(model)
    shapes = shapes_of_batch(config)
    if not sharded:
        _set_to_untouched_zeros(model)
    step, layout = build_step(config, model, np.full(10, 1e-4, np.float32), padding=len(shapes) > 1)
    if not sharded:
        _set_to_untouched_zeros(step)
    step.set_train()
    columns = zeros_for(shapes)
    if sharded:
        compile_sharded(step, columns, layout)
    elif isinstance(step, AccumulatingTrainStep):
        step.accumulate.compile(*columns)
        step.finish.compile()
    else:
        step.compile(*columns)
    return model, step


def _set_to_untouched_zeros(cell: nn.Cell) -> None:
    """Give weights and state values that take no memory: the system provides pages of zeros when they are touched, and
    nothing is computed with them. MindSpore compiles for one card only with values."""
    for parameter in cell.get_parameters():
        if parameter.has_init or parameter.size > _SMALL:
            zeros = np.zeros(parameter.shape, ms.dtype_to_nptype(parameter.dtype))
            parameter.set_data(Tensor.from_numpy(zeros))
            parameter.init_mode = None


def shapes_of_batch(config: RunConfig) -> list[tuple[int, ...]]:
    """The shapes of the columns that a graph is called with; of a sharded model those of all ranks together."""
    classifier = config.trainer.type == "TextClassificationTrainer"
    rows = rows_of_step(config) if strategy() is Strategy.SEMI_AUTO else config.runner_config.batch_size
    tokens = config.model.config.seq_length + (0 if classifier else 1)  # of a language model's, the last is a target
    columns = config.train_dataset.input_columns or ["input_ids", "attention_mask", *(["labels"] if classifier else [])]
    return [(rows,) if classifier and name == "labels" else (rows, tokens) for name in columns]


def facts(config: RunConfig, model: nn.Cell, graphs: list[CompiledGraph], times: list[int]) -> dict[str, Any]:
    """What the graphs hold, as JSON values. times: how often each graph runs in a step."""
    collectives: Counter = Counter()
    for graph, count in zip(graphs, times, strict=True):
        for collective, number in graph.collectives().items():
            collectives[collective] += number * count
    parameters = {name: tensor for graph in graphs for name, tensor in graph.parameters.items()}
    trained = {parameter.name: parameter.requires_grad for parameter in model.get_parameters()}
    roles = {"parameters": 0, "gradients": 0, "sums": 0, "optimizer": 0}
    for name, tensor in parameters.items():
        prefix, of = _STATE.match(name).groups()
        if name in trained:
            roles["parameters"] += tensor.bytes
            roles["gradients"] += tensor.bytes if trained[name] else 0
        elif of in trained:  # else a counter or a factor, which is a few bytes
            roles["sums" if prefix == "accu_grads." else "optimizer"] += tensor.bytes
    blocks = {name.split(".")[2] for name in parameters if name.startswith("backbone.blocks.")}
    reduced = {name: size for graph in graphs for name, size in graph.reduced_gradients.items()}
    return {
        "reduced": reduced,
        "parameters": roles["parameters"],
        "gradients": roles["sums"] or roles["gradients"],
        "optimizer": roles["optimizer"],
        "blocks": len(blocks),
        "kept_by_block": max(graph.kept_bytes("Block_construct") for graph in graphs),
        "flops": sum(graph.product_flops * count for graph, count in zip(graphs, times, strict=True)),
        "collectives": [[*collective, count] for collective, count in sorted(collectives.items())],
    }


def main() -> None:
    """Compile, and write the facts; or, under the key `refused`, why MindSpore does not compile it."""
    config_file, facts_file = sys.argv[1:]
    config, _ = load_config(config_file)
    config = config.replaced({"runner_config.sink_mode": False})  # which has a loop where the others have two graphs
    prepare(config)
    began = time.monotonic()
    try:
        model, step = compile_step(config)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        found = {"refused": without_trace(error)}
    else:
        texts = sorted(Path(GRAPHS).rglob("*_validate_*.ir"))
        accumulates = isinstance(step, AccumulatingTrainStep)
        times = [step.batches, 1] if accumulates else [1]
        found = facts(config, model, [CompiledGraph(text) for text in texts], times)
    found["seconds"] = time.monotonic() - began
    found["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(facts_file).write_text(json.dumps(found))


if __name__ == "__main__":
    run_program(main)
