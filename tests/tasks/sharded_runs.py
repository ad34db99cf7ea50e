"""Runs of simulated Ascend ranks that have saved their shards, and what these must merge to."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import yaml

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.models import model_class
from mindgpt.pet.lora import add_lora
from tests.programs import run_simulated
from tests.tasks.save_shards import TIED, is_parameter, whole

REPO = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("save_shards.py")


def make_run(settings: dict[str, Any], folder: Path, compile_all: bool) -> Path:
    """The output folder of a run: strategies and shards of all ranks.

    Args:
        compile_all: compile the step as every rank, and save in `derived/` the shards that the first rank of each
            pipeline stage derives for the others; else compile as these first ranks only, and use derived shards.
    """
    grid = [settings["parallel_config"].get(key, 1) for key in ("data_parallel", "model_parallel", "pipeline_stage")]
    ranks, in_stage = int(np.prod(grid)), grid[0] * grid[1]
    file, output = folder / "run.yaml", folder / "output"
    file.write_text(yaml.safe_dump(settings))
    for rank in range(ranks):
        first = rank - rank % in_stage
        strategy = output / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
        if rank != first and not compile_all:
            shutil.copy(strategy.with_name(f"ckpt_strategy_rank_{first}.ckpt"), strategy)
            continue
        others = [output / ("derived" if compile_all else "checkpoint")] if rank == first else []
        command = [sys.executable, PROGRAM, file, output, *others]
        done = run_simulated(command, rank, ranks, cwd=folder, timeout=300, python_path=[REPO])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output


def assert_whole(file: Path, state: bool, stages: int = 1) -> None:
    """Assert that a file holds a toy model as it was before sharding, and its optimizer's state if `state`.

    Args:
        stages: of the pipeline; if more than one, the tied table is stored in float32.
    """
    held = CheckpointFile(file)
    beside = file.with_name("config.json")
    config = GPT2Config.from_pretrained(beside)
    model = model_class(json.loads(beside.read_text())["architectures"][0])(config)
    if config.pet_config is not None:
        add_lora(model, config.pet_config)
    weights = {
        name: (tuple(parameter.shape), ms.dtype_to_nptype(parameter.dtype))
        for name, parameter in model.parameters_dict().items()
    }
    assert {name for name in held.entries if skip_rule(name) is None} == set(weights)
    in_float32 = stages > 1 and weights[TIED][1] == np.float16
    if in_float32:
        weights[TIED] = (weights[TIED][0], np.float32)
    expected = dict(weights)
    for name in (parameter.name for parameter in model.trainable_params() if state):
        shape, dtype = weights[name]
        kinds = ("adam_m", "adam_v") if dtype == np.float32 else ("adam_m", "adam_v", "master")
        expected |= {f"{kind}.{name}": (shape, np.float32) for kind in kinds}
    for name, (shape, dtype) in expected.items():
        values = held.read(name)
        assert values.dtype == dtype, name
        source = f"master.{name}" if in_float32 and name == TIED else name
        assert np.array_equal(values, whole(source, shape, dtype)), name
    assert ("global_step" in held.entries) == ("loss_scale" in held.entries) == state
    assert len(held.entries) > len(expected) if state else len(held.entries) == len(expected)


def assert_same_shards(ours: Path, theirs: Path, ranks: int) -> None:
    """Assert that every rank's parameters in `ours`, those of its stage, equal the same rank's in `theirs`.

    Of a run in pipeline stages, `ours` has the tied table in float32, which `theirs` may have as a master copy.
    """
    for rank in range(ranks):
        one, other = (CheckpointFile(next((folder / f"rank_{rank}").glob("*.ckpt"))) for folder in (ours, theirs))
        parameters = [name for name in one.entries if is_parameter(name)]
        assert len(parameters) > 20
        assert {"global_step", "loss_scale", "current_iterator_step"} <= set(one.entries)
        for name in parameters:  # theirs holds other stages' parameters, too, not sharded
            as_master = name == TIED and f"master.{TIED}" in other.entries and f"master.{TIED}" not in one.entries
            same = f"master.{TIED}" if as_master else name
            assert np.array_equal(one.read(name), other.read(same)), (rank, name)
