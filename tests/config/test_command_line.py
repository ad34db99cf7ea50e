"""Flags: what they set, what they override, and which are refused with which words."""

import importlib.metadata
import platform
import subprocess
import sys

import pytest

import mindgpt
from mindgpt.config import UserError, config_from_command_line, parse_arguments
from mindgpt.config.arguments import CheckedParser
from mindgpt.config.command_line import FLAGS, REFUSED

YAML = """\
run_mode: {mode}
remote_save_url: x
runner_config: {{epochs: 3, batch_size: 4}}
train_dataset: {{batch_size: 8}}
lr_schedule: {{type: cosine, learning_rate: 1e-4}}
callbacks:
  - type: MFLossMonitor
  - type: CheckpointMonitor
"""


@pytest.fixture
def run(tmp_path):
    """Read a command line with a configuration of the given run mode in front of it."""

    def run(*argv, mode="train"):
        path = tmp_path / "run.yaml"
        path.write_text(YAML.format(mode=mode))
        return config_from_command_line(["--config", str(path), *argv])

    return run


def complaint(run, *argv, mode="train") -> str:
    with pytest.raises(UserError) as caught:
        run(*argv, mode=mode)
    return str(caught.value)


def value_at(config, key):
    for part in key.split("."):
        config = getattr(config, "config" if part == "model_config" else part)
    return config


@pytest.mark.parametrize(
    ("mode", "flag", "text", "key", "value"),
    [
        ("train", "run_mode", "eval", "run_mode", "eval"),
        ("train", "seed", "9", "seed", 9),
        ("train", "output_dir", "123", "output_dir", "123"),
        ("train", "load_checkpoint", "gpt2", "load_checkpoint", "gpt2"),
        ("eval", "adapter", "peft", "model.model_config.pet_config.adapter", "peft"),
        ("train", "resume_training", "True", "resume_training", True),
        ("train", "resume_training", "a_rank_0-1_2.ckpt", "resume_training", "a_rank_0-1_2.ckpt"),
        ("finetune", "train_dataset_dir", "d", "train_dataset.data_loader.dataset_dir", "d"),
        ("eval", "eval_dataset_dir", "d", "eval_dataset.data_loader.dataset_dir", "d"),
        ("train", "num_samples", "5", "train_dataset.num_samples", 5),
        ("eval", "num_samples", "5", "eval_dataset.num_samples", 5),
        ("train", "epochs", "7", "runner_config.epochs", 7),
        ("eval", "epochs", "1", "runner_config.epochs", 1),
        ("train", "batch_size", "7", "runner_config.batch_size", 7),
        ("train", "gradient_accumulation_steps", "2", "runner_config.gradient_accumulation_steps", 2),
        ("train", "sink_mode", "TRUE", "runner_config.sink_mode", True),
        ("train", "do_eval", "true", "do_eval", True),
        ("train", "profile", "True", "profile", True),
        ("predict", "tokenizer", "dir", "processor.tokenizer.path", "dir"),
        ("predict", "predict_batch_size", "3", "model.model_config.batch_size", 3),
        ("predict", "max_new_tokens", "3", "model.model_config.max_new_tokens", 3),
        ("predict", "do_sample", "True", "model.model_config.do_sample", True),
        ("predict", "top_k", "3", "model.model_config.top_k", 3),
        ("predict", "top_p", "0.5", "model.model_config.top_p", 0.5),
        ("predict", "temperature", "2", "model.model_config.temperature", 2.0),
        ("train", "device_target", "CPU", "context.device_target", "CPU"),
        ("train", "device_id", "1", "context.device_id", 1),
        ("train", "mode", "1", "context.mode", 1),
        ("train", "use_parallel", "False", "use_parallel", False),
        ("train", "only_save_strategy", "True", "only_save_strategy", True),
        ("train", "src_strategy_path_or_dir", "s", "src_strategy_path_or_dir", "s"),
        ("train", "auto_trans_ckpt", "True", "auto_trans_ckpt", True),
        ("train", "transform_process_num", "2", "transform_process_num", 2),
    ],
)
def test_every_flag_overrides_the_file(run, mode, flag, text, key, value):
    assert value_at(run(f"--{flag}", text, mode=mode).config, key) == value


def test_the_list_above_is_complete():
    """A flag nobody tests is a flag that may do nothing."""
    marks = test_every_flag_overrides_the_file.pytestmark[0].args[1]
    assert {flag.name for flags in FLAGS.values() for flag in flags} == {row[1] for row in marks}


def test_the_file_counts_where_no_flag_is_given(run):
    config, notes, prompts = run()
    assert (config.runner_config.epochs, config.runner_config.batch_size, prompts) == (3, 4, [])
    assert notes[0].endswith("run.yaml: accepted without effect: remote_save_url")
    assert notes[1:] == ["train_dataset.batch_size 8 is overridden by runner_config.batch_size 4"]


def test_options_set_any_key(run):
    config = run(
        "--options",
        "callbacks.1.prefix=small",
        "optimizer.weight_decay=0",
        "model.model_config.num_layers=2",
        "lr_schedule.learning_rate=1e-3",
        "train_dataset.input_columns=[a, b]",
        "output_dir=a=b",
        "--options",
        "seed=5",
    ).config
    assert (config.callbacks[1].prefix, config.optimizer.weight_decay, config.model.config.num_layers) == (
        "small",
        0,
        2,
    )
    assert (config.lr_schedule.learning_rate, config.train_dataset.input_columns) == (1e-3, ["a", "b"])
    assert (config.output_dir, config.seed) == ("a=b", 5)


def test_prompts(run):
    assert run("--predict_data", "I love", "prompts.txt", mode="predict").predict_data == ["I love", "prompts.txt"]
    assert "has no effect with run_mode train; it is for predict" in complaint(run, "--predict_data", "x")


def test_a_classifier_predicts_labels_and_generates_nothing(run):
    classifier = [
        "--options",
        "trainer.type=TextClassificationTrainer",
        "model.arch.type=GPT2ForSequenceClassification",
    ]
    flags = {"max_new_tokens": 5, "do_sample": True, "top_k": 3, "top_p": 0.9, "temperature": 0.5}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert complaint(run, *words, *classifier, mode="predict").splitlines() == [
        f"command line: --{name} has no effect with trainer.type TextClassificationTrainer, which predicts labels"
        for name in flags
    ]
    config = run("--predict_batch_size", "3", *classifier, mode="predict").config
    assert config.model.config.batch_size == 3
    assert run(*words, mode="predict").config.model.config.top_k == 3


@pytest.mark.parametrize(
    ("mode", "argv", "words"),
    [
        ("train", ["--epoch", "3"], "unknown flag --epoch; did you mean '--epochs'?"),
        ("train", ["--epoch=3"], "unknown flag --epoch; did you mean '--epochs'?"),
        ("train", ["epochs"], "unexpected argument 'epochs'"),
        ("train", ["--optimizer.eps", "1"], "write --options optimizer.eps=VALUE"),
        ("train", ["--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
        ("train", ["--epochs"], "argument --epochs: expected one argument"),
        ("train", ["--use_parallel", "yes"], "argument --use_parallel: must be True or False, not 'yes'"),
        ("train", ["--epochs", "0"], "command line: --epochs: runner_config.epochs: must be at least 1, not 0"),
        ("train", ["--run_mode", "trian"], "--run_mode: run_mode: must be 'train', 'finetune', 'eval' or 'predict'"),
        ("train", ["--device_target", "GPU"], "--device_target: context.device_target: must be 'Ascend', 'CPU'"),
        ("train", ["--options", "seed"], "--options 'seed': must be KEY=VALUE"),
        ("train", ["--options", "a..b=1"], "must be KEY=VALUE with a dotted YAML key"),
        ("train", ["--options", "sed=1"], "--options sed: unknown key; did you mean 'seed'?"),
        ("train", ["--options", "seed=[1"], "--options seed: '[1' is not a valid YAML value"),
        ("train", ["--options", "callbacks.2.prefix=a"], "callbacks is a list of 2"),
        ("train", ["--options", "seed=1", "--seed", "2"], "--seed and --options seed disagree"),
        ("eval", ["--train_dataset_dir", "d"], "--train_dataset_dir has no effect with run_mode eval"),
        ("predict", ["--train_dataset_dir", "d"], "--train_dataset_dir has no effect with run_mode predict"),
        ("predict", ["--eval_dataset_dir", "d"], "--eval_dataset_dir has no effect with run_mode predict"),
        ("train", ["--eval_dataset_dir", "d"], "unless --do_eval True is given too"),
        ("eval", ["--epochs", "2"], "--epochs 2: an evaluation is one pass over the data"),
        ("predict", ["--epochs", "1"], "--epochs has no effect with run_mode predict"),
        (
            "predict",
            ["--batch_size", "1"],
            "--batch_size has no effect with run_mode predict; use --predict_batch_size",
        ),
        ("train", ["--top_k", "1"], "--top_k has no effect with run_mode train; it is for predict"),
        ("train", ["--run_mode", "eval", "--do_eval", "True"], "--do_eval has no effect with run_mode eval"),
    ],
)
def test_what_is_refused(run, mode, argv, words):
    message = complaint(run, *argv, mode=mode)
    assert message.startswith("command line: ")
    assert words in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--num_beams", "2"], "write --options model.model_config.num_beams=VALUE"),
        (["--max_length=7"], "write --options model.model_config.max_decode_length=VALUE"),
        (["--options", "num_beams=2"], "--options num_beams: the key is model.model_config.num_beams"),
        (["--options", "model.model_config.stop_sequence=x"], "unknown key; the name is stop_strings"),
    ],
)
def test_names_that_are_known_elsewhere(run, argv, words):
    assert words in complaint(run, *argv, mode="predict")


@pytest.mark.parametrize("name", REFUSED)
def test_flags_of_machinery_that_is_not_here(run, name):
    assert complaint(run, f"--{name}", "x").startswith(f"command line: --{name} has no effect here: {REFUSED[name]}")


def test_evaluation_data_may_come_with_evaluation_in_training(run):
    config = run("--do_eval", "True", "--eval_dataset_dir", "d").config
    assert config.eval_dataset.data_loader.dataset_dir == "d"
    assert config.callbacks[-1].type == "EvalCallBack"


def test_problems_of_file_and_flags_come_together(run, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("lr_schedule: {learning_rate: fast}\nsede: 1\n")
    message = complaint(lambda *argv, mode: config_from_command_line(argv), "--config", str(path), "--epochs", "0")
    assert message.splitlines() == [
        "command line: --epochs: runner_config.epochs: must be at least 1, not 0",
        f"{path}:1: lr_schedule.learning_rate: must be a number, not 'fast'",
        f"{path}:2: sede: unknown key; did you mean 'seed'?",
    ]


def test_config_is_required():
    with pytest.raises(UserError, match="--config FILE is required"):
        parse_arguments([])


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["-h"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ["config", "options", "predict_data", *(flag.name for flags in FLAGS.values() for flag in flags)]:
        assert f"--{name} " in text
    assert not any(f"--{name}" in text for name in REFUSED)


# ---- the parser that all programs share ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run_mindformer.py", "mindgpt"])
def test_the_program_calls_itself_as_it_was_called(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{name}", "-h"])
    with pytest.raises(SystemExit) as ending:
        parse_arguments()
    assert ending.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {name} --config FILE [flags]\n")
    monkeypatch.setattr(sys, "argv", [name, "--config"])
    with pytest.raises(UserError, match=f"expected one argument\n{name} -h lists the flags"):
        parse_arguments()


def test_the_version_needs_no_configuration(repo):
    """Nor MindSpore, whose version its metadata tell."""
    code = "import sys; from mindgpt.config.command_line import parse_arguments as p\ntry: p(['--version'])\n"
    code += "finally: print('mindspore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    mindspore = importlib.metadata.version("mindspore")
    wanted = f"mindgpt {mindgpt.__version__}, MindSpore {mindspore}, Python {platform.python_version()}"
    assert (done.returncode, done.stdout.splitlines()) == (0, [wanted, "False"])
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{mindgpt.__version__}"\n' in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predict_data", "-Hello"], "expected at least one argument. A value that begins with '-' is joined to its "
         "flag by '=': --predict_data=-Hello\n"),
        (["--predict_data", "a", "-Hello"], "'-Hello' begins with a dash, which makes it a flag. As a prompt it is "
         "written --predict_data=-Hello, or stands in a file, one prompt a line\n"),
        (["--tokenizer", "-a"], "expected one argument. A value that begins with '-' is joined to its flag by '=': "
         "--tokenizer=-a\n"),
        (["--tokenizer", "--seed", "3"], "argument --tokenizer: expected one argument\n"),
        (["--tokenizer"], "argument --tokenizer: expected one argument\n"),
    ],
)  # fmt: skip
def test_a_value_that_begins_with_a_dash(words, message):
    with pytest.raises(UserError) as refused:
        parse_arguments(["--config", "x.yaml", *words])
    assert message in str(refused.value)


def test_prompts_that_begin_with_a_dash():
    words = ["--config", "x.yaml", "--predict_data=-Hello", "--predict_data=-5", "--predict_data", "- a", "b"]
    assert parse_arguments(words).predict_data == ["-Hello", "-5", "- a", "b"]


def test_the_parsers_of_tools_tell_of_dashes_too():
    parser = CheckedParser(prog="tool.py")
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    parser.add_argument("--label_names", nargs="+")
    with pytest.raises(UserError, match=r"joined to its flag by '=': --label_names=-x"):
        parser.parse_args(["--label_names", "-x", "y"])
    with pytest.raises(UserError, match=r"unrecognized arguments: -Hello. If it is a TEXT: put -- before it"):
        parser.parse_args(["-Hello"])
