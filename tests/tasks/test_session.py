"""Settings that have no effect in a run are named, each once, and only where they are set."""

import pytest

from mindgpt.config import load_config
from mindgpt.config.layout import data_parallel_problems
from mindgpt.config.no_effect import Run
from mindgpt.config.strategy import Strategy
from mindgpt.tasks import datasets

CARDS = {"use_parallel": True, "parallel.parallel_mode": 1}
PROCESSES = {"use_parallel": True, "parallel.parallel_mode": 0}
BY_WIDTH = {"parallel_config.model_parallel": 8, "parallel_config.vocab_emb_dp": False}


@pytest.fixture
def configured(tmp_path):
    """A function from overrides to the configuration that they make of a small one."""

    def load(overrides):
        path = tmp_path / "run.yaml"
        path.write_text("lr_schedule: {learning_rate: 0.001}\ncallbacks:\n  - type: CheckpointMonitor\n")
        return load_config(path, overrides)[0]

    return load


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"callbacks.0.async_save": True}, None),
        ({"micro_batch_interleave_num": 2}, "micro_batch_interleave_num has"),
        ({"recompute_config.recompute_slice_activation": True}, "recompute_config"),
        ({"run_mode": "predict", "model.model_config.use_past": False}, "model.model_config.use_past: False"),
        ({"recompute_config.mp_comm_recompute": False}, "recompute_config"),
        ({"transform_process_num": 2}, "transform_process_num"),
        ({"train_dataset.python_multiprocessing": True}, "train_dataset.python_multiprocessing: True"),
        ({"runner_config.sink_mode": True}, "runner_config.sink_mode: True"),
        (
            {"train_dataset.drop_remainder": False, "runner_config.gradient_accumulation_steps": 2},
            "train_dataset.drop_remainder: False",
        ),
        ({"run_mode": "predict", "model.model_config.top_k": 3}, "model.model_config.top_k"),
        (
            {"run_mode": "predict", "model.model_config.top_k": 3, "model.model_config.min_p": 0.1},
            "model.model_config.top_k, min_p have no effect: do_sample is False",
        ),
        ({"parallel.strategy_ckpt_save_file": "./other.ckpt"}, "parallel.strategy_ckpt_save_file"),
        ({"parallel.strategy_ckpt_config.save_file": "./other.ckpt"}, "parallel.strategy_ckpt_config.save_file"),
        ({"parallel.strategy_ckpt_config.save_file": "./ckpt_strategy.ckpt"}, None),
        (
            {"parallel.strategy_ckpt_config.only_trainable_params": True},
            "parallel.strategy_ckpt_config.only_trainable_params: True",
        ),
        ({"model.model_config.use_past": False}, None),
        ({"run_mode": "eval", "micro_batch_interleave_num": 2}, None),  # which has no steps
        # Set for several cards; use_parallel: False says that there are none.
        ({"parallel_config.gradient_aggregation_group": 2, "parallel_config.micro_batch_num": 2}, None),
        ({**PROCESSES, "parallel_config.gradient_aggregation_group": 2}, "parallel_config.gradient_aggregation_group"),
        ({**PROCESSES, "parallel_config.micro_batch_num": 2}, "parallel_config.micro_batch_num"),
        ({**PROCESSES, "parallel.gradients_mean": False}, "parallel.gradients_mean: False"),
        ({**PROCESSES, "parallel.gradients_mean": True, "parallel.full_batch": False}, None),
        ({**PROCESSES, **BY_WIDTH, "callbacks.0.integrated_save": True}, None),
        ({}, None),
    ],
    ids=str,
)
def test_notes_of_a_single_process(configured, overrides, words):
    config = configured(overrides)
    said = list(config.notes_without_effect(Run(config, "CPU", Strategy.SINGLE)))
    assert [line.startswith(words or "nothing") for line in said] == [True] * (words is not None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"micro_batch_interleave_num": 2}, None),
        ({"train_dataset.drop_remainder": False}, "train_dataset.drop_remainder: False"),
        ({"recompute_config.recompute_slice_activation": True}, None),
        ({"recompute_config.mp_comm_recompute": False}, None),
        (
            {"recompute_config.parallel_optimizer_comm_recompute": True},
            "recompute_config.parallel_optimizer_comm_recompute: True has no effect: MindSpore 2.10 keeps the weights",
        ),
        ({"recompute_config.parallel_optimizer_comm_recompute": False}, None),
        ({"parallel_config.gradient_aggregation_group": 2}, None),
        ({"parallel_config.micro_batch_num": 2}, "parallel_config.micro_batch_num"),
        ({"parallel_config.micro_batch_num": 2, "parallel_config.pipeline_stage": 2}, None),
        ({"parallel.full_batch": False}, "parallel.full_batch: False"),
        ({"parallel.gradients_mean": True}, "parallel.gradients_mean: True"),
        ({"parallel.loss_repeated_mean": False}, "parallel.loss_repeated_mean: False"),
        (
            {"parallel.full_batch": True, "parallel.gradients_mean": False, "parallel.loss_repeated_mean": True},
            None,
        ),
        ({"callbacks.0.integrated_save": True}, "callbacks.0.integrated_save: True"),
        ({"callbacks.0.integrated_save": False}, None),
        (
            BY_WIDTH,
            "parallel_config.vocab_emb_dp: False has no effect: model_parallel 8 does not divide",
        ),
        ({**BY_WIDTH, "model.model_config.vocab_size": 50264}, None),
        ({"parallel_config.vocab_emb_dp": False}, None),
    ],
    ids=str,
)
def test_notes_of_a_sharded_model(configured, overrides, words):
    config = configured(CARDS | overrides)
    said = list(config.notes_without_effect(Run(config, "Ascend", Strategy.SEMI_AUTO)))
    assert [line.startswith(words or "nothing") for line in said] == [True] * (words is not None)


def test_optimizer_shard_decides_where_it_is_given(configured):
    sharded = PROCESSES | {"parallel.enable_parallel_optimizer": True}
    (problem,) = data_parallel_problems(configured(sharded), 2, "CPU")
    assert "asks for parallel.enable_parallel_optimizer" in problem
    assert not list(data_parallel_problems(configured(sharded | {"parallel_config.optimizer_shard": False}), 2, "CPU"))


def test_a_sharded_model_has_full_batches_only(configured, toy, monkeypatch):
    network = {"seq_length": 32, "vocab_size": 300}
    config = configured(
        {
            **CARDS,
            **{f"model.model_config.{key}": value for key, value in network.items()},
            "runner_config.batch_size": 8,
            "train_dataset.data_loader.dataset_dir": str(toy.train),
            "train_dataset.num_samples": 20,
            "train_dataset.drop_remainder": False,
        }
    )
    for strategy, sizes in ((Strategy.SINGLE, [8, 8, 4]), (Strategy.SEMI_AUTO, [8, 8])):
        monkeypatch.setattr(datasets, "strategy", lambda strategy=strategy: strategy)
        dataset, _ = datasets.training_data(config)
        assert [len(batch[0]) for batch in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)] == sizes
