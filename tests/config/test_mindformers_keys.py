"""Every key that MindFormers 1.5 documents, beyond those of its GPT-2 YAMLs: obeyed, harmless, or refused in words.

The tables hold the keys of its manual (the appendix on configuration files), of its template of all sections, and of
the classes that a YAML names. `test_the_tables_are_complete` holds them against the sections, so that a key cannot be
accepted without a line here. It is over 500 lines long because it is mostly these tables, a line or more for each key,
and they are checked as one.
"""

import re
from typing import NamedTuple

import pytest
import yaml

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config import UserError, load_config
from mindgpt.config.callback_sections import CALLBACKS, REFUSED, IgnoredCallbackSection
from mindgpt.config.data_sections import DataLoaderSection, EvalDatasetSection, ProcessorSection, TokenizerSection
from mindgpt.config.execution_sections import (
    ContextSection,
    JitConfigSection,
    ParallelConfigSection,
    ParallelSection,
    RunnerConfigSection,
)
from mindgpt.config.model_sections import GPT2Section, PetSection
from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection
from mindgpt.config.parallel_settings import AscendConfigSection
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import ANY_VALUE, Section
from mindgpt.config.training_sections import RunnerWrapperSection, TensorBoardSection


class Refused(NamedTuple):
    """A value that asks for something, and words of the answer."""

    value: object
    words: str


# Where a section stands in the YAML. The sections of callbacks are in CALLBACKS.
SECTIONS: dict[str, type[Section]] = {
    "": RunConfig,
    "context": ContextSection,
    "context.jit_config": JitConfigSection,
    "context.ascend_config": AscendConfigSection,
    "parallel": ParallelSection,
    "parallel_config": ParallelConfigSection,
    "recompute_config": RecomputeSection,
    "runner_config": RunnerConfigSection,
    "runner_wrapper": RunnerWrapperSection,
    "tensorboard": TensorBoardSection,
    "optimizer": OptimizerSection,
    "lr_schedule": LRScheduleSection,
    "eval_dataset": EvalDatasetSection,
    "eval_dataset.data_loader": DataLoaderSection,
    "processor": ProcessorSection,
    "processor.tokenizer": TokenizerSection,
    "model.model_config": GPT2Section,
    "model.model_config.pet_config": PetSection,
}

# Section -> key -> a value that loads without effect, and one that is refused; None: every value is harmless.
HARMLESS: dict[str, dict[str, tuple[object, Refused | None]]] = {
    "": {
        "remote_save_url": ("obs://x", None),
        "aicc_config": ({"obs_path": "x"}, None),
        "auto_tune": (True, None),
        "filepath_prefix": ("./autotune", None),
        "autotune_per_step": (10, None),
        "layer_decay": (0.65, None),
        "lr_scale_factor": (256, None),
        "layer_scale": (False, Refused(True, "all layers learn at the same rate")),
        "lr_scale": (False, Refused(True, "write the learning rate itself into lr_schedule")),
        "load_ckpt_format": ("safetensors", Refused("bin", "only 'ckpt' is allowed, not 'bin': weights are .ckpt or")),
        "load_ckpt_async": (True, None),
        "remove_redundancy": (False, Refused(True, "Save with remove_redundancy: False")),
        "ckpt_use_legacy_format": (True, Refused(False, "MindFormers 1.7 and later are not read")),
        "use_legacy_format": (True, Refused(False, "MindFormers 1.7 and later are not read")),
        "use_legacy": (True, Refused(False, "newer model code has no GPT-2")),
        "use_graceful_exit": (False, Refused(True, "leaves its last checkpoint intact; save_checkpoint_steps")),
        "ignore_data_skip": (False, Refused(True, "goes on where it stopped in the data")),
        "data_skip_steps": (0, Refused(7, "goes on where it stopped in the data")),
        "exclude_cann_cpu": (True, None),
        "postprocess_use_numpy": (True, None),
        "print_separate_loss": (True, None),
        "save_file": ("results.txt", None),
        "input_data": ("", Refused("hello", "--predict_data")),
        "adapter_id": ("", Refused("lora-1", "pet_config.adapter, or --adapter")),
        "profile_level": (1, None),
        "profiler_level": (1, None),
        "profile_rank_ids": ([0], None),
        "profile_pipeline": (False, None),
        "profile_output": ("./profile", None),
        "with_stack": (False, None),
        "data_simplification": (False, None),
        "mstx": (False, None),
        "moe_config": ({"expert_num": 1, "shared_expert_num": 0}, Refused({"expert_num": 8}, "expert_num: only 1")),
        "swap_config": ({"swap": False, "default_prefetch": 1}, Refused({"swap": True}, "recompute_config saves")),
        "monitor_config": ({"monitor_on": False}, Refused({"monitor_on": True}, "are in log/train.jsonl")),
        "kernel_launch_group": ({"thread_num": 4, "kernel_group_num": 16}, Refused(3, "must be a group of keys")),
    },
    "moe_config": {
        "expert_num": (1, Refused(4, "one expert is the plain network")),
        "num_experts_chosen": (1, Refused(2, "one expert is the plain network")),
        "shared_expert_num": (0, Refused(2, "one expert is the plain network")),
        "balance_via_topk_bias": (False, Refused(True, "one expert is the plain network")),
        "enable_cold_hot_expert": (False, Refused(True, "one expert is the plain network")),
        "save_token_distribution": (False, Refused(True, "one expert is the plain network")),
        "callback_moe_droprate": (False, Refused(True, "one expert is the plain network")),
        "capacity_factor": (1.05, None),
        "aux_loss_factor": (0.05, None),
        "aux_loss_factors": ([0.1], None),
        "aux_loss_types": (["expert"], None),
        "z_loss_factor": (0.0, None),
        "expert_group_size": (8, None),
        "group_wise_a2a": (False, None),
        "comp_comm_parallel": (False, None),
        "comp_comm_parallel_degree": (2, None),
        "cur_layer": (0, None),
        "update_step": (10000, None),
        "hot_expert_num": (0, None),
        "cold_token_percent": (1.0, None),
        "moe_module_name": ("", None),
        "routing_policy": ("TopkRouterV1", None),
        "norm_topk_prob": (True, None),
        "enable_sdrop": (False, None),
        "use_fused_ops_topkrouter": (False, None),
        "use_fused_ops_permute": (False, None),
        "router_dense_type": ("float32", None),
        "use_shared_expert_gating": (False, None),
        "max_router_load": (131072, None),
        "topk_method": ("greedy", None),
        "topk_group": (None, None),
        "n_group": (None, None),
        "first_k_dense_replace": (1, None),
        "moe_intermediate_size": (1407, None),
        "routed_scaling_factor": (1.0, None),
        "topk_bias_update_rate": (0.0, None),
        "use_allgather_dispatcher": (False, None),
        "moe_shared_expert_overlap": (False, None),
        "expert_model_parallel": (1, None),
        "use_gating_sigmoid": (False, None),
        "enable_deredundency": (False, None),
        "npu_nums_per_device": (1, None),
        "use_gmm": (False, None),
        "enable_gmm_safe_tokens": (False, None),
    },
    "swap_config": {
        "swap": (False, Refused(True, "mindgpt keeps activations on the card")),
        "default_prefetch": (1, None),
        "layer_swap": ([{"backward_prefetch": 20}], None),
        "op_swap": (None, None),
    },
    "monitor_config": {
        "monitor_on": (False, Refused(True, "norms of single parameters are not recorded")),
        "dump_path": ("./dump", None),
        "target": ([".*"], None),
        "invert": (False, None),
        "step_interval": (1, None),
        "local_loss_format": ("log", None),
        "local_norm_format": ("tensorboard", None),
        "device_local_norm_format": (None, None),
        "optimizer_state_format": (None, None),
        "weight_state_format": (None, None),
        "throughput_baseline": (None, None),
        "print_struct": (False, None),
    },
    "kernel_launch_group": {"thread_num": (4, None), "kernel_group_num": (16, None)},
    "tensorboard": {
        "tensorboard_queue_size": (10, None),
        "log_loss_scale_to_tensorboard": (True, None),
        "log_timers_to_tensorboard": (True, None),
    },
    "context": {
        "affinity_cpu_list": ("None", None),
        "mempool_block_size": ("1GB", None),
        "variable_memory_max_size": ("31GB", None),
        "graph_memory_max_size": ("26GB", None),
        "runtime_num_threads": (30, None),
        "inter_op_parallel_num": (0, None),
        "infer_boost": ("on", None),
        "op_timeout": (1900, None),
        "save_dump_path": (".", None),
        "reserve_class_name_in_scope": (True, None),
        "pynative_synchronize": (False, None),
        "enable_reduce_precision": (True, None),
        "check_bprop": (False, None),
        "grad_for_scalar": (False, None),
        "enable_compile_cache": (False, None),
        "compile_cache_path": (".", None),
        "disable_format_transform": (False, None),
        "jit_syntax_level": ("LAX", None),
        "gpu_config": ({"conv_fprop_algo": "normal"}, None),
        "debug_level": (1, None),
        "exec_order": ("bfs", None),
        "env_config_path": ("", None),
        "enable_dump": (False, Refused(True, "MINDSPORE_DUMP_CONFIG")),
        "print_file_path": ("", Refused("x.txt", "nothing is printed from within a graph")),
        "precompile_only": (False, Refused(True, "tools/dry_run.py")),
        "memory_offload": ("OFF", Refused("ON", "MindSpore 2.9 and 2.10 have no such setting")),
        "support_binary": (False, Refused(True, "runs from its sources")),
    },
    "context.ascend_config": {
        "precision_mode": ("must_keep_origin_dtype", Refused("force_fp16", "what model.model_config says")),
        "matmul_allow_hf32": (False, Refused(True, "in fewer bits; set model.model_config.compute_dtype")),
        "op_precision_mode": ("", Refused("op.ini", "precision of single operators")),
        "ge_options": ({}, Refused({"global": {}}, "options of the graph engine")),
        "conv_allow_hf32": (True, None),
        "exception_dump": ("2", None),
    },
    "context.jit_config": {
        "exc_mode": ("auto", None),
        "jit_syntax_level": ("STRICT", None),
        "infer_boost": ("on", None),
    },
    "parallel": {
        "search_mode": ("sharding_propagation", None),
        "auto_parallel_search_mode": ("recursive_programming", None),
        "device_num": (8, None),
        "global_rank": (0, None),
        "parameter_broadcast": (False, None),
        "all_reduce_fusion_config": ([], Refused([85, 160], "gradient_aggregation_group")),
        "pipeline_result_broadcast": (False, None),
        "group_ckpt_save_file": ("", None),
        "pipeline_config": ({"pipeline_interleave": False}, Refused({"pipeline_interleave": True}, "one pipeline")),
        "dataset_strategy": ([[8, 1], [8, 1]], Refused([[1, 8]], "only the batch dimension can be sharded")),
        "pipeline_stages": (1, Refused(2, "parallel_config.pipeline_stage")),
        "grad_accumulation_step": (1, Refused(2, "runner_config.gradient_accumulation_steps")),
        "strategy_ckpt_load_file": ("", Refused("x.ckpt", "src_strategy_path_or_dir")),
        "auto_pipeline": (False, Refused(True, "evenly over pipeline stages")),
    },
    "parallel.pipeline_config": {
        "pipeline_interleave": (False, Refused(True, "a card holds one pipeline stage")),
        "pipeline_scheduler": ("1f1b", Refused("seqpipe", "MindSpore 2.10 has this order alone")),
    },
    "parallel_config": {
        "expert_parallel": (1, Refused(2, "no mixture of experts")),
        "context_parallel": (1, Refused(2, "a sequence is not sharded")),
        "context_parallel_algo": ("colossalai_cp", None),
        "ulysses_degree_in_cp": (1, None),
        "seq_split_num": (1, Refused(2, "does not split sequences")),
        "mem_coeff": (0.1, None),
    },
    "runner_config": {
        "num_classes": (1, None),
        "image_size": (224, None),
        "per_epoch_size": (-1, None),
        "stop_step": (0, Refused(5, "train_dataset.num_samples")),
        "initial_epoch": (0, Refused(1, "resume_training: True")),
        "has_trained_epoches": (0, Refused(1, "resume_training: True")),
        "has_trained_steps": (0, Refused(1, "resume_training: True")),
    },
    "runner_wrapper": {
        "enable_check_overflow": (False, None),
        "local_norm": (False, Refused(True, "norms of single parameters")),
        "calculate_per_token_loss": (False, Refused(True, "the mean over the tokens of a micro-batch")),
        "sens": (1, Refused(1024, "scale_sense")),
    },
    "optimizer": {
        "compression": (False, Refused(True, "kept in float32")),
        "dampening": (0, Refused(0.1, "without dampening")),
        "loss_scale": (1.0, Refused(2.0, "runner_wrapper.scale_sense")),
        "use_fused": (True, None),
        "offload": (False, Refused(True, "optimizer_shard")),
        "swap": (False, Refused(True, "optimizer_shard")),
        "amsgrad": (False, Refused(True, "adamw's own")),
        "maximize": (False, Refused(True, "the loss is minimized")),
    },
    "lr_schedule": {
        "warmup_epochs": (0, Refused(2, "give warmup_steps, or warmup_ratio")),
        "decay_steps": (None, Refused(10, "decay_start_steps or decay_start_ratio")),
        "decay_ratio": (None, Refused(0.1, "decay_start_steps or decay_start_ratio")),
    },
    "eval_dataset": {
        "numa_enable": (False, None),
        "tokenizer": ({"type": "GPT2Tokenizer", "max_length": 1024}, None),
        "seed": (0, None),
        "auto_tune": (False, None),
        "filepath_prefix": ("./autotune", None),
        "autotune_per_step": (10, None),
        "profile": (False, None),
        "ignore_pad_token_for_loss": (True, None),
        "output_columns": (["input_ids", "labels"], Refused(["image"], "columns keep their names")),
        "column_order": (["input_ids", "input_mask"], Refused("input_ids", "columns keep their names")),
        "transforms": ([], Refused([{"type": "Resize"}], "rows are used as the data set has them")),
        "text_transforms": (None, Refused({"type": "x"}, "rows are used as the data set has them")),
        "mask_policy": (None, Refused({"type": "MaeMask"}, "mindgpt reads text only")),
        "mixup_op": (None, Refused({"prob": 1.0}, "mindgpt reads text only")),
        "dynamic_batch": (False, Refused(True, "num_buckets")),
        "eod_reset": (False, Refused(True, "across the end of a text")),
        "eod_token_id": (50256, None),
        "token_monitor": (False, Refused(True, "tokens are not counted")),
        "token_monitor_config": ({"top_n": 3}, None),
    },
    "eval_dataset.data_loader": {
        "dataset_files": ([], Refused(["a.mindrecord"], "the key is dataset_dir")),
        "columns_list": (None, Refused(["input_ids"], "the key is input_columns")),
        "num_samples": (None, Refused(5, "the key is num_samples, of the section above")),
        "num_parallel_workers": (8, None),
        "num_shards": (8, None),
        "shard_id": (0, None),
        "sampler": (None, Refused("RandomSampler", "see shuffle")),
        "padded_sample": (None, Refused({}, "rows are padded as they are read")),
        "num_padded": (0, Refused(2, "rows are padded as they are read")),
        "cache": (None, Refused("x", "rows are not cached")),
    },
    "processor": {
        "max_length": (1024, None),
        "padding": ("max_length", None),
        "add_special_tokens": (True, None),
        "image_processor": (None, Refused({"type": "CLIPImageProcessor"}, "mindgpt reads text only")),
        "audio_processor": (None, Refused({"type": "x"}, "mindgpt reads text only")),
    },
    "processor.tokenizer": {
        "max_length": (2048, None),
        "model_max_length": (1024, None),
        "padding_side": ("left", None),
        "truncation_side": ("right", None),
        "clean_up_tokenization_spaces": (False, Refused(True, "texts are what their tokens say")),
        "add_special_tokens": (True, None),
        "add_prefix_space": (False, Refused(True, "begin the prompt with a space")),
        "add_bos_token": (False, Refused(True, "begin the prompt with the token's text")),
        "add_eos_token": (False, Refused(True, "is not continued")),
        "additional_special_tokens": ([], Refused(["<x>"], "those of the tokenizer's files")),
        "chat_template": ("", Refused("{{ x }}", "write the prompt out")),
        "errors": ("replace", Refused("strict", "U+FFFD")),
    },
    "model.model_config": {
        "use_prompt_flash_attention": (False, Refused(True, "the key is use_flash_attention")),
        "use_incre_flash_attention": (False, Refused(True, "the key is use_flash_attention")),
        "post_layernorm_residual": (False, Refused(True, "before layer normalization")),
        "unk_token_id": (50256, None),
        "layers_per_stage": (None, Refused([5, 7], "it must be empty, not [5, 7]: the key is offset")),
        "pp_interleave_num": (1, Refused(2, "a card holds one pipeline stage")),
        "fine_grain_interleave": (2, None),
        "start_stage": (0, Refused(1, "begins with the first pipeline stage")),
        "stage_num": (0, Refused(4, "parallel_config.pipeline_stage")),
        "is_dynamic": (True, None),
        "block_size": (16, None),
        "num_blocks": (512, None),
        "parallel_config": ({"data_parallel": 1, "vocab_emb_dp": True}, Refused({"model_parallel": 8}, "of its own")),
        "moe_config": ({"expert_num": 1, "capacity_factor": 1.1}, Refused({"expert_num": 2}, "no mixture of experts")),
        "return_dict_in_generate": (False, Refused(True, "mindgpt.generation.score")),
        "output_scores": (False, Refused(True, "mindgpt.generation.score")),
        "output_logits": (False, Refused(True, "mindgpt.generation.score")),
        "is_encoder_decoder": (False, Refused(True, "GPT-2 is a decoder")),
        "is_sample_acceleration": (False, None),
        "name_or_path": ("gpt2", None),
        "mindformers_version": ("1.5.0", None),
        "tokenizer_class": ("GPT2Tokenizer", None),
        "architectures": (["GPT2LMHeadModel"], None),
        "rl_config": (None, Refused({"x": 1}, "no reinforcement learning")),
    },
    "model.model_config.pet_config": {
        "in_channels": (768, None),
        "out_channels": (768, None),
        "param_init_type": ("float16", None),
        "compute_dtype": ("float16", None),
        "lora_a_init": ("normal", Refused("zeros", "A begins with small random numbers")),
        "lora_b_init": ("zero", Refused("normal", "B begins with zeros")),
        "exclude_layers": ("", Refused("layers.0", "target_modules matches a layer's full path")),
        "freeze_include": ([], Refused(["*"], "all weights of the base model are frozen")),
        "freeze_exclude": ([], Refused(["*bias*"], "all weights of the base model are frozen")),
    },
    "MFLossMonitor": {
        "learning_rate": (1e-4, None),
        "micro_batch_num": (1, None),
        "micro_batch_interleave_num": (1, None),
        "origin_epochs": (2, None),
        "dataset_size": (100, None),
        "initial_epoch": (0, None),
        "initial_step": (0, None),
        "global_batch_size": (8, None),
        "gradient_accumulation_steps": (1, None),
        "check_for_nan_in_loss_and_grad": (False, Refused(True, "max_skipped_steps: 1")),
        "calculate_per_token_loss": (False, Refused(True, "the mean over the tokens of a micro-batch")),
    },
    "CheckpointMonitor": {
        "checkpoint_format": ("ckpt", Refused("safetensors", "convert_weight.py --reversed")),
        "remove_redundancy": (False, Refused(True, "each process saves every parameter that it holds")),
        "exception_save": (False, Refused(True, "leaves its last checkpoint intact; save_checkpoint_steps")),
        "keep_checkpoint_per_n_minutes": (0, Refused(30, "save_checkpoint_seconds and keep_checkpoint_max")),
        "enc_key": ("", Refused("0123456789abcdef", "not encrypted")),
        "enc_mode": ("AES-GCM", None),
        "config": (None, Refused({"keep_checkpoint_max": 3}, "directly on the callback")),
        "saved_network": (None, Refused("net", "save_network_params")),
        "append_info": (["epoch_num"], None),
        "global_batch_size": (8, None),
    },
    "SummaryMonitor": {
        "collect_specified_data": (None, None),
        "keep_default_action": (True, None),
        "custom_lineage_data": (None, None),
        "collect_tensor_freq": (None, None),
        "max_file_size": (None, None),
        "export_options": (None, None),
    },
    "TimeMonitor": {"data_size": (100, None), "data_time": (False, None)},
    "TrainCallBack": {"stop_step": (None, Refused(5, "train_dataset.num_samples"))},
    "TopkBiasBalanceCallback": {
        "balance_via_topk_bias": (False, Refused(True, "one expert is the plain network")),
        "expert_num": (1, Refused(256, "one expert is the plain network")),
        "topk_bias_update_rate": (0.001, None),
        "num_layers": (12, None),
        "mtp_depth": (0, None),
        "micro_batch_num": (1, None),
        "gradient_accumulation_steps": (1, None),
        "capacity_factor": (1.05, None),
        "hidden_size": (768, None),
        "ffn_hidden_size": (3072, None),
        "expert_parallel": (1, None),
        "model_parallel": (1, None),
        "save_checkpoint_steps": (500, None),
        "moe_config": ({"expert_num": 1}, Refused({"expert_num": 2}, "one expert is the plain network")),
    },
}
SAME_KEYS = {"ColdHotExpertMonitor": "TopkBiasBalanceCallback", "MoEDropRateCallback": "TopkBiasBalanceCallback"}


def lines():
    """The tables' lines: the section, its key, a harmless value, and what is refused or None."""
    tables = HARMLESS | {kind: HARMLESS[other] for kind, other in SAME_KEYS.items()}
    for section, keys in tables.items():
        for key, (harmless, refused) in keys.items():
            yield pytest.param(section, key, harmless, refused, id=f"{section}.{key}".lstrip("."))


@pytest.fixture
def load(tmp_path):
    """Load a configuration in which one key of a section, or of a callback, is set."""
    path = tmp_path / "run.yaml"
    path.write_text("lr_schedule: {learning_rate: 0.001}\n")

    def load(section, key, value):
        if section in CALLBACKS:
            return load_config(path, {"callbacks": [{"type": section, key: value}]})
        return load_config(path, {".".join(filter(None, (section, key))): value})

    return load


@pytest.mark.parametrize(("section", "key", "harmless", "refused"), list(lines()))
def test_a_key_is_harmless_or_refused_in_words(load, section, key, harmless, refused):
    config, ignored = load(section, key, harmless)
    dotted = ".".join(filter(None, (section, key)))
    if section in CALLBACKS and issubclass(CALLBACKS[section], IgnoredCallbackSection):
        assert ignored == [f"callbacks.0 ({section})"]
        assert config.callbacks == []
    elif section in CALLBACKS:
        assert ignored == [f"callbacks.0.{key}"]
    else:
        assert len(ignored) == 1
        assert (dotted + ".").startswith(f"{ignored[0]}."), "the key is named, or the group that it is in"
    if refused is not None:
        with pytest.raises(UserError) as caught:
            load(section, key, refused.value)
        assert refused.words in str(caught.value)
        assert key in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_the_tables_are_complete():
    accepted = {name: set(section.ignored) for name, section in SECTIONS.items()}
    accepted |= {kind: set(section.ignored) for kind, section in CALLBACKS.items() if kind in HARMLESS}
    for name, section in [*SECTIONS.items()]:
        for key, rule in section.ignored.items():
            if isinstance(rule, type):
                accepted[".".join(filter(None, (name, key)))] = set(rule.ignored)
    assert {name: set(keys) for name, keys in HARMLESS.items()} == {
        name: keys for name, keys in accepted.items() if keys
    }
    of_callbacks = {kind for kind, section in CALLBACKS.items() if section.ignored}
    assert of_callbacks <= {*HARMLESS, *SAME_KEYS, "LossMonitor", "CheckpointMointor"}


@pytest.mark.parametrize(
    ("key", "value", "read", "expected"),
    [
        ("predict_batch_size", 3, "model.config.batch_size", 3),
        ("train_precision_sync", True, "context.deterministic", True),
        ("infer_precision_sync", True, "context.deterministic", False),
        ("resume_or_finetune_checkpoint", "x.ckpt", "load_checkpoint", "x.ckpt"),
        ("context.deterministic", "ON", "context.deterministic", True),
        ("context.deterministic", True, "context.deterministic", True),
        ("context.jit_level", "O1", "context.jit_config.jit_level", "O1"),
        ("context.save_graphs", 2, "context.save_graphs", 2),
        ("runner_wrapper.scale_sense.use_clip_grad", False, "runner_wrapper.use_clip_grad", False),
        ("runner_wrapper.type", "MFPipelineWithLossScaleCell", "runner_wrapper.type", "MFTrainOneStepCell"),
        ("processor.tokenizer.type", "GPT2TokenizerFast", "processor.tokenizer.type", "GPT2Tokenizer"),
        ("model.model_config.max_length", 64, "model.config.max_decode_length", 64),
        ("model.model_config.embedding_dropout_prob", 0.2, "model.config.embedding_dropout_rate", 0.2),
        ("model.model_config.embedding_size", 24, "model.config.hidden_size", 24),
    ],
)
def test_a_key_under_another_name_or_in_another_place_is_obeyed(load, key, value, read, expected):
    config, ignored = load("", key, value)
    for name in read.split("."):
        config = getattr(config, name)
    assert (config, ignored) == (expected, [])


def test_the_precision_of_prediction_is_for_prediction(tmp_path):
    (tmp_path / "run.yaml").write_text("run_mode: predict\ninfer_precision_sync: True\n")
    assert load_config(tmp_path / "run.yaml")[0].context.deterministic is True


def test_the_folder_of_tensorboard_makes_a_summary_monitor(load):
    monitor = load("tensorboard", "tensorboard_dir", "./events")[0].callbacks[-1]
    assert (monitor.type, monitor.summary_dir) == ("SummaryMonitor", "./events")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("context.deterministic", "maybe", "context.deterministic: must be ON or OFF, not 'maybe'"),
        ("context.save_graphs", 4, "context.save_graphs: must be True, False or a level from 0 to 3, not 4"),
        ("context", {"jit_level": "O0", "jit_config": {"jit_level": "O1"}}, "jit_level: differs from jit_config"),
        ("eval_dataset.data_loader.type", "TFRecordDataset", "tools/dataset_preprocess makes them"),
        ("optimizer.auto_register", "x.Y", "optimizer.auto_register: unknown key; mindgpt has no registry"),
        ("swap_config.swp", True, "swap_config.swp: unknown key; did you mean 'swap'?"),
        ("monitor_conf", {}, "monitor_conf: unknown key; did you mean 'monitor_config'?"),
        ("predict_batch_size", 0, "predict_batch_size: must be at least 1"),
    ],
)
def test_what_a_key_cannot_be(load, key, value, words):
    with pytest.raises(UserError) as caught:
        load("", key, value)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_callback_that_asks_for_something_is_refused(load, kind):
    with pytest.raises(UserError) as caught:
        load("", "callbacks", [{"type": kind, "start_step": 1}])
    assert f"callbacks.0: {kind} is not in mindgpt: {REFUSED[kind]}" in str(caught.value)


@pytest.mark.parametrize(("key", "values"), HARMLESS["model.model_config"].items(), ids=HARMLESS["model.model_config"])
def test_the_keywords_of_mindformers_class(key, values):
    harmless, refused = values
    assert GPT2Config(**{key: harmless}) == GPT2Config()
    if refused is not None:
        with pytest.raises(UserError) as caught:
            GPT2Config(**{key: refused.value})
        assert refused.words in str(caught.value)


# ---- docs/mindformers.md ---------------------------------------------------------------------------------------------


def documented_rows(repo):
    """The table of keys: (sections, keys without effect or None for every other key, key -> what is in brackets)."""
    page = (repo / "docs" / "mindformers.md").read_text(encoding="utf-8")
    table = page.split("| section | without effect |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        where, free, only = line.strip("| ").split(" | ")
        names = [""] if where == "top level" else re.findall(r"`([^`]+)`", where)
        every = free == "every other key"
        keys = dict(re.findall(r"`(\w+)` \(([^)]+)\)", only))
        yield names, None if every else set(re.findall(r"`(\w+)`", free)), keys


def rules_of(name):
    if name in CALLBACKS:
        return CALLBACKS[name].ignored
    name = {"train_dataset": "eval_dataset", "*_dataset.data_loader": "eval_dataset.data_loader"}.get(name, name)
    if name in SECTIONS:
        return SECTIONS[name].ignored
    above, _, key = name.rpartition(".")
    return SECTIONS[above].ignored[key].ignored


def test_the_page_has_every_key_and_its_value(repo):
    seen = set()
    for names, free, only in documented_rows(repo):
        for name in names:
            seen.add(name)
            rules = {key: rule for key, rule in rules_of(name).items() if not isinstance(rule, type)}
            rules |= {key: rule for key, rule in rules_of(name).items() if key in only}
            if free is not None:
                assert free == {key for key, rule in rules.items() if rule is ANY_VALUE}, name
            assert set(only) == {key for key, rule in rules.items() if rule is not ANY_VALUE}, name
            for key, text in only.items():
                if text.startswith("`"):
                    value = yaml.safe_load(text.split("`")[1])
                    assert rules[key].problem(value) is None, f"{name}.{key}"
    tables = {name for name in HARMLESS if name != "eval_dataset.data_loader"}
    assert seen == {*tables, *SAME_KEYS, "train_dataset", "*_dataset.data_loader"}
