"""Compile a run's training step as one of several simulated Ascend ranks, and export it for `replay_rank.py`.

python export_rank.py YAML      # under mindgpt.runtime.simulated_ascend, with DUMP_ENVIRONMENT

In <output_dir>/replay/: `step_<rank>.mindir`, the compiled step with this card's part of the weights and of the
optimizer's state, and `groups_<rank>.json`, the cards of each communication group in it.
"""

import json
import os
import re
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.config.layout import shards_vocabulary
from mindgpt.config.loader import load_config
from mindgpt.runtime.compiled_graph import CompiledGraph
from mindgpt.runtime.ranks import rank
from mindgpt.tasks.datasets import training_data
from mindgpt.tasks.model_setup import plan_model
from mindgpt.tasks.session import prepare
from mindgpt.tasks.sharded_start import load_shards
from mindgpt.tasks.training_step import build_step, compile_sharded, zeros_for
from mindgpt.train.schedules import learning_rates_of_run

_GROUP = re.compile(r'= \w+\(.*\bgroup: "([^"]+)".*\bgroup_rank_ids: \(([\d, ]+)\)')


def main(yaml: str) -> None:
    """What `mindgpt.tasks.train` does up to the compiled step; then the export. Prints the collectives as JSON."""
    config, _ = load_config(yaml)
    prepare(config)
    dataset, _ = training_data(config)
    learning_rates = learning_rates_of_run(config.lr_schedule, config.optimizer, dataset.get_dataset_size())
    model, _, start = plan_model(config)
    if shards_vocabulary(config):
        _shift_by_mean(model)
    columns = zeros_for(dataset.output_shapes())
    step, layout = build_step(config, model, learning_rates, padding=len(columns) > 1)
    step.set_train()
    compile_sharded(step, columns, layout)
    load_shards(step, start)
    folder = Path(config.output_dir) / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    ms.export(step, *columns, file_name=str(folder / f"step_{rank()}"), file_format="MINDIR")
    text = max(Path(os.environ["MS_DEV_SAVE_GRAPHS_PATH"]).rglob("*_validate_*.ir"), key=lambda path: path.name)
    (folder / f"groups_{rank()}.json").write_text(json.dumps(groups(text)))
    print(json.dumps([[*collective, count] for collective, count in CompiledGraph(text).collectives().items()]))


def groups(text: Path) -> dict[str, list[int]]:
    """The cards of each communication group in the text of a graph, by its name."""
    found = (match for line in text.read_text().splitlines() if (match := _GROUP.search(line)))
    return {match[1]: [int(card) for card in match[2].split(",") if card.strip()] for match in found}


def _shift_by_mean(model: nn.Cell) -> None:
    """Let the sharded loss subtract the mean of the logits, not their maximum: on a CPU AllReduce only sums.

    Any shift that all parts of a row have in common gives the same loss, so the numbers stay, and there is still an
    AllReduce in this place, over the same cards, without which they would not.
    """
    model.cross_entropy.max = ops.ReduceMean(keep_dims=True)
    if model.head.without_padding is not None:  # -1e9 would be most of the mean; exp(-200) is 0 beside the toy's logits
        model.head.without_padding = Tensor(np.maximum(model.head.without_padding.asnumpy(), -200.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
