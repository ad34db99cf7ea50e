"""Groups of MindFormers' keys for what mindgpt does not have. Each is accepted as long as it asks for nothing.

A section here has no fields: it is listed in the `ignored` of the section above it, and none of its values is kept.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mindgpt.config.section import ANY_VALUE, Section, any_value, only

INTERLEAVED_STAGES = "a card holds one pipeline stage; micro_batch_num fills the gaps"
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


class KernelLaunchGroupSection(Section):
    """`kernel_launch_group`: how operators are launched on the device."""

    ignored: ClassVar = {"thread_num": ANY_VALUE, "kernel_group_num": ANY_VALUE}


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
