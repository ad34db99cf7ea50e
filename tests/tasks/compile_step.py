"""Compile the training step of a toy model as one simulated Ascend rank, and print facts about its graph as JSON.

python compile_step.py YAML FOLDER      # under mindgpt.runtime.simulated_ascend, with DUMP_ENVIRONMENT
"""

import json
import re
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore._c_expression import ms_ctx_param
from mindspore.context import _context

from mindgpt.config.errors import run_program
from mindgpt.config.loader import load_config
from mindgpt.config.strategy import Strategy
from mindgpt.planning.planned_step import GRAPHS, compile_step
from mindgpt.runtime.collectives import strategy
from mindgpt.runtime.compiled_graph import CompiledGraph
from mindgpt.tasks.session import prepare
from mindgpt.train.step import AccumulatingTrainStep

_COLLECTIVE = re.compile(r"= (AllReduce|AllGather|ReduceScatter|Send|Receive|AlltoAll)\(")
_UPDATE = re.compile(r"= (?:PrimFunc_)?AdamWeightDecay\(")
_MASK = re.compile(r"= (?:PrimFunc_)?(?:DropoutGenMask|Dropout)\(.*?(?:Seed0: I64\((\d+)\), Seed1: I64\((\d+)\)|$)")
_FLASH = re.compile(r"= (?:PrimFunc_)?FlashAttentionScore\(")
_LOGITS = re.compile(r"\(<Tensor\[\w+\], \((\d+), (\d+)\)>\)\n.*Fullname with scope: \(Default/.*head-LMHead/MatMul-")
_CONTEXT = ("precision_mode", "matmul_allow_hf32", "hccl_watchdog", "topo_order", "matmul_grad_comm_overlap")
_CONTEXT += ("enable_grad_comm_opt",)
_PARALLEL = ("comm_fusion", "enable_alltoall", "force_fp32_communication", "gradient_fp32_sync")


def main() -> None:
    """Print a JSON object.

    shapes: of the shards that this rank trains; held: of every weight in its graph; holders: for each trained one, how
    many ranks have the same shard; masters: the shapes of the shards of master copies, by the names of their weights;
    updates, flash: operators in the graph; masks: the seeds and the cell of each operator that generates a dropout
    mask; squares: how many times the graph names a shape that ends in seq_length x seq_length; logits: the shape that
    the head computes; flops: of a step's matrix products; collectives: [kind, where] pairs; context, parallel: settings
    of MindSpore.
    """
    yaml, folder = sys.argv[1:]
    config, _ = load_config(yaml, {"output_dir": folder})
    prepare(config)
    model, step = compile_step(config)
    files = sorted(Path(GRAPHS).rglob("*_validate_*.ir"))
    text, graphs = "".join(file.read_text() for file in files), [CompiledGraph(file) for file in files]
    times = [step.batches, 1] if isinstance(step, AccumulatingTrainStep) else [1]
    tokens, trained = config.model.config.seq_length, step.optimizer.parameters
    shares = step.update.norm.shares.asnumpy() if strategy() is Strategy.SEMI_AUTO else np.ones(len(trained))
    masters = {weight: master.shape for weight, master in step.optimizer.masters.items()}
    names = {parameter.name for parameter in model.get_parameters()}
    held = {name: tensor.shape for graph in graphs for name, tensor in graph.parameters.items() if name in names}
    print(
        json.dumps(
            {
                "holders": {weight.name: round(1 / share) for weight, share in zip(trained, shares, strict=True)},
                "shapes": {weight.name: weight.shape for weight in trained},
                "held": held,
                "masters": masters,
                "updates": len(_UPDATE.findall(text)),
                "flash": len(_FLASH.findall(text)),
                "masks": [[*match.groups(), scope] for match, scope in matches_with_scope(text, _MASK)],
                "squares": len(re.findall(rf"\b{tokens}, {tokens}\)", text)),
                "logits": [int(size) for size in logits.groups()] if (logits := _LOGITS.search(text)) else None,
                "flops": sum(graph.product_flops * n for graph, n in zip(graphs, times, strict=True)),
                "context": {name: _context().get_param(getattr(ms_ctx_param, name)) for name in _CONTEXT},
                "parallel": {name: ms.get_auto_parallel_context(name) for name in _PARALLEL},
                "collectives": [[match[1], scope] for match, scope in matches_with_scope(text, _COLLECTIVE)],
            }
        )
    )


def matches_with_scope(graph, pattern):
    """Each operator that matches, and its scope; the scope of what keeps equal parameters equal has `Mirror` in it."""
    lines = graph.splitlines()
    for number, line in enumerate(lines):
        if match := pattern.search(line):
            scope = next(after for after in lines[number:] if "Fullname with scope" in after)
            yield match, scope.split("scope:")[1].strip()


if __name__ == "__main__":
    run_program(main)
