"""Run the training step that was compiled for one simulated Ascend card, as one of as many CPU processes.

python replay_rank.py YAML EXPORTED FOLDER      # under scripts/msrun_launcher.sh

YAML is a run of one process, whose batches all cards read; EXPORTED the folder `replay` of `export_rank.py`. In FOLDER:
`outputs_<rank>.json`, what every step gives, and this card's part of the state after the last in
`checkpoint/rank_<rank>/`, as a run on cards leaves it.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
from mindspore import nn
from mindspore.communication import create_group, init

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.loader import load_config
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.ranks import rank
from mindgpt.tasks.datasets import training_data


def main(yaml: str, exported: str, folder: str) -> None:
    """One epoch."""
    config, _ = load_config(yaml)
    prepare_device(config.context, folder, config.seed)
    init()
    for name, cards in json.loads(Path(exported, f"groups_{rank()}.json").read_text()).items():
        create_group(name, cards)
    step = nn.GraphCell(ms.load(str(Path(exported, f"step_{rank()}.mindir"))))
    dataset, _ = training_data(config)
    outputs = [
        [value.asnumpy().item() for value in step(*batch)] for batch in dataset.create_tuple_iterator(num_epochs=1)
    ]
    Path(folder, f"outputs_{rank()}.json").write_text(json.dumps(outputs))
    held = Path(folder, "checkpoint", f"rank_{rank()}")
    state = {p.name: p for p in step.get_parameters() if not p.name.startswith("norm_shares")}
    save_checkpoint(held / f"toy_rank_{rank()}-1_{len(outputs)}.ckpt", state)
    GPT2Config.from_section(config.model.config).save_pretrained(held, config.model.arch.type)


if __name__ == "__main__":
    main(*sys.argv[1:])
