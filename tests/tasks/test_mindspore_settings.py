"""Settings that go to MindSpore as they are: in the compiled graph, or in MindSpore's own contexts."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.runtime.speed_up import check_speed_up_file
from tests.tasks.toy_layouts import HIDDEN, VOCAB, compile_as_rank


@pytest.mark.needs_ascend
def test_settings_of_a_sharded_training(tmp_path):
    """Weights below 512 KB stay whole; the others are sharded among two of four cards, and no further."""
    switches = tmp_path / "switches.json"
    switches.write_text('{"matmul_grad_comm_overlap": true, "enable_grad_comm_opt": true}')
    settings = {
        "context": {
            "device_target": "Ascend",
            "ascend_config": {
                "parallel_speed_up_json_path": str(switches),
                "hccl_watchdog": False,
                "topo_order": {"main": "bfs"},
            },
        },
        "use_parallel": True,
        "parallel": {
            "parallel_mode": 1,
            "parallel_optimizer_config": {"parallel_optimizer_threshold": 512, "optimizer_weight_shard_size": 2},
            "comm_fusion": {"allreduce": {"mode": "size", "config": 32}, "allgather": {"mode": "auto"}},
            "enable_alltoall": True,
            "gradient_fp32_sync": False,
            "force_fp32_communication": True,
        },
        "parallel_config": {"data_parallel": 4, "optimizer_shard": True},
        "runner_config": {"batch_size": 1},
        "lr_schedule": {"learning_rate": 1e-4},
        "model": {
            "model_config": {
                "num_layers": 1, "hidden_size": HIDDEN, "num_heads": 4, "vocab_size": VOCAB, "seq_length": 32,
                "compute_dtype": "float16",
            }
        },
    }  # fmt: skip
    facts = compile_as_rank(tmp_path, settings, 0, 4)
    block = "backbone.blocks.0."
    assert facts["shapes"][f"{block}attention.dense1.weight"] == [HIDDEN, HIDDEN]  # 256 KB
    assert facts["shapes"][f"{block}output.mapping.weight"] == [HIDDEN // 2, 4 * HIDDEN]  # 1 MB
    assert facts["holders"][f"{block}output.mapping.weight"] == 2
    fusion = facts["parallel"].pop("comm_fusion")
    assert fusion["openstate"] is True
    assert fusion["allreduce"] == {"mode": "size", "config": 32}
    assert facts["parallel"] == {
        "enable_alltoall": True, "force_fp32_communication": True, "gradient_fp32_sync": False
    }  # fmt: skip
    assert facts["context"] == {
        "precision_mode": "must_keep_origin_dtype",
        "matmul_allow_hf32": "0",
        "hccl_watchdog": False,
        "topo_order": '{"main": "bfs"}',
        "matmul_grad_comm_overlap": "AlltoAll,AlltoAllV,AllGather,ReduceScatter,AllReduce",
        "enable_grad_comm_opt": True,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file "),
        ("[]", "must hold a JSON object of switches, not []"),
        ('{"matmul_grad_overlap": true}', "is no switch of MindSpore; did you mean 'matmul_grad_comm_overlap'?"),
        ('{"enable_task_opt": 1}', "enable_task_opt must be true or false, not 1"),
        ('{"dataset_broadcast_opt_level": true}', "dataset_broadcast_opt_level must be a whole number, not True"),
    ],
)
def test_a_file_of_switches_that_is_none(tmp_path, content, words):
    file = tmp_path / "switches.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        check_speed_up_file(str(file))
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_switches_of_mindformers_files(tmp_path):
    """Those of its three files: qwen2.5, mixtral and deepseek."""
    switches = {
        "recompute_comm_overlap": False, "matmul_grad_comm_overlap": True, "enable_task_opt": False,
        "enable_flash_attention_load_balance": True, "enable_allreduce_slice_to_reducescatter": True,
        "enable_grad_comm_opt": False, "dataset_broadcast_opt_level": 3,
    }  # fmt: skip
    (tmp_path / "switches.json").write_text(json.dumps(switches))
    check_speed_up_file(str(tmp_path / "switches.json"))
