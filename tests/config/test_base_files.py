"""`base_config`, MindFormers 0.3's way to put a YAML together: what wins, where problems are laid, what is refused."""

import pytest

from mindgpt.config import UserError, load_config

# The layout of MindFormers 0.3's configs/gpt2, with the keys that were renamed since.
FILES = {
    "configs/__base__.yaml": """\
seed: 7
use_parallel: False
layer_scale: False
micro_batch_interleave_num: 1
resume_or_finetune_checkpoint: ''
aicc_config: {obs_path: "x", upload_frequence: 1, keep_last: False}
eval_callbacks:
  - type: ObsMonitor
""",
    "configs/gpt2/task/context.yaml": """\
context: {mode: 0, max_device_memory: "30GB", save_graphs: False}
parallel: {parallel_mode: 0, full_batch: False, enable_alltoall: False}
parallel_config: {data_parallel: 1, expert_parallel: 1, gradient_aggregation_group: 6}
""",
    "configs/gpt2/task/runner.yaml": """\
seed: 3
runner_config: {epochs: 3, batch_size: 8, image_size: 224, per_epoch_size: -1, initial_epoch: 0, has_trained_steps: 0}
lr_schedule: {type: polynomial, learning_rate: 0.0001, lr_end: 0.00001, warmup_steps: 0, total_steps: -1}
callbacks:
  - type: MFLossMonitor
  - type: CheckpointMointor
    prefix: "mindformers"
  - type: ObsMonitor
""",
    "configs/gpt2/task/data.yaml": """\
train_dataset: &train_dataset
  data_loader: {type: MindDataset, dataset_dir: "", shuffle: True}
  input_columns: ["input_ids"]
  num_parallel_workers: 3
train_dataset_task:
  type: CausalLanguageModelDataset
  dataset_config: *train_dataset
""",
    "configs/gpt2/model/gpt2.yaml": """\
model:
  model_config:
    type: GPT2Config
    seq_length: 64
    vocab_size: 300
    embedding_size: 24
    num_layers: 2
    num_heads: 3
    dropout_prob: 0.0
    hidden_dropout_prob: 0.2
    attention_probs_dropout_prob: 0.3
    layernorm_dtype: "float32"
    softmax_dtype: "float16"
    eos_token: 299
  arch: {type: GPT2LMHeadModel}
""",
    "configs/gpt2/run.yaml": """\
base_config: ['./task/context.yaml', './task/runner.yaml', 'task/data.yaml', './model/gpt2.yaml', '../__base__.yaml']
context: {device_id: 0}
runner_config:
  epochs: 5
callbacks:
  - type: CheckpointMonitor
    prefix: own
""",
}


@pytest.fixture
def tree(tmp_path):
    """Write FILES, with other texts for some, and return the path of the run's."""

    def write(changed=None):
        for name, text in (FILES | (changed or {})).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "configs/gpt2/run.yaml"

    return write


def test_a_yaml_of_mindformers_0_3_loads(tree):
    config, ignored = load_config(tree())
    assert config.runner_config.epochs == 5, "the file's own key"
    assert config.runner_config.batch_size == 8, "its neighbour, of a base"
    assert config.seed == 7, "of two bases the later"
    assert (config.context.max_device_memory, config.context.device_id) == ("30GB", 0)
    assert [(callback.type, callback.prefix) for callback in config.callbacks] == [("CheckpointMonitor", "own")]
    assert config.train_dataset.num_parallel_workers == 3
    model = config.model.config
    assert (model.hidden_size, model.embedding_dropout_rate, model.hidden_dropout_rate) == (24, 0.0, 0.2)
    assert (model.attention_dropout_rate, model.softmax_compute_type, model.eos_token_id) == (0.3, "float16", 299)
    assert config.load_checkpoint == ""
    assert {"aicc_config", "runner_config.image_size"} <= set(ignored)


def test_of_the_bases_a_later_section_replaces_an_earlier_one(tree):
    path = tree({"configs/gpt2/model/gpt2.yaml": "context: {max_call_depth: 5}\n"})
    context = load_config(path)[0].context
    assert (context.max_call_depth, context.max_device_memory, context.device_id) == (5, None, 0)


def test_the_command_line_goes_before_all(tree):
    assert load_config(tree(), {"runner_config.batch_size": 2})[0].runner_config.batch_size == 2


def complaint(path):
    with pytest.raises(UserError) as caught:
        load_config(path)
    return str(caught.value).splitlines()


def test_a_problem_is_laid_to_the_file_it_stands_in(tree):
    path = tree(
        {"configs/gpt2/model/gpt2.yaml": "# sizes\nmodel:\n  model_config: {hidden_size: 10}\nseed: 1\nseed: 2\n"}
    )
    base = path.parent / "model/gpt2.yaml"
    assert complaint(path) == [
        f"{base}:3: model.model_config.hidden_size: 10 must be divisible by num_heads, which is 12",
        f"{base}:5: seed: is written twice; the first time in line 4",
    ]
    path = tree({"configs/gpt2/task/data.yaml": "train_dataset_task: {dataset_config: {batch_size: 0}}\n"})
    assert complaint(path) == [
        f"{path.parent / 'task/data.yaml'}:1: train_dataset.batch_size: must be at least 1, not 0"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nbase_config: lost.yaml\n", "{run}:2: base_config: {folder}/lost.yaml: there is no such file"),
        ("base_config: [run.yaml]\n", "{run}:1: base_config: {folder}/run.yaml is based on this file, or is this file"),
        ("base_config: [5]\n", "{run}:1: base_config: must be the name of a YAML file or a list of such, not 5"),
        ("base_config: task\n", "{run}:1: base_config: {folder}/task: is a folder; name a YAML file"),
    ],
)
def test_what_cannot_be_a_base(tree, text, words):
    path = tree({"configs/gpt2/run.yaml": text})
    assert complaint(path)[0] == words.format(run=path, folder=path.parent)


def test_files_based_on_each_other_are_refused(tree):
    path = tree({"configs/gpt2/model/gpt2.yaml": "base_config: [../run.yaml]\n"})
    base = path.parent / "model/gpt2.yaml"
    assert complaint(path) == [
        f"{path}:1: base_config: {base}:1: base_config: {base.parent}/../run.yaml is based on this file, or is this "
        "file"
    ]


def test_no_base_is_the_file_alone(tree):
    config, _ = load_config(tree({"configs/gpt2/run.yaml": "base_config: []\nlr_schedule: {learning_rate: 0.1}\n"}))
    assert config.runner_config.epochs == 1
