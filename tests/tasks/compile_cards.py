"""Compile the training step of a toy model as one simulated Ascend card, and tell what came of it as JSON.

python compile_cards.py YAML FOLDER      # under mindgpt.runtime.simulated_ascend
"""

import json
import re
import sys
from pathlib import Path

import mindspore as ms
import numpy as np

from mindgpt.config.loader import load_config
from mindgpt.models import model_class
from mindgpt.models.gpt2.gpt2_config import GPT2Config
from mindgpt.pet.lora import add_lora
from mindgpt.runtime.collectives import join_cut
from mindgpt.runtime.device import prepare_device
from mindgpt.tasks.cards import compile_cut, cut_of, lay_out, layout_of, train_step, zeros_for
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable

_COLLECTIVE = re.compile(r"= (AllReduce|AllGather|ReduceScatter|Send|Receive|AlltoAll)\(")
_UPDATE = re.compile(r"= (?:PrimFunc_)?AdamWeightDecay\(")


def main(yaml: str, folder: str) -> None:
    """Print a JSON object: shapes, holders, updates, and collectives as [kind, where] pairs."""
    config, _ = load_config(yaml, {"output_dir": folder})
    prepare_device(config.context, folder, seed=0)
    join_cut(cut_of(config))
    ms.set_context(save_graphs=2, save_graphs_path=f"{folder}/ir")
    model = model_class(config.model.arch.type)(GPT2Config.from_section(config.model.config))
    if config.model.config.pet_config is not None:
        add_lora(model, config.model.config.pet_config)
    layout = layout_of(config, padding=True)
    trained = lay_out(config, model, layout, cut_of(config).stage)
    optimizer = build_optimizer(config.optimizer, trained, LearningRateTable(np.full(10, 1e-4)))
    step = train_step(config, model, optimizer, cut=True)
    step.set_train()
    holders = compile_cut(step, zeros_for(shapes_of_batch(config)), layout)
    graph = next(Path(folder, "ir").rglob("*_validate_*.ir")).read_text()
    print(
        json.dumps(
            {
                "holders": holders,
                "shapes": {parameter.name: parameter.shape for parameter in optimizer.parameters},
                "updates": len(_UPDATE.findall(graph)),
                "collectives": list(collectives(graph)),
            }
        )
    )


def shapes_of_batch(config):
    """Of the columns of 8 rows."""
    tokens = config.model.config.seq_length
    if config.model.arch.type == "GPT2LMHeadModel":
        return [(8, tokens + 1)] * 2
    return [(8, tokens), (8, tokens), (8,)]


def collectives(graph):
    """(kind, scope) of each; the scope of what keeps equal parameters equal has `Mirror` in it."""
    lines = graph.splitlines()
    for number, line in enumerate(lines):
        if match := _COLLECTIVE.search(line):
            scope = next(after for after in lines[number:] if "Fullname with scope" in after)
            yield match[1], scope.split("scope:")[1].strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
