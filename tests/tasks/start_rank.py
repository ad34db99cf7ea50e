"""Start a toy run as one simulated Ascend rank, from nothing and from weights in several formats.

python start_rank.py YAML WEIGHTS...      # under mindgpt.runtime.simulated_ascend

Prints a JSON object. Each of its lists of names is empty if all is right:
made: parameters whose initial values are not those that MindSpore makes while it compiles.
rounded: weights in half precision that do not begin as their master copies, rounded.
loaded: for each of WEIGHTS the parameters that are not MindSpore's own shard of the whole tensor; of a weight in half
    precision that shard rounded, and of its master copy not rounded.
read, held: for each of WEIGHTS how many bytes were read of tensors, and how many the rank's shards of them have.
"""

import json
import os
import sys
from collections.abc import Mapping
from unittest import mock

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.parallel._tensor import _load_tensor_by_layout

from mindgpt.checkpoints import tensor_source
from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.weights import CheckedWeights, check_weights, open_weights
from mindgpt.config.errors import run_program
from mindgpt.config.loader import load_config
from mindgpt.models import model_class
from mindgpt.planning.planned_step import shapes_of_batch
from mindgpt.runtime.ranks import rank
from mindgpt.tasks.model_setup import Start, plan_model
from mindgpt.tasks.session import prepare
from mindgpt.tasks.sharded_start import load_shards
from mindgpt.tasks.training_step import build_step, compile_sharded, zeros_for
from mindgpt.train.checkpoint_monitor import parameters_of_step


def compiled(config, model) -> nn.Cell:
    step, layout = build_step(config, model, np.full(10, 1e-4, np.float32), padding=True)
    step.set_train()
    compile_sharded(step, zeros_for(shapes_of_batch(config)), layout)
    return step


def made_by_mindspore(config) -> dict[str, np.ndarray]:
    """The parameters of a step whose model was built with initial values, which MindSpore makes while it compiles."""
    if hasattr(Parameter, "init_param"):  # set once `no_init_parameters` was used; then no lazy parameter is made
        del Parameter.init_param
    step = compiled(config, model_class(config.model.arch.type)(GPT2Config.from_section(config.model.config)))
    return {name: parameter.asnumpy() for name, parameter in parameters_of_step(step).items()}


def main() -> None:
    """Print the object."""
    yaml, *files = sys.argv[1:]
    config, _ = load_config(yaml)
    prepare(config)
    expected = made_by_mindspore(config)
    ms.set_seed(config.seed)
    model, config, start = plan_model(config)
    checked = {file: check_weights(model, open_weights(file)) for file in files}
    step = compiled(config, model)
    load_shards(step, start)
    parameters = parameters_of_step(step)
    assert parameters.keys() == expected.keys()
    found = {"made": differing(parameters, expected), "rounded": not_rounded(step)}
    print(json.dumps(found | loaded(step, checked)))


def not_rounded(step: nn.Cell) -> list[str]:
    """The weights that are not their master copies, rounded."""
    weights = {weight.name: weight for weight in step.optimizer.parameters}
    expected = {
        name: Tensor(master.asnumpy(), weights[name].dtype).asnumpy() for name, master in step.optimizer.masters.items()
    }
    assert all(np.ptp(master.asnumpy()) > 0 for name, master in step.optimizer.masters.items() if "weight" in name)
    return differing(weights, expected)


def loaded(step: nn.Cell, weights: dict[str, CheckedWeights]) -> dict[str, dict]:
    """The last three keys of the object."""
    masters = step.optimizer.masters
    found = {"loaded": {}, "read": {}, "held": {}}
    for file, checked in weights.items():
        held = {name: p for name, p in step.parameters_dict().items() if name in checked.names and p.sliced}
        assert 10 < len(held) < len(checked.names), "those of one stage"
        counts, preadv = [], os.preadv

        def counting(*arguments, counts=counts, preadv=preadv):
            counts.append(preadv(*arguments))
            return counts[-1]

        with mock.patch.object(os, "preadv", counting), mock.patch.object(tensor_source, "_PAGE", 1):
            load_shards(step, Start(checked, "", None, ""))
        layouts, whole = step.parameter_layout_dict, checked.source.read
        shards = {name: _load_tensor_by_layout(Tensor(whole(name)), layouts[name], rank()).asnumpy() for name in held}
        expected = {name: Tensor(shard, held[name].dtype).asnumpy() for name, shard in shards.items()}
        of_masters = {name: shards[name] for name in masters}
        found["loaded"][file] = differing(held, expected) + differing(masters, of_masters)
        found["read"][file], found["held"][file] = sum(counts), 4 * sum(parameter.size for parameter in held.values())
    return found


def differing(parameters: Mapping[str, Parameter], expected: Mapping[str, np.ndarray]) -> list[str]:
    """The names of those that are not what is expected."""
    return [
        name
        for name, values in expected.items()
        if parameters[name].shape != values.shape or parameters[name].asnumpy().tobytes() != values.tobytes()
    ]


if __name__ == "__main__":
    run_program(main)
