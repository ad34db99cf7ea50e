"""YAML file to RunConfig and back: line numbers, all problems at once, YAML's traps, overrides, the round trip."""

import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config import RunConfig, UserError, dump_config, load_config
from mindgpt.config.yaml_file import read_yaml

MINIMAL = "lr_schedule: {learning_rate: 0.001}\n"


@pytest.fixture
def write(tmp_path):
    """Write a text (or bytes) to a YAML file and return its path."""

    def write(content, name="run.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def complaint(path, overrides=None, origins=None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides, origins)
    return str(caught.value)


def test_the_values_of_the_file_arrive(write):
    config, ignored = load_config(write(MINIMAL + "seed: 7\nrunner_config:\n  epochs: 3\n  batch_size: 4\n"))
    assert (config.seed, config.runner_config.epochs, config.runner_config.batch_size) == (7, 3, 4)
    assert config.optimizer.weight_decay == 0.1
    assert ignored == []


def test_every_problem_is_reported_at_its_line(write):
    path = write(
        "run_mode: train\n"  # 1
        "seed: zero\n"
        "runner_config:\n"
        "  batch_size: eight\n"  # 4
        "  # a comment\n"
        "  epoch: 2\n"  # 6
        "model:\n"
        "  model_config:\n"
        "    hidden_size: 10\n"  # 9
        "    n_layer: 0\n"  # 10
        "    pet_config: {lora_rank: -1}\n"  # 11
        "lr_schedule:\n"  # 12
        "  type: cosine\n"
        "moe_config:\n"
        "  expert_num: 8\n"  # 15
        "callbacks:\n"
        "  - type: MFLossMonitor\n"
        "  - type: CheckpointMonitor\n"
        "    save_checkpoint_steps: often\n"  # 19
        "  - type: CheckpointMonitr\n"  # 20
        "seed: 1\n"  # 21
        "layer_scale: True\n"  # 22
    )
    assert complaint(path).splitlines() == [
        f"{path}:4: runner_config.batch_size: must be a whole number, not 'eight'",
        f"{path}:6: runner_config.epoch: unknown key; did you mean 'epochs'?",
        f"{path}:10: model.model_config.n_layer: must be at least 1, not 0",
        f"{path}:11: model.model_config.pet_config.lora_rank: must be at least 1, not -1",
        f"{path}:12: lr_schedule.learning_rate: is missing",
        f"{path}:15: moe_config.expert_num: only 1 is allowed, not 8: mindgpt has no mixture of experts; one "
        "expert is the plain network",
        f"{path}:19: callbacks.1.save_checkpoint_steps: must be a whole number, not 'often'",
        f"{path}:20: callbacks.2: type 'CheckpointMonitr' is not known; did you mean 'CheckpointMonitor'?",
        f"{path}:21: seed: is written twice; the first time in line 2",
        f"{path}:22: layer_scale: only False is allowed, not True: all layers learn at the same rate",
    ]


def test_a_problem_between_keys_has_the_line_of_one_of_them(write):
    path = write(MINIMAL + "model:\n  model_config:\n    num_heads: 5\n    hidden_size: 12\n")
    assert complaint(path) == (
        f"{path}:5: model.model_config.hidden_size: 12 must be divisible by num_heads, which is 5"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ": is empty"),
        ("# only a comment\n", ": is empty"),
        ("- a\n- b\n", ":1: the top level must be keys with values"),
        ("just text", ":1: the top level must be keys with values"),
        ("seed: 1\nrunner_config: {epochs: 2\nrun_mode: train\n", ":3: is not valid YAML"),
        ("seed: 1\n\tepochs: 2\n", ":2: is not valid YAML"),
        ("seed: *nowhere\n", ":1: is not valid YAML: found undefined alias 'nowhere'"),
        ("seed: 1\n---\nseed: 2\n", ":2: is not valid YAML"),
        (b"seed: 1\noutput_dir: caf\xe9\n", ":2: is not UTF-8 text (byte 23)"),
        (b"seed: 1\noutput_dir: \x00\n", ":2: is not valid YAML: character #x0000 is not allowed"),
        ("seed: !!python/object/apply:os.getcwd []\n" + MINIMAL, ":1: seed: is not plain YAML"),
        ("seed: !!python/name:os.getcwd\n" + MINIMAL, ":1: seed: is not plain YAML"),
        (MINIMAL + "1: 2\n", ":2: : has a key that is not text: '1'"),
        (MINIMAL + "yes: 2\n", "has a key that is not text: 'yes'"),
        (MINIMAL + "context: &a {jit_config: *a}\n", ":2: context.jit_config: contains itself through an alias"),
        (MINIMAL + "context: {<<: 3}\n", ":2: is not valid YAML"),
        ("[" * 5000, "is not "),
    ],
)
def test_broken_files_end_in_one_sentence(write, content, words):
    path = write(content)
    message = complaint(path)
    assert message.startswith(str(path))
    assert words in message


def test_nested_aliases_do_not_explode(write):
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "once its aliases are followed" in complaint(write("l0: &l0 [1]\n" + levels))


def test_wrong_paths(tmp_path):
    assert complaint(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: there is no such file"
    assert complaint(tmp_path) == f"{tmp_path}: is a folder; name a YAML file"


def test_byte_order_mark_is_no_part_of_the_first_key(write):
    assert load_config(write(b"\xef\xbb\xbfseed: 5\n" + MINIMAL.encode()))[0].seed == 5


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-04"])
def test_learning_rate_without_a_dot(write, number):
    config, _ = load_config(write(f"lr_schedule: {{type: cosine, learning_rate: {number}}}\n"))
    assert config.lr_schedule.learning_rate == 1e-4


def test_anchors_aliases_and_merge_keys(write):
    config, _ = load_config(
        write(
            MINIMAL + "train_dataset: &data\n"
            "  data_loader: &loader {dataset_dir: a, shuffle: True}\n"
            "  num_parallel_workers: 2\n"
            "eval_dataset:\n"
            "  <<: *data\n"
            "  num_parallel_workers: 1\n"
            "  data_loader: {<<: *loader, dataset_dir: b}\n"
        )
    )
    assert (config.train_dataset.data_loader.dataset_dir, config.train_dataset.num_parallel_workers) == ("a", 2)
    assert (config.eval_dataset.data_loader.dataset_dir, config.eval_dataset.num_parallel_workers) == ("b", 1)
    assert config.eval_dataset.data_loader.shuffle is True


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=2),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
            max_leaves=8,
        ),
        min_size=1,
    )
)
def test_reader_means_what_safe_load_means(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    file = read_yaml(path)
    assert file.value == yaml.safe_load(path.read_text(encoding="utf-8"))
    assert file.problems == []


def test_a_problem_in_a_merged_part_has_the_line_where_it_is_written(write):
    path = write(MINIMAL + "train_dataset: &data\n  batch_size: x\neval_dataset:\n  <<: *data\n")
    assert complaint(path).splitlines() == [
        f"{path}:3: eval_dataset.batch_size: must be a whole number, not 'x'",
        f"{path}:3: train_dataset.batch_size: must be a whole number, not 'x'",
    ]


class TestDatasetAlias:
    """`train_dataset_task.dataset_config`, which MindFormers' files make an alias of `train_dataset`."""

    def test_equal_is_accepted(self, write):
        text = "train_dataset: &d {batch_size: 3}\ntrain_dataset_task: {dataset_config: *d}\n"
        assert load_config(write(MINIMAL + text))[0].train_dataset.batch_size == 3

    def test_alone_it_is_the_section(self, write):
        config, _ = load_config(write(MINIMAL + "eval_dataset_task:\n  dataset_config: {batch_size: 3}\n"))
        assert config.eval_dataset.batch_size == 3
        path = write(MINIMAL + "eval_dataset_task:\n  dataset_config:\n    batch_sise: 3\n")
        assert complaint(path) == f"{path}:4: eval_dataset.batch_sise: unknown key; did you mean 'batch_size'?"

    def test_different_is_refused(self, write):
        path = write(
            MINIMAL + "train_dataset: {batch_size: 3}\ntrain_dataset_task:\n  dataset_config: {batch_size: 4}\n"
        )
        expected = "train_dataset_task.dataset_config: differs from the section train_dataset"
        assert complaint(path).startswith(f"{path}:4: {expected}")

    @pytest.mark.parametrize("key", ["train_dataset.batch_size", "train_dataset_task.dataset_config.batch_size"])
    def test_an_override_reaches_the_section_under_either_name(self, write, key):
        text = "train_dataset: &d {batch_size: 3}\ntrain_dataset_task: {dataset_config: *d}\n"
        assert load_config(write(MINIMAL + text), {key: 5})[0].train_dataset.batch_size == 5


class TestOverrides:
    def test_they_win_and_make_sections(self, write):
        path = write(MINIMAL + "seed: 1\ncallbacks: [{type: MFLossMonitor}, {type: CheckpointMonitor, prefix: a}]\n")
        config, _ = load_config(
            path,
            {
                "seed": 2,
                "context.jit_config.jit_level": "O1",
                "callbacks.1.prefix": "b",
                "lr_schedule.learning_rate": 0.5,
            },
        )
        assert (config.seed, config.context.jit_config.jit_level) == (2, "O1")
        assert (config.callbacks[1].prefix, config.lr_schedule.learning_rate) == ("b", 0.5)

    def test_they_win_over_another_spelling_of_the_key(self, write):
        path = write(MINIMAL + "model: {model_config: {hidden_size: 24, num_heads: 2}}\n")
        config, _ = load_config(path, {"model.model_config.n_embd": 32, "model.model_config.n_head": 4})
        assert (config.model.config.hidden_size, config.model.config.num_heads) == (32, 4)

    def test_problems_name_what_was_typed(self, write):
        path = write(MINIMAL + "seed: 1\ncallbacks: [{type: MFLossMonitor}]\n")
        overrides = {"runner_config.epochs": 0, "optimizr.eps": 1, "callbacks.1.prefix": "x", "seed.a": 1, "oops": 1}
        message = complaint(path, overrides, {"runner_config.epochs": "--epochs"}).splitlines()
        assert message[:4] == [
            "command line: --epochs: runner_config.epochs: must be at least 1, not 0",
            "command line: callbacks.1.prefix: callbacks is a list of 1; give an index below that",
            "command line: oops: unknown key; " + message[2].partition("; ")[2],
            "command line: optimizr.eps: optimizr: unknown key; did you mean 'optimizer'?",
        ]
        assert message[4:] == ["command line: seed.a: seed is 1, which has no keys"]


def test_ignored_keys_are_named(write):
    text = (
        MINIMAL + "remote_save_url: x\nlayer_decay: 0.65\nmoe_config: {expert_num: 1, capacity_factor: 1.05}\n"
        "parallel: {search_mode: sharding_propagation}\ntrain_dataset: {numa_enable: False}\n"
        "callbacks: [{type: MFLossMonitor}, {type: ObsMonitor}]\neval_callbacks: [{type: ObsMonitor}]\n"
        "model: {model_config: {use_prompt_flash_attention: False}}\n"
    )
    assert load_config(write(text))[1] == [
        "remote_save_url",
        "layer_decay",
        "moe_config",
        "parallel.search_mode",
        "train_dataset.numa_enable",
        "callbacks.1 (ObsMonitor)",
        "eval_callbacks.0 (ObsMonitor)",
        "model.model_config.use_prompt_flash_attention",
    ]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\x00"), min_size=1, max_size=12)
rates = st.floats(1e-12, 1.0)


def no_home(text: str) -> bool:
    """`~name` is refused unless there is such a user, and otherwise expanded."""
    return not text.startswith("~")


@st.composite
def configurations(draw) -> dict:
    heads = draw(st.integers(1, 8))
    vocab_size = draw(st.integers(2, 70000))
    return {
        "run_mode": draw(st.sampled_from(["train", "finetune", "eval", "predict"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "output_dir": draw(st.text(max_size=12).filter(no_home)),
        "resume_training": draw(st.booleans() | names.filter(no_home)),
        "do_eval": draw(st.none() | st.booleans()),
        "eval_step_interval": draw(st.none() | st.integers(1, 9)),
        "model": {
            "model_config": {
                "num_heads": heads,
                "hidden_size": heads * draw(st.integers(1, 64)),
                "seq_length": draw(st.none() | st.integers(1, 4096)),
                "vocab_size": vocab_size,
                "eos_token_id": draw(st.none() | st.integers(0, vocab_size - 1)),
                "ffn_hidden_size": draw(st.none() | st.integers(1, 300)),
                "hidden_act": draw(st.sampled_from(["gelu", "gelu_erf", "fast_gelu", "relu", "silu"])),
                "layernorm_epsilon": draw(rates),
                "top_p": draw(st.floats(1e-6, 1.0)),
                "pet_config": draw(st.none() | st.just({"lora_alpha": draw(st.floats(1e-3, 1e6)), "lora_rank": 3})),
            }
        },
        "lr_schedule": {
            "type": draw(st.sampled_from(["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])),
            "learning_rate": draw(st.floats(1e-6, 1.0)),
            "warmup_ratio": draw(st.none() | st.floats(0, 1)),
        },
        "runner_wrapper": {"scale_sense": draw(st.floats(1, 1e9) | st.just({"type": "dynamic"}))},
        "callbacks": [{"type": "LossMonitor"}, {"type": "CheckpointMonitor", "prefix": draw(names)}],
        "train_dataset": {"data_loader": {"dataset_dir": draw(st.text(max_size=12).filter(no_home))}},
    }


@settings(max_examples=150, deadline=None)
@given(configurations())
def test_dump_and_load_give_the_same(tmp_path_factory, values):
    config = RunConfig.model_validate(values)
    path = tmp_path_factory.mktemp("dump") / "resolved.yaml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    loaded, ignored = load_config(path)
    assert loaded == config
    assert ignored == []
    assert "&id" not in path.read_text(encoding="utf-8")


def test_importing_the_configuration_is_quick_and_loads_no_mindspore():
    program = (
        "import sys, time; start = time.perf_counter(); import mindgpt.config, mindgpt.checkpoints.gpt2_config; "
        "print(time.perf_counter() - start, 'mindspore' in sys.modules, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert output[1:] == ["False", "False"]
    assert float(output[0]) < 2.0  # 0.2 s on an idle machine; MindSpore alone takes longer than this


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "\u2029", " x ", "中文 <|endoftext|>", "no", "1e-4", "a\nb\n", "\ufeff"]
)
def test_awkward_text_survives_the_dump(write, text):
    config = RunConfig(run_mode="eval", output_dir=text)
    assert load_config(write(dump_config(config)))[0].output_dir == text
