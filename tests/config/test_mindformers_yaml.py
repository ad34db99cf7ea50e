"""A YAML in the style of MindFormers 1.5, with every key that its GPT-2 files hold, loads unchanged."""

import pytest

from mindgpt.config import load_config

PRETRAIN = """\
seed: 0
run_mode: 'train'
output_dir: './output'  # path to save checkpoint/strategy
load_checkpoint: ''
src_strategy_path_or_dir: ''
auto_trans_ckpt: False
only_save_strategy: False
resume_training: False

context:
  jit_config:
    jit_level: "O2"
  mode: 0  # 0 graph, 1 pynative
  device_target: "Ascend"
  max_call_depth: 10000
  max_device_memory: "59GB"
  save_graphs: False
  save_graphs_path: "./graph"
  device_id: 0

remote_save_url: "Please input obs url on AICC platform."

runner_config:
  epochs: 2
  batch_size: 2
  sink_mode: True
  sink_size: 2

runner_wrapper:
  type: MFTrainOneStepCell
  scale_sense:
    type: DynamicLossScaleUpdateCell
    loss_scale_value: 4294967296
    scale_factor: 2
    scale_window: 1000
  use_clip_grad: True

use_parallel: True
parallel:
  parallel_mode: 1
  gradients_mean: False
  loss_repeated_mean: True
  full_batch: True
  search_mode: "sharding_propagation"
  enable_parallel_optimizer: True
  strategy_ckpt_save_file: "./ckpt_strategy.ckpt"
  strategy_ckpt_config:
    save_file: "./ckpt_strategy.ckpt"
    only_trainable_params: False

parallel_config:
  data_parallel: 4
  model_parallel: 8
  pipeline_stage: 16
  use_seq_parallel: False
  optimizer_shard: True
  micro_batch_num: 64
  vocab_emb_dp: True
  gradient_aggregation_group: 4
micro_batch_interleave_num: 1

moe_config:
  expert_num: 1
  capacity_factor: 1.05
  aux_loss_factor: 0.05
  num_experts_chosen: 1

recompute_config:
  recompute: True
  select_recompute: False
  parallel_optimizer_comm_recompute: False
  mp_comm_recompute: True
  recompute_slice_activation: True

auto_tune: False
filepath_prefix: './autotune'
autotune_per_step: 10

profile: False
profile_start_step: 1
profile_stop_step: 10
init_start_profile: True
profile_communication: True
profile_memory: True

trainer:
  type: CausalLanguageModelingTrainer
  model_name: 'gpt2_13b'
do_eval: False

train_dataset: &train_dataset
  data_loader:
    type: MindDataset
    dataset_dir: ""
    shuffle: False
  tokenizer:
    type: GPT2Tokenizer
    max_length: 2049
  input_columns: ["input_ids", "attention_mask"]
  num_parallel_workers: 8
  python_multiprocessing: False
  drop_remainder: True
  batch_size: 8
  repeat: 1
  numa_enable: False
  prefetch_size: 1
train_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset

eval_dataset: &eval_dataset
  data_loader:
    type: MindDataset
    dataset_dir: ""
    shuffle: False
  tokenizer:
    type: GPT2Tokenizer
    max_length: 2048
  input_columns: ["input_ids", "attention_mask"]
  num_parallel_workers: 8
  python_multiprocessing: False
  drop_remainder: False
  repeat: 1
  numa_enable: False
  prefetch_size: 1
eval_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *eval_dataset

model:
  model_config:
    type: GPT2Config
    batch_size: 1
    max_position_embeddings: 2048
    seq_length: 2048
    vocab_size: 50257
    hidden_size: 5120
    num_layers: 40
    num_heads: 40
    expand_ratio: 4
    num_labels: 2
    hidden_act: "fast_gelu"
    use_flash_attention: False
    use_prompt_flash_attention: False
    hidden_dropout_rate: 0.1
    attention_dropout_rate: 0.1
    param_init_type: "float16"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float16"
    compute_dtype: "float16"
    checkpoint_name_or_path: "gpt2_xl"
    eos_token_id: 50256
    repetition_penalty: 1
    max_decode_length: 1024
    top_k: 5
    top_p: 1
    do_sample: True
    use_past: False
    pet_config:
      pet_type: lora
      lora_rank: 64
      lora_alpha: 128
      lora_dropout: 0.1
      target_modules: '.*dense1.*|.*dense3.*'
  arch:
    type: GPT2LMHeadModel

lr_schedule:
  type: polynomial
  learning_rate: 5.e-5
  lr_end: 1.e-6
  warmup_steps: 2000
  total_steps: -1
layer_scale: False
layer_decay: 0.65

optimizer:
  type: FP32StateAdamWeightDecay
  beta1: 0.9
  beta2: 0.95
  eps: 1.e-8
  weight_decay: 0.1
lr_scale: False
lr_scale_factor: 256

callbacks:
  - type: MFLossMonitor
  - type: CheckpointMonitor
    prefix: "gpt2-13b"
    save_checkpoint_steps: 500
    integrated_save: False
    async_save: False
    save_network_params: True
    save_trainable_params: False
  - type: ObsMonitor
eval_callbacks:
  - type: ObsMonitor

metric:
  type: PerplexityMetric

processor:
  return_tensors: ms
  tokenizer:
    unk_token: '<|endoftext|>'
    bos_token: '<|endoftext|>'
    eos_token: '<|endoftext|>'
    pad_token: '<|endoftext|>'
    type: GPT2Tokenizer
  type: GPT2Processor
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "run_gpt2_13b.yaml"
        path.write_text(text)
        return load_config(path)

    return load


def test_pretraining(load):
    config, ignored = load(PRETRAIN)
    assert set(ignored) == {
        "remote_save_url",
        "auto_tune",
        "filepath_prefix",
        "autotune_per_step",
        "layer_scale",
        "layer_decay",
        "lr_scale",
        "lr_scale_factor",
        "moe_config",
        "parallel.search_mode",
        "train_dataset.numa_enable",
        "train_dataset.tokenizer",
        "eval_dataset.numa_enable",
        "eval_dataset.tokenizer",
        "model.model_config.use_prompt_flash_attention",
        "callbacks.2 (ObsMonitor)",
        "eval_callbacks.0 (ObsMonitor)",
    }
    assert config.runner_config.batch_size == 2
    assert config.train_dataset.batch_size == 8
    assert config.parallel.parallel_mode == "semi_auto_parallel"
    assert config.parallel_config.pipeline_stage == 16
    assert config.optimizer.type == "adamw"
    schedule = config.lr_schedule
    assert (schedule.type, schedule.learning_rate, schedule.lr_end) == ("polynomial", 5e-5, 1e-6)
    assert (schedule.warmup_steps, schedule.power) == (2000, 1.0)
    scale = config.runner_wrapper.scale_sense
    assert (scale.type, scale.loss_scale_value, scale.scale_window) == ("dynamic", 2.0**32, 1000)
    assert [callback.type for callback in config.callbacks] == ["MFLossMonitor", "CheckpointMonitor"]
    assert config.callbacks[1].integrated_save is False
    model = config.model.config
    assert (model.hidden_size, model.ffn_hidden_size, model.max_position_embeddings) == (5120, 20480, 2048)
    assert (model.hidden_act, model.compute_dtype, model.top_k, model.do_sample) == ("fast_gelu", "float16", 5, True)
    assert (model.pet_config.lora_rank, model.pet_config.lora_alpha) == (64, 128.0)
    assert config.context.max_device_memory == "59GB"


def test_classification(load):
    text = PRETRAIN
    for old, new in [
        ("CausalLanguageModelingTrainer", "TextClassificationTrainer"),
        ("CausalLanguageModelDataset", "TextClassificationDataset"),
        ("type: GPT2LMHeadModel", "type: GPT2ForSequenceClassification"),
        ("type: PerplexityMetric", "type: Accuracy\n  eval_type: 'classification'"),
        ('["input_ids", "attention_mask"]', '["input_ids", "attention_mask", "labels"]'),
        ("type: polynomial", "type: CosineWithWarmUpLR"),
        ("FP32StateAdamWeightDecay", "FusedAdamWeightDecay"),
        ("run_mode: 'train'", "run_mode: 'finetune'"),
    ]:
        assert old in text
        text = text.replace(old, new)
    config, _ = load(text)
    assert config.trainer.type == "TextClassificationTrainer"
    assert config.metric.eval_type == "classification"
    assert config.eval_dataset.input_columns == ["input_ids", "attention_mask", "labels"]
    assert (config.lr_schedule.type, config.lr_schedule.num_cycles) == ("cosine", 0.5)
    assert config.run_mode == "finetune"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("expert_num: 1", "expert_num: 4", "moe_config.expert_num: only 1 is allowed, not 4: mindgpt has no mixture"),
        ("layer_scale: False", "layer_scale: True", "layer_scale: only False is allowed, not True: all layers"),
        ('"Ascend"', '"GPU"', "context.device_target: must be 'Ascend', 'CPU'"),
        ("FP32StateAdamWeightDecay", "Came", "optimizer.type: must be one of adamw"),
        ("MFTrainOneStepCell", "TrainOneStepCell", "runner_wrapper.type: must be one of MFTrainOneStepCell"),
        ("PerplexityMetric", "EntityScore", "metric.type: must be 'PerplexityMetric', 'Accuracy' or"),
        ("type: ObsMonitor\neval", "type: ProfileMonitor\neval", "callbacks.2: ProfileMonitor is not in mindgpt: "),
    ],
)
def test_what_changes_its_meaning_is_refused(load, old, new, words):
    assert old in PRETRAIN
    with pytest.raises(ValueError, match=":[0-9]+: ") as caught:
        load(PRETRAIN.replace(old, new))
    line = PRETRAIN[: PRETRAIN.index(old)].count("\n")
    assert f".yaml:{line + 1}: {words}" in str(caught.value)


def test_the_spellings_of_early_releases(load):
    text = PRETRAIN
    for old, new in [
        ("type: CheckpointMonitor", "type: CheckpointMointor"),
        ("type: GPT2LMHeadModel", "type: GPT2WithLora"),
        ('input_columns: ["input_ids", "attention_mask"]', 'input_columns: ["input_ids", "input_mask"]'),
        ("      lora_rank: 64\n", "      lora_rank: 64\n      in_channels: 5120\n      out_channels: 5120\n"),
    ]:
        assert old in text
        text = text.replace(old, new)
    early, ignored = load(text)
    today, ignored_today = load(PRETRAIN)
    assert early == today
    pet = "model.model_config.pet_config"
    assert sorted(ignored) == sorted([*ignored_today, f"{pet}.in_channels", f"{pet}.out_channels"])


def test_the_model_with_lora_needs_its_settings(load):
    pet = PRETRAIN[PRETRAIN.index("    pet_config:") : PRETRAIN.index("  arch:")]
    text = PRETRAIN.replace(pet, "").replace("GPT2LMHeadModel", "GPT2WithLora")
    line = text[: text.index("GPT2WithLora")].count("\n") + 1
    with pytest.raises(ValueError, match=f":{line}: model.arch.type: 'GPT2WithLora' needs model_config.pet_config"):
        load(text)
