"""Training steps compiled for four simulated Ascend cards, run on four CPU processes beside a run of one process.

The reference is the user's command on one CPU. The ranks' steps are those of the same run in data_parallel 2 x
model_parallel 2: model, layout, loss, gradients, norm, clipping and AdamW as compiled for Ascend, collectives included.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.loader import load_config
from mindgpt.data.mindrecord import MindRecordWriter
from mindgpt.models import model_class
from mindgpt.pet.lora import add_lora
from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT
from tests.programs import run_simulated

PROGRAMS = Path(__file__).with_name("replay")
CARDS, STEPS, ROWS, TOKENS, LAYERS = 4, 10, 8, 32, 2
ROW_CARDS, WIDTH_CARDS, ALL_CARDS = (0, 2), (0, 1), (0, 1, 2, 3)  # with whom rank 0 shares rows, widths, anything

pytestmark = [
    pytest.mark.usefixtures("cpu"),
    pytest.mark.needs_ascend,
]

SETTINGS = {
    "run_mode": "finetune",
    "context": {"enable_graph_kernel": False},
    "runner_config": {"epochs": 1, "batch_size": ROWS},
    # AdamW makes of a gradient that is rounding alone (the keys' biases change no score) a step as long as any other
    # unless eps is larger; it is 1e-8 by default.
    "optimizer": {"eps": 1e-6, "weight_decay": 0.1},
    "lr_schedule": {"type": "cosine", "learning_rate": 0.01, "warmup_steps": 3},
    "runner_wrapper": {"use_clip_grad": True, "max_grad_norm": 0.8},
    "train_dataset": {"data_loader": {"shuffle": True}},
    "callbacks": [{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor", "prefix": "toy"}],
    "model": {
        "model_config": {
            "seq_length": TOKENS, "hidden_size": 32, "num_layers": LAYERS, "num_heads": 4, "vocab_size": 300,
            "hidden_dropout_rate": 0.0, "attention_dropout_rate": 0.0, "compute_dtype": "float32",
            "layernorm_compute_type": "float32", "softmax_compute_type": "float32", "param_init_type": "float32",
        }
    },
}  # fmt: skip
LORA = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ".*(dense1|dense3|projection|mapping)"}
ACCUMULATION = {"runner_config": {"batch_size": ROWS // 2, "gradient_accumulation_steps": 2}}
INTERLEAVED = {"micro_batch_interleave_num": 2, "runner_config": {"gradient_accumulation_steps": 1}}
CASES = {  # parallel_config, settings of both runs, settings of the sharded one
    "vocabulary": ({"vocab_emb_dp": False}, {}, {}),
    "whole vocabulary": ({"vocab_emb_dp": True}, {}, {}),
    "LoRA": (
        {"vocab_emb_dp": False},
        {"model": {"model_config": {"pet_config": LORA}}, "runner_wrapper": {"max_grad_norm": 0.3}},
        {},
    ),
    "accumulation": ({"vocab_emb_dp": False}, ACCUMULATION, {}),
    "interleaved": ({"vocab_emb_dp": False}, ACCUMULATION, INTERLEAVED),
    # As above, eps is far over the squares of gradients that are rounding alone, and far below all others.
    "AdaFactor": (
        {"vocab_emb_dp": False},
        {
            "optimizer": {"type": "adafactor", "eps": 1e-10, "clip_threshold": 0.9, "beta1": 0.5},
            "lr_schedule": {"learning_rate": 0.05},
            "runner_wrapper": {"max_grad_norm": 1.0},
        },
        {},
    ),
    "uer": (
        {"vocab_emb_dp": False, "use_seq_parallel": False},
        {"model": {"model_config": {"layer_norm": "uer", "tie_word_embeddings": False}}},
        {},
    ),
    # A vocabulary that two cards cannot share, and with padding they can; one process has none.
    "odd vocabulary": ({"vocab_emb_dp": False}, {"model": {"model_config": {"vocab_size": 301}}}, {}),
    "padded vocabulary": (
        {"vocab_emb_dp": False},
        {"model": {"model_config": {"vocab_size": 301}}},
        {"model": {"model_config": {"vocab_size": 304, "unpadded_vocab_size": 301}}},
    ),
    "gpt2_ml": ({"vocab_emb_dp": False}, {"model": {"model_config": {"variant": "gpt2_ml"}}}, {}),
    # Without a loss scale gradients below 6e-5 would be float16's subnormal numbers, which are rounded by up to 3e-8.
    "float16 weights": (
        {"vocab_emb_dp": False},
        {"model": {"model_config": {"param_init_type": "float16"}}, "runner_wrapper": {"scale_sense": 2.0**14}},
        {},
    ),
}
HALF = 2.0**-11
"""The largest relative error of rounding to float16. One process rounds the gradient of a float16 weight once; cards
round the parts that they compute, and the sum of these. So a gradient differs by 2 * HALF of itself, or more where the
parts cancel. That is all that differs: one process and two data-parallel ones, on CPU, differ by as much (masters by
4.5e-6 on average, 4.2e-5 at most), and in float32 cards and one process by 2e-6 at most. That masters follow float32
weights if the gradients are the same, tests/train/test_optimizers.py shows."""
STATE = re.compile(r"(?:adam_[mv]\.|adafactor_[mv]\.|exp_avg_sq_(?:row|col)_)(.+)")
SLOW = [name for name in CASES if name != "vocabulary"]


def with_more(settings, more):
    """`settings` with the values of `more` at their places; neither is changed."""
    nested = {key: with_more(settings.get(key, {}), value) for key, value in more.items() if isinstance(value, dict)}
    return settings | more | nested


def write_settings(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def write_rows(path):
    """Rows that can be learnt a little. Of some few tokens count, so that the cards' parts of a step weigh unlike."""
    draw = np.random.default_rng(0)
    ids = draw.integers(5, 60, (STEPS * ROWS, TOKENS + 1)).astype(np.int32)
    mask, labels = np.ones_like(ids), ids.copy()
    for row in range(0, len(ids), 2):
        mask[row, draw.integers(4, TOKENS) :] = 0
    for row in range(0, len(ids), 3):
        labels[row, : draw.integers(1, TOKENS)] = -100
    with MindRecordWriter(path, ["input_ids", "attention_mask", "labels"]) as writer:
        writer.write({"input_ids": list(ids), "attention_mask": list(mask), "labels": list(labels)})


def write_start(path, settings):
    """Weights to begin with; none is 0 or 1, as a fresh model's biases, scales and LoRA factors are."""
    section = load_config(write_settings(path.with_name("start.yaml"), settings))[0].model
    ms.set_seed(1)
    model = model_class(section.arch.type)(GPT2Config.from_section(section.config))
    if section.config.pet_config is not None:
        add_lora(model, section.config.pet_config)
    draw, start = np.random.default_rng(2), {}
    for name, parameter in model.parameters_dict().items():
        noise = 0.05 * draw.standard_normal(parameter.shape).astype(np.float32)
        start[name] = Tensor(parameter.init_data().asnumpy() + noise)
    save_checkpoint(path, start)
    model.config.save_pretrained(path.parent, type(model).__name__)


@pytest.fixture
def one_process(succeed, tmp_path):
    """A run of one process: `one_process({settings})` -> the file of its settings; what it wrote is in `one/`."""

    def run(settings):
        write_rows(tmp_path / "rows.mindrecord")
        write_start(tmp_path / "start.ckpt", settings)
        paths = {
            "output_dir": str(tmp_path / "one"),
            "load_checkpoint": str(tmp_path / "start.ckpt"),
            "train_dataset": {"data_loader": {"dataset_dir": str(tmp_path / "rows.mindrecord")}},
        }
        file = write_settings(tmp_path / "one.yaml", with_more(settings, paths))
        succeed("run_mindformer.py", "--config", file, cwd=tmp_path)
        return file

    return run


@pytest.fixture
def exported(repo, tmp_path):
    """Compile a file's run, sharded, and export the steps: `exported(file, {parallel_config}, {more})` ->
    the collectives of rank 0's step, {(kind, purpose, cards): number}."""

    def compile_rank(file, card):
        command = [sys.executable, PROGRAMS / "export_rank.py", file]
        dumps = DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path / f"graphs_{card}")}
        done = run_simulated(command, card, CARDS, cwd=tmp_path, timeout=300, more=dumps, python_path=[repo])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def run(file, layout, more):
        settings = yaml.safe_load(file.read_text())
        sharding = {
            "output_dir": str(tmp_path / "cards"),
            "use_parallel": True,
            "parallel": {"parallel_mode": 1},
            "parallel_config": {"data_parallel": 2, "model_parallel": 2, **layout},
            "runner_config": {"batch_size": settings["runner_config"]["batch_size"] // 2},
        }
        sharded_file = write_settings(tmp_path / "cards.yaml", with_more(with_more(settings, sharding), more))
        with ThreadPoolExecutor(2) as two_at_a_time:
            facts = list(two_at_a_time.map(lambda card: compile_rank(sharded_file, card), range(CARDS)))
        kinds = Counter()
        for kind, purpose, cards, _, count in facts[0]:
            kinds[kind, purpose, tuple(cards)] += count
        return kinds

    return run


@pytest.fixture
def replay(repo, tmp_path):
    """Run what was exported, on the batches of a file's run: `replay(file)` -> (cards, steps, 5), what steps give."""

    def run(file):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MS_", "RANK_ID", "OMP_"))}
        environment = clean | {"PYTHON": sys.executable, "PYTHONPATH": str(repo)}
        arguments = f"'{PROGRAMS / 'replay_rank.py'}' '{file}' '{tmp_path / 'cards' / 'replay'}' '{tmp_path / 'cards'}'"
        command = ["bash", str(repo / "scripts" / "msrun_launcher.sh"), arguments, str(CARDS)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return np.array(
            [json.loads((tmp_path / "cards" / f"outputs_{card}.json").read_text()) for card in range(CARDS)]
        )

    return run


@pytest.mark.parametrize("name", ["vocabulary", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_four_cards_train_as_one_process(one_process, exported, replay, succeed, tmp_path, name):
    layout, more, of_cards = CASES[name]
    file = one_process(with_more(SETTINGS, more))
    collectives = exported(file, layout, of_cards)
    loss, skipped, _, rate, norm = np.moveaxis(replay(file), -1, 0)  # (cards, steps) each

    # What has been replayed: every collective of the step is a sum, in the groups of rows, of widths, and of all cards.
    assert {kind for kind, _, _ in collectives} == {"AllReduce"}
    assert {cards for _, _, cards in collectives} == {ROW_CARDS, WIDTH_CARDS, ALL_CARDS}
    assert collectives["AllReduce", "activations", WIDTH_CARDS] >= 4 * LAYERS
    assert collectives["AllReduce", "gradients", ROW_CARDS] > 0

    log = [json.loads(line) for line in (tmp_path / "one" / "log" / "train.jsonl").read_text().splitlines()]
    assert len(log) == STEPS
    expected = {key: [record[key] for record in log] for key in ("loss", "learning_rate", "grad_norm")}
    clipped = np.array(expected["grad_norm"]) > yaml.safe_load(file.read_text())["runner_wrapper"]["max_grad_norm"]
    assert clipped.any() and not clipped.all(), "there must be steps of both kinds"
    assert expected["loss"][-1] < 0.98 * expected["loss"][0], "the curve must have somewhere to go"
    assert not skipped.any()
    # Gradients of float16 weights are float16 (see HALF), and so a weight may be rounded to a neighbour.
    tolerance = 1e-4 if name == "float16 weights" else 1e-5
    for card in range(CARDS):  # all have the loss of all rows
        np.testing.assert_allclose(loss[card], expected["loss"], rtol=tolerance)
        np.testing.assert_allclose(norm[card], expected["grad_norm"], rtol=tolerance)
        np.testing.assert_array_equal(rate[card].astype(np.float32), np.float32(expected["learning_rate"]))
    padded = "padded" in name  # the last rows of the table are zero still, or they are not removed
    assert_same_state(tmp_path, succeed, *(["--vocab_size", "301"] if padded else []))


def assert_same_state(folder, succeed, *flags):
    """That the cards' parts, merged, are the weights and the optimizer's state that one process has come to."""
    succeed(
        "tools/transform_ckpt.py", "--src_ckpt_dir", "cards/checkpoint", "--dst_ckpt_dir", "merged",
        "--training_state", *flags, cwd=folder,
    )  # fmt: skip
    merged = CheckpointFile(folder / "merged" / "rank_0" / "checkpoint_0.ckpt")
    single = CheckpointFile(next((folder / "one" / "checkpoint").rglob("*.ckpt")))
    start = CheckpointFile(folder / "start.ckpt")
    state = {name: match[1] for name in single.entries if (match := STATE.fullmatch(name))}  # entry -> its weight
    trained = set(state.values())
    assert trained
    assert set(start.entries) == {name for name in merged.entries if skip_rule(name) is None}
    differences = []
    for name in start.entries:
        if (master := f"master.{name}") in single.entries:
            for run in (merged, single):
                np.testing.assert_array_equal(run.read(name), run.read(master).astype(np.float16), err_msg=name)
            np.testing.assert_allclose(merged.read(master), single.read(master), rtol=0, atol=1e-4, err_msg=name)
            differences.append(np.ravel(merged.read(master) - single.read(master)))
        else:
            np.testing.assert_allclose(merged.read(name), single.read(name), rtol=0, atol=1e-5, err_msg=name)
        moved = np.abs(single.read(name) - start.read(name)).max()
        if name not in trained:
            assert moved == 0, name
        elif "dense2.bias" not in name:  # a bias of the keys changes no score
            assert moved > 1e-3, name
    assert state.keys() <= merged.entries.keys()
    in_half = bool(differences)
    if in_half:
        log = [json.loads(line) for line in (folder / "one" / "log" / "train.jsonl").read_text().splitlines()]
        furthest = sum(record["learning_rate"] for record in log)  # that Adam can move a weight
        assert np.sqrt(np.mean(np.concatenate(differences) ** 2)) < HALF * furthest
    for name in state:
        expected, tolerance = single.read(name), 1e-4
        if in_half:
            tolerance = 4 * HALF if "_v." in name else 2 * HALF  # of squares twice as much
        np.testing.assert_allclose(
            merged.read(name), expected, rtol=1e-3, atol=tolerance * np.abs(expected).max() + 1e-8, err_msg=name
        )
