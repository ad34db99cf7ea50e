"""Shards of toy layouts in which every pair of the settings that change sharding occurs: they merge to the weights and
the optimizer's state bit for bit, and are transformed to another layout and back.

One rank of each pipeline stage is compiled, and the shards of the others are derived from it (`save_shards.py`), which
`test_transform_checkpoint.py` compares with shards of ranks that are all compiled.
"""

import itertools

import pytest

from mindgpt.checkpoints.transform import transform
from tests.tasks.sharded_runs import assert_same_shards, assert_whole, make_run

pytestmark = [pytest.mark.usefixtures("cpu"), pytest.mark.needs_ascend]

# data_parallel, model_parallel, pipeline_stage, optimizer_shard, vocab_emb_dp, task. Without a single rank, without a
# sharded vocabulary where model_parallel is 1, and without optimizer sharding where no two ranks hold the same.
SETTINGS = [(1, 2, 4), (1, 2, 4), (1, 2, 4), (False, True), (True, False), ("language model", "LoRA", "classification")]
CASES = [
    (1, 1, 4, False, True, "language model"),
    (2, 2, 1, True, True, "language model"),
    (1, 4, 1, True, False, "LoRA"),
    (2, 1, 2, False, True, "LoRA"),
    (1, 2, 2, False, False, "classification"),
    (4, 1, 1, True, True, "classification"),
    (4, 4, 2, True, False, "language model"),
    (4, 2, 4, False, False, "LoRA"),
    (4, 4, 1, False, True, "classification"),
    (2, 4, 4, True, False, "classification"),
]


def cards_of(case):
    return case[0] * case[1] * case[2]


def is_run(case):
    data, model, stages, shards, whole_vocabulary, _ = case
    return data * model * stages > 1 and (model > 1 or whole_vocabulary) and (data * model > 1 or not shards)


def pairs_of(case):
    return set(itertools.combinations(enumerate(case), 2))


def parameters(*cases):
    """For pytest, with a name; slow if it has more than four cards."""
    name = " and ".join("x".join(map(str, case[:3])) for case in cases)
    slow = [pytest.mark.slow] if max(map(cards_of, cases)) > 4 else []
    return pytest.param(*cases, id=f"{name}, {cases[0][-1]}", marks=slow)


def settings_of(case):
    data, model, stages, shards, whole_vocabulary, task = case
    network = {
        # MindSpore leaves parameters of less than 64 kB whole
        "num_layers": 4, "hidden_size": 256, "num_heads": 8, "vocab_size": 256, "seq_length": 32,
        "compute_dtype": "float16",
    }  # fmt: skip
    if task == "LoRA":
        network["pet_config"] = {"lora_rank": 8, "lora_dropout": 0.0, "target_modules": ".*(dense1|mapping)"}
    if task == "classification":
        network["num_labels"] = 2
    classifies = task == "classification"
    return {
        "run_mode": "finetune",
        "use_parallel": True,
        "parallel": {"parallel_mode": 1},
        "parallel_config": {
            "data_parallel": data, "model_parallel": model, "pipeline_stage": stages, "micro_batch_num": stages,
            "optimizer_shard": shards, "vocab_emb_dp": whole_vocabulary,
        },
        "runner_config": {"batch_size": 1},
        "lr_schedule": {"learning_rate": 1e-4},
        "trainer": {"type": "TextClassificationTrainer" if classifies else "CausalLanguageModelingTrainer"},
        "model": {
            "arch": {"type": "GPT2ForSequenceClassification" if classifies else "GPT2LMHeadModel"},
            "model_config": network,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The output folder of a case's run: `run_of(case)`; each is made once and only read by the tests."""
    made = {}

    def run(case):
        if case not in made:
            made[case] = make_run(settings_of(case), tmp_path_factory.mktemp("run"), compile_all=False)
        return made[case]

    return run


def test_every_pair_of_settings_occurs():
    runs = filter(is_run, itertools.product(*SETTINGS))
    assert set().union(*map(pairs_of, CASES)) == set().union(*map(pairs_of, runs))


@pytest.mark.parametrize("case", [parameters(case) for case in CASES])
def test_shards_merge_to_the_weights_and_the_state_bit_for_bit(run_of, tmp_path, case):
    [file] = transform(run_of(case) / "checkpoint", tmp_path / "merged", training_state=True)
    assert_whole(file, state=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [parameters(*pair) for task in SETTINGS[-1] for pair in itertools.pairwise(c for c in CASES if c[-1] == task)],
)
def test_reshards_to_another_layout_and_back(run_of, tmp_path, one, other):
    here, there = run_of(one), run_of(other)
    transform(here / "checkpoint", tmp_path / "there", target_strategy=there / "strategy")
    assert_same_shards(tmp_path / "there", there / "checkpoint", cards_of(other))
    transform(tmp_path / "there", tmp_path / "back", strategy=there / "strategy", target_strategy=here / "strategy")
    assert_same_shards(tmp_path / "back", here / "checkpoint", cards_of(one))
