"""Groups of MindFormers' keys for what mindgpt does not have. Each is accepted as long as it asks for nothing.

A section here has no fields: it is listed in the `ignored` of the section above it, and none of its values is kept.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mindgpt.config.section import ANY_VALUE, Section, any_value, only

ONE_EXPERT = "mindgpt has no mixture of experts; one expert is the plain network"


class MoESection(Section):
    """`moe_config`: mixture of experts. Keys with any value route tokens, which one expert does not need."""

    ignored: ClassVar = any_value(
        "capacity_factor aux_loss_factor aux_loss_factors aux_loss_types z_loss_factor expert_group_size "
        "group_wise_a2a comp_comm_parallel comp_comm_parallel_degree cur_layer update_step hot_expert_num "
        "cold_token_percent moe_module_name routing_policy norm_topk_prob enable_sdrop use_fused_ops_topkrouter "
        "use_fused_ops_permute router_dense_type use_shared_expert_gating max_router_load topk_method topk_group "
        "n_group first_k_dense_replace moe_intermediate_size routed_scaling_factor topk_bias_update_rate "
        "use_allgather_dispatcher moe_shared_expert_overlap expert_model_parallel use_gating_sigmoid "
        "enable_deredundency npu_nums_per_device use_gmm enable_gmm_safe_tokens"
    ) | {
        "expert_num": only(1, reason=ONE_EXPERT),
        "num_experts_chosen": only(1, reason=ONE_EXPERT),
        "shared_expert_num": only(0, reason=ONE_EXPERT),
        "balance_via_topk_bias": only(False, reason=ONE_EXPERT),
        "enable_cold_hot_expert": only(False, reason=ONE_EXPERT),
        "save_token_distribution": only(False, reason=ONE_EXPERT),
        "callback_moe_droprate": only(False, reason=ONE_EXPERT),
    }


class SwapSection(Section):
    """`swap_config`: activations in the memory of the host. Without `swap` its other keys mean nothing."""

    ignored: ClassVar = {
        "swap": only(False, reason="mindgpt keeps activations on the card; recompute_config saves memory"),
        "default_prefetch": ANY_VALUE,
        "layer_swap": ANY_VALUE,
        "op_swap": ANY_VALUE,
    }


class MonitorSection(Section):
    """`monitor_config`: norms of single parameters. Without `monitor_on` its other keys mean nothing."""

    ignored: ClassVar = any_value(
        "dump_path target invert step_interval local_loss_format local_norm_format device_local_norm_format "
        "optimizer_state_format weight_state_format throughput_baseline print_struct"
    ) | {
        "monitor_on": only(
            False,
            reason="norms of single parameters are not recorded; loss, learning rate, global gradient norm, loss scale "
            "and tokens/s of every step are in log/train.jsonl, and in TensorBoard with the callback SummaryMonitor",
        )
    }


class AscendConfigSection(Section):
    """`context.ascend_config`: settings of the Ascend back end."""

    ignored: ClassVar = {
        "precision_mode": only(
            "must_keep_origin_dtype",
            reason="the precision is what model.model_config says (compute_dtype, softmax_compute_type and the like)",
        ),
        "matmul_allow_hf32": only(
            False, reason="it would compute float32 products in fewer bits; set model.model_config.compute_dtype"
        ),
        "op_precision_mode": only("", reason="the precision of single operators cannot be set"),
        "ge_options": only({}, "", reason="options of the graph engine are not handed on"),
        "jit_compile": ANY_VALUE,
        "atomic_clean_policy": ANY_VALUE,
        "conv_allow_hf32": ANY_VALUE,  # GPT-2 has no convolution
        "exception_dump": ANY_VALUE,
        "parallel_speed_up_json_path": ANY_VALUE,
        "topo_order": ANY_VALUE,
        "hccl_watchdog": ANY_VALUE,
    }


class KernelLaunchGroupSection(Section):
    """`kernel_launch_group`: how operators are launched on the device."""

    ignored: ClassVar = {"thread_num": ANY_VALUE, "kernel_group_num": ANY_VALUE}


class ParallelOptimizerSection(Section):
    """`parallel.parallel_optimizer_config`: which weights and optimizer state are sharded; the results are the same."""

    ignored: ClassVar = {
        "gradient_accumulation_shard": ANY_VALUE,
        "parallel_optimizer_threshold": ANY_VALUE,
        "optimizer_weight_shard_size": ANY_VALUE,
    }


class PipelineConfigSection(Section):
    """`parallel.pipeline_config`: the order in which pipeline stages compute."""

    ignored: ClassVar = {
        "pipeline_interleave": only(False, reason="a card holds one pipeline stage; micro_batch_num fills the gaps"),
        "pipeline_scheduler": only("1f1b", "gpipe", "", reason="pipeline stages follow MindSpore's 1f1b order"),
    }


def is_one_expert(value: Any) -> bool:
    """Whether a value is a `moe_config` that asks for nothing."""
    return isinstance(value, Mapping) and _loads(MoESection, value)


def is_one_device(value: Any) -> bool:
    """Whether a value is a `parallel_config` of one device."""
    sizes = ("data_parallel", "model_parallel", "pipeline_stage", "expert_parallel", "context_parallel")
    return isinstance(value, Mapping) and all(value.get(size, 1) == 1 for size in sizes)


def _loads(section: type[Section], value: Any) -> bool:
    try:
        section.model_validate(value)
    except ValueError:
        return False
    return True
