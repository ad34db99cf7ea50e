"""Every YAML in the folders of configs compiles for Ascend at its layout.

At its true width, heads, vocabulary and row length, with as few layers as its pipeline stages need; all layers are for
tools/dry_run.py (docs/parallel.md). Files that differ only in what no graph depends on share a compilation.
"""

import json
import sys
from pathlib import Path

import pytest

from mindgpt.config.hardware import load_hardware
from mindgpt.config.layout import grid_of, shards_rows_of_head, shards_vocabulary
from mindgpt.config.loader import dump_config, load_config
from mindgpt.config.strategy import asks_for_semi_auto
from mindgpt.planning.dry_run import dry_run
from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT
from tests.programs import run_simulated

REPO = Path(__file__).resolve().parents[2]
PAGES = {  # folder in configs -> page in docs
    "gpt2": "parallel.md", "gpt2_chinese": "chinese_gpt2.md", "gpt2_ml": "gpt2_ml.md",
    "gpt3": "chinese_gpt3.md",
}  # fmt: skip
CONFIGS = sorted(path for folder in PAGES for path in (REPO / "configs" / folder).glob("*.yaml"))
SERVER = 8  # cards for what is data parallel, on however many
NOT_IN_A_GRAPH = (
    "run_mode", "load_checkpoint", "output_dir", "lr_schedule", "callbacks", "metric", "trainer.model_name",
    "runner_config.epochs", "model.model_config.checkpoint_name_or_path",
)  # fmt: skip

pytestmark = pytest.mark.needs_ascend


def shallow(path):
    """A file's configuration with few layers and few micro-batches, whose number changes no weight."""
    config, _ = load_config(path)
    stages = grid_of(config).pipeline_stage
    fewer = {
        "model.config.num_layers": max(2, stages),
        "parallel_config.micro_batch_num": min(config.parallel_config.micro_batch_num, 2 * stages),
        "runner_config.gradient_accumulation_steps": min(config.runner_config.gradient_accumulation_steps, 2),
    }
    return config.replaced(fewer)


def what_compiles(config):
    """A text that is the same for configurations of the same graphs. A key that is not known to be without effect
    counts as one that has one."""
    values = config.model_dump(by_alias=True, exclude_none=True)
    for key in NOT_IN_A_GRAPH:
        *sections, name = key.split(".")
        below = values
        for section in sections:
            below = below[section]
        below.pop(name, None)
    return json.dumps([config.run_mode == "predict", values], sort_keys=True, default=str)


def groups(configuration):
    """The files whose configurations, by the function given, compile alike: names -> first of them."""
    together = {}
    for path in CONFIGS:
        together.setdefault(what_compiles(configuration(path)), []).append(path)
    return {", ".join(path.stem for path in paths): paths[0] for paths in together.values()}


GROUPS = groups(shallow)
TRAINED = {name: path for name, path in GROUPS.items() if shallow(path).run_mode != "predict"}
TABULATED = {
    name: path
    for name, path in groups(lambda path: load_config(path)[0]).items()
    if shallow(path).run_mode != "predict"
}
WRITING = {name: path for name, path in GROUPS.items() if shallow(path).run_mode == "predict"}


def cases(groups):
    """Parameters for pytest. In some folders one file stands for the others, which are slow: their blocks are alike."""
    return [
        pytest.param(path, id=names, marks=[pytest.mark.slow] if is_stood_for(path) else [])
        for names, path in groups.items()
    ]


def is_stood_for(path):
    return path.stem != {"gpt2_ml": "finetune_gpt2_ml_mega_fp16", "gpt3": "pretrain_gpt3_30b_fp16"}.get(
        path.parent.name, path.stem
    )


@pytest.mark.parametrize("path", cases(TRAINED))
def test_training_step(path):
    config = shallow(path)
    sharded = asks_for_semi_auto(config)
    devices = grid_of(config).devices if sharded else SERVER
    plan = dry_run(config, devices, load_hardware(REPO / "configs" / "hardware" / "atlas_800t_a2.yaml"))
    network, stages = config.model.config, grid_of(config).pipeline_stage
    assert sum(stage.blocks for stage in plan.stages) == network.num_layers - max(0, stages - 3)  # one a stage
    for stage in plan.stages:
        assert stage.parameters == bytes_of_parameters(config, stage.stage)
        kinds = {collective.kind for collective in stage.collectives if collective.purpose == "activations"}
        by_tokens = {"AllGather", "ReduceScatter"} if config.parallel_config.use_seq_parallel else set()
        grid = grid_of(config)
        of_table = stage.stage == 0 and shards_vocabulary(config)
        of_loss = stage.stage == stages - 1 and (
            grid.data_parallel > 1 or shards_vocabulary(config) or shards_rows_of_head(config)
        )
        sums = {"AllReduce"} if sharded and (of_table or of_loss) else set()
        assert kinds == by_tokens | sums


@pytest.mark.parametrize("path", TABULATED.values(), ids=TABULATED)
def test_the_table_in_the_docs_has_it(path):
    """With all layers, which take minutes to compile; their weights by the rule that few layers are compiled by."""
    (names,) = (name for name, first in TABULATED.items() if first == path)
    page = (REPO / "docs" / PAGES[path.parent.name]).read_text(encoding="utf-8")
    (table,) = (part for part in page.split("\n\n") if part.startswith(f"| in `configs/{path.parent.name}` |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (row,) = (row for row in rows if set(row[0].replace("`", "").split(", ")) == set(names.split(", ")))
    config, _ = load_config(path)
    grid = grid_of(config)
    if grid.devices > 1:  # else data parallel on however many cards
        assert row[1] == str(grid.devices)
        assert f"data_parallel {grid.data_parallel}" in row[2] or grid.data_parallel == 1
        assert f"model_parallel {grid.model_parallel}" in row[2] or grid.model_parallel == 1
    assert row[3] == f"{bytes_of_parameters(config, stage=0) / 2**30:.2f}"
    assert float(row[6]) == pytest.approx(sum(map(float, row[3:6])), abs=0.02)


def bytes_of_parameters(config, stage):
    """What a rank of a stage holds, by hand: products, and the vocabulary if that is asked for, sharded by
    model_parallel, all else whole.

    With optimizer_shard, what takes 64 kB or more is also sharded over the ranks that hold the same, if they divide its
    rows: by data_parallel, and what is whole by model_parallel, too.
    """
    network, grid = config.model.config, grid_of(config)
    hidden, wide, mp = network.hidden_size, network.ffn_hidden_size, grid.model_parallel
    of_value = {"float32": 4, "float16": 2}[network.param_init_type]

    def held(rows, columns, sharded, of_value=of_value):
        """Bytes of a weight, whose rows are divided by the optimizer. `sharded`: by model_parallel."""
        size = rows * columns * of_value
        ranks = grid.data_parallel * (1 if sharded else mp)
        by_optimizer = (
            config.parallel_config.optimizer_shard and size >= 2**16 and rows // (mp if sharded else 1) % ranks == 0
        )
        return size // (mp if sharded else 1) // (ranks if by_optimizer else 1)

    block = 4 * held(hidden, hidden, True) + 2 * held(wide, hidden, True)
    block += 3 * held(hidden, 1, True) + held(wide, 1, True) + 2 * held(hidden, 1, False)  # biases
    block += 4 * held(hidden, 1, False, of_value=4)  # layer norms
    if network.pet_config is not None:  # on query and value: A whole, B by columns
        assert not config.parallel_config.optimizer_shard, "the formula has no such term"
        block += 4 * 2 * network.pet_config.lora_rank * (hidden + hidden // mp)
    total = network.num_layers // grid.pipeline_stage * block
    in_float32 = grid.pipeline_stage > 1 and network.tie_word_embeddings and network.pet_config is None
    table = held(network.vocab_size, hidden, shards_vocabulary(config), 4 if in_float32 else of_value)
    if stage == 0:
        total += table + held(network.max_position_embeddings, hidden, False)
    if stage == (grid.pipeline_stage - 1 if network.final_norm else 0):
        total += 2 * held(hidden, 1, False, of_value=4)  # the layer norm after the last block, or after the embeddings
    if stage == grid.pipeline_stage - 1:
        if config.trainer.type == "TextClassificationTrainer":
            total += of_value * network.num_labels * hidden
        elif stage > 0:
            total += table  # the head, which is the first stage's embedding
    return total


@pytest.mark.parametrize("path", cases(WRITING))
def test_graphs_of_generation(path, tmp_path):
    """As run_mode predict has them on a card: their products, by hand. model_parallel shards all but the head."""
    config = shallow(path).replaced({"context.device_target": "Ascend"})
    cards = config.parallel_config.model_parallel
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    done = run_simulated(
        [sys.executable, Path(__file__).with_name("compile_generator.py"), "config.yaml"],
        rank=0,
        size=cards,
        cwd=tmp_path,
        timeout=300,
        more=DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path / "graphs")},
        python_path=[REPO],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    network, chunk, capacity = config.model.config, 32, 128
    hidden = network.hidden_size
    weights = network.num_layers * (4 * hidden**2 + 2 * hidden * network.ffn_hidden_size)
    of_token = 2 * weights + 4 * network.num_layers * hidden * capacity  # scores and context over the whole cache
    last_logits = 2 * network.vocab_size * hidden
    of_token //= cards
    decode, prefill = of_token + last_logits, chunk * of_token
    assert json.loads(done.stdout.splitlines()[-1]) == [last_logits, decode, prefill]
