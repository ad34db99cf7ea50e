"""The execution sections of MindFormers 1.5's YAMLs of other families (llama, qwen, glm, mixtral, ...), key by key.

The forms and values are those that its 200 configurations of runs have, beyond those of GPT-2. Each is obeyed, listed
as ignored, or refused with its reason; a test here names which.
"""

import pytest
import yaml

from mindgpt.config import UserError, load_config

STAGES = {"pipeline_stage": 4, "micro_batch_num": 4}


@pytest.fixture
def load(tmp_path):
    """`load(sections)` -> (config, ignored keys) of a YAML of 10 layers with these sections."""

    def run(sections):
        network = {"model_config": {"num_layers": 10, **sections.pop("network", {})}}
        content = {"lr_schedule": {"learning_rate": 1e-4}, "model": network, **sections}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
        return load_config(tmp_path / "run.yaml")

    return run


# Sections of a YAML, where the loaded configuration holds the value, and the value.
OBEYED = [
    ({"context": {"device_id": 5}}, "context.device_id", 5),
    ({"context": {"jit_level": "O0"}}, "context.jit_config.jit_level", "O0"),
    ({"context": {"jit_config": {"jit_level": "O1"}}}, "context.jit_config.jit_level", "O1"),
    ({"context": {"memory_optimize_level": "O1"}}, "context.memory_optimize_level", "O1"),
    ({"context": {"max_device_memory": "58GB"}}, "context.max_device_memory", "58GB"),
    ({"context": {"mode": 1}}, "context.mode", 1),
    (
        {"context": {"ascend_config": {"parallel_speed_up_json_path": "./parallel_speed_up.json"}}},
        "context.ascend_config.parallel_speed_up_json_path",
        "./parallel_speed_up.json",
    ),
    ({"context": {"ascend_config": {"jit_compile": False}}}, "context.ascend_config.jit_compile", False),
    ({"parallel": {"parallel_mode": "STAND_ALONE"}}, "parallel.parallel_mode", "stand_alone"),
    ({"parallel": {"enable_alltoall": True}}, "parallel.enable_alltoall", True),
    (
        {"parallel": {"parallel_optimizer_config": {"optimizer_weight_shard_size": 8}}},
        "parallel.parallel_optimizer_config.optimizer_weight_shard_size",
        8,
    ),
    (
        {"parallel": {"parallel_optimizer_config": {"parallel_optimizer_threshold": 128}}},
        "parallel.parallel_optimizer_config.parallel_optimizer_threshold",
        128,
    ),
    (
        {"parallel": {"comm_fusion": {"allreduce": {"mode": "size", "config": 32}}}},
        "parallel.comm_fusion.allreduce.config",
        32,
    ),
    ({"parallel_config": {"gradient_aggregation_group": 8}}, "parallel_config.gradient_aggregation_group", 8),
    ({"parallel_config": STAGES, "network": {"offset": [-1, 1, 1, 1]}}, "model.config.offset", [-1, 1, 1, 1]),
    ({"network": {"offset": 0}}, "model.config.offset", 0),
    (
        {"parallel_config": STAGES, "recompute_config": {"recompute": [6, 3, 2, 3]}},
        "recompute_config.recompute",
        [6, 3, 2, 3],
    ),
    (
        {"parallel_config": STAGES, "recompute_config": {"select_recompute": [2, 1, 0, 0]}},
        "recompute_config.select_recompute",
        [2, 1, 0, 0],
    ),
    (
        {"recompute_config": {"select_recompute": [r"output\.activation\.tanh"]}},
        "recompute_config.select_recompute",
        [r"output\.activation\.tanh"],
    ),
    (
        {"parallel_config": STAGES, "recompute_config": {"select_recompute": {r"feed_forward\.mul": [11, 13, 13, 11]}}},
        "recompute_config.select_recompute",
        {r"feed_forward\.mul": [11, 13, 13, 11]},
    ),
    ({"recompute_config": {"select_comm_recompute": True}}, "recompute_config.select_comm_recompute", True),
    (
        {"parallel_config": {"pipeline_stage": 2}, "recompute_config": {"select_comm_recompute": [False, False]}},
        "recompute_config.select_comm_recompute",
        [False, False],
    ),
    (
        {"parallel_config": STAGES, "recompute_config": {"select_comm_recompute": {r".*\.norm": [6, 2, 1, 0]}}},
        "recompute_config.select_comm_recompute",
        {r".*\.norm": [6, 2, 1, 0]},
    ),
    ({"runner_wrapper": {"scale_sense": 1.0}}, "runner_wrapper.scale_sense.type", "static"),
    (
        {
            "runner_wrapper": {
                "scale_sense": {
                    "type": "DynamicLossScaleUpdateCell",
                    "loss_scale_value": 65536,
                    "scale_factor": 1,
                    "scale_window": 1000,
                }
            }
        },
        "runner_wrapper.scale_sense.type",
        "static",
    ),
    ({"runner_config": {"gradient_accumulation_steps": 64}}, "runner_config.gradient_accumulation_steps", 64),
    ({"callbacks": [{"type": "CheckpointMonitor", "async_save": True}]}, "callbacks.0.async_save", True),
    (
        {"callbacks": [{"type": "CheckpointMonitor", "keep_checkpoint_max": 300}]},
        "callbacks.0.keep_checkpoint_max",
        300,
    ),
]

# Sections, and the keys that are listed as ignored.
IGNORED = [
    ({"context": {"affinity_cpu_list": "None"}}, ["context.affinity_cpu_list"]),
    ({"context": {"infer_boost": "off"}}, ["context.infer_boost"]),
    ({"context": {"mempool_block_size": "52.5GB"}}, ["context.mempool_block_size"]),
    (
        {"context": {"ascend_config": {"precision_mode": "must_keep_origin_dtype"}}},
        ["context.ascend_config.precision_mode"],
    ),
    ({"kernel_launch_group": {"thread_num": 4, "kernel_group_num": 16}}, ["kernel_launch_group"]),
    ({"parallel": {"search_mode": "recursive_programming"}}, ["parallel.search_mode"]),
    ({"parallel": {"dataset_strategy": [[16, 1], [16, 1]]}}, ["parallel.dataset_strategy"]),
    ({"parallel": {"auto_pipeline": False}}, ["parallel.auto_pipeline"]),
    ({"parallel": {"pipeline_config": {"pipeline_interleave": False}}}, ["parallel.pipeline_config"]),
    (
        {"parallel_config": {"expert_parallel": 1, "mem_coeff": 0.1}},
        ["parallel_config.expert_parallel", "parallel_config.mem_coeff"],
    ),
    ({"network": {"fine_grain_interleave": 2}}, ["model.model_config.fine_grain_interleave"]),
    ({"network": {"pp_interleave_num": 1}}, ["model.model_config.pp_interleave_num"]),
    (
        {"runner_config": {"num_classes": 1000, "image_size": 336}},
        ["runner_config.image_size", "runner_config.num_classes"],
    ),
    ({"callbacks": [{"type": "ObsMonitor", "keep_last": False}]}, ["callbacks.0 (ObsMonitor)"]),
]

# Sections, and words of the refusal.
REFUSED = [
    ({"context": {"memory_offload": "ON"}}, "MindSpore 2.9 and 2.10 have no such setting"),
    ({"parallel": {"parallel_mode": 2}}, "must be 0 (data_parallel) or 1 (semi_auto_parallel), not 2"),
    ({"parallel": {"pipeline_config": {"pipeline_interleave": True}}}, "only False is allowed"),
    ({"parallel": {"pipeline_config": {"pipeline_scheduler": "seqpipe"}}}, "MindSpore 2.10 has this order alone"),
    ({"parallel": {"comm_fusion": {"allreduce": {"mode": "index"}}}}, "gradient_aggregation_group"),
    (
        {"parallel": {"comm_fusion": {"allreduce": {"mode": "size"}}}},
        "must be a number of MB with mode 'size', not None",
    ),
    (
        {"parallel": {"parallel_optimizer_config": {"gradient_accumulation_shard": True}}},
        "only False is allowed, not True: gradients are summed whole",
    ),
    ({"parallel": {"parallel_optimizer_config": {"optimizer_level": "level3"}}}, "only 'level1' is allowed"),
    ({"parallel": {"parallel_optimizer_config": {"parallel_optimizer_threshold": 0}}}, "must be at least 1, not 0"),
    ({"parallel_config": {"expert_parallel": 4}}, "no mixture of experts"),
    ({"parallel_config": {"seq_split_num": 4}}, "pipelining does not split sequences"),
    ({"parallel_config": STAGES, "network": {"offset": [1, 1]}}, "has 2 numbers, and pipeline_stage is 4"),
    ({"parallel_config": STAGES, "network": {"offset": [0, 0, 0, 1]}}, "adds up to 1, and must to 2"),
    ({"parallel_config": STAGES, "network": {"offset": [-2, 2, 1, 1]}}, "leaves stage 0 (from 0) without a block"),
    ({"parallel_config": STAGES, "network": {"offset": [[-1, 1, 1, 1]]}}, "one list with a number for each pipeline"),
    ({"network": {"offset": 3}}, "must be 0 or a list with a number for each pipeline stage, not 3"),
    ({"network": {"pp_interleave_num": 3}}, "a card holds one pipeline stage"),
    ({"recompute_config": {"recompute": [3, 4]}}, "has 2 numbers, and pipeline_stage is 1"),
    ({"recompute_config": {"recompute": 3}}, "must be True, False or a list with the number of blocks of each"),
    ({"parallel_config": STAGES, "recompute_config": {"recompute": [-1, 0, 0, 0]}}, "must be True, False or a list"),
    ({"recompute_config": {"recompute": [[1, 0]]}}, "must be one list with a number for each pipeline stage"),
    ({"recompute_config": {"select_recompute": ["(mul"]}}, "is not a regular expression"),
    ({"recompute_config": {"select_recompute": {"mul": [1, 2]}}}, "has 2 numbers, and pipeline_stage is 1"),
    ({"callbacks": [{"type": "CheckpointMonitor", "checkpoint_format": "safetensors"}]}, "only 'ckpt' is allowed"),
    ({"callbacks": [{"type": "OnRequestExit", "save_ckpt": True}]}, "an interrupted run leaves its last checkpoint"),
    ({"callbacks": [{"type": "TopkBiasBalanceCallback", "expert_num": 256}]}, "no mixture of experts"),
    ({"runner_wrapper": {"type": "TrainOneStepCell"}}, "did you mean 'MFTrainOneStepCell'?"),
]


@pytest.mark.parametrize(("sections", "where", "value"), OBEYED, ids=str)
def test_a_form_that_is_obeyed(load, sections, where, value):
    config, ignored = load(dict(sections))
    assert ignored == []
    for name in where.split("."):
        config = config[int(name)] if name.isdecimal() else getattr(config, name)
    assert config == value


@pytest.mark.parametrize(("sections", "keys"), IGNORED, ids=str)
def test_a_form_that_is_listed_as_ignored(load, sections, keys):
    assert sorted(load(dict(sections))[1]) == keys


@pytest.mark.parametrize(("sections", "words"), REFUSED, ids=str)
def test_a_form_that_is_refused(load, sections, words):
    with pytest.raises(UserError) as caught:
        load(dict(sections))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
