"""`~` in paths, wherever they come from; and that every key and every argument that is a path expands it."""

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config import UserError, load_config
from mindgpt.config.arguments import file_argument, path_argument, text_or_path
from mindgpt.config.callback_sections import CALLBACKS
from mindgpt.config.command_line import config_from_command_line
from mindgpt.config.paths import expanded, expanded_path
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import Section
from mindgpt.io.files import make_folder
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

_PATH_KEY = re.compile(r"path|(^|_)(dir|directory|file|folder|checkpoint|adapter)$|_dir$")
_NO_PATHS = {"auto_trans_ckpt"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder; the working directory is another, and nothing called `~` is left there."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert [name for name in os.listdir(here) if name.startswith("~")] == []


def test_expansion(home):
    assert expanded("~") == str(home)
    assert expanded("~/a b/~") == f"{home}/a b/~"
    assert [expanded(path) for path in ("a/~", "./~", "/~/x", "", "a~")] == ["a/~", "./~", "/~/x", "", "a~"]
    assert expanded("~root/x") == "/root/x"
    assert expanded_path(Path("~/x")) == home / "x"


def test_a_home_that_nobody_has_is_refused():
    message = r"'~nobody-here/x': ~nobody-here means the home folder of a user 'nobody-here'"
    with pytest.raises(UserError, match=message):
        expanded("~nobody-here/x")
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        path_argument("~nobody-here/x")
    with pytest.raises(UserError, match="Cannot create the folder ~/x: ~ is not expanded"):
        make_folder("~/x")


def test_a_word_that_may_be_a_text(home):
    (home / "prompts.txt").touch()
    assert text_or_path("~/prompts.txt") == f"{home}/prompts.txt"
    words = ["~/is home", "~", "~ 5", "~\0", "~/\0", "~nobody-here/x"]
    assert [text_or_path(word) for word in words] == words


def test_prompts_and_the_launcher(home):
    from mindgpt.runtime.launcher import parse
    from mindgpt.tasks.prompts import read_prompts

    (home / "prompts.txt").write_text("from the file\n")
    assert [prompt.text for prompt in read_prompts(["~/prompts.txt", "~/ is home"])] == ["from the file", "~/ is home"]
    (home / "job.py").touch()
    job = parse(["~/job.py --x ~/y", "2", "8118", "~/logs", "True", "60"])
    assert (job.script, job.log_dir, job.arguments) == (home / "job.py", home / "logs", ["--x", "~/y"])


def sections_of(section: type[Section], above: str = ""):
    """The dotted names of all keys of a section and of those below it."""
    for name, field in section.model_fields.items():
        key = f"{above}{field.alias or name}"
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if inner is not None and inner is not Section:
            yield from sections_of(inner, f"{key}.")
        else:
            yield key


def test_every_key_that_holds_a_path_expands_it(home, tmp_path):
    keys = [key for key in sections_of(RunConfig) if _PATH_KEY.search(key.split(".")[-1]) and key not in _NO_PATHS]
    assert {"output_dir", "load_checkpoint", "model.model_config.pet_config.adapter", "context.save_graphs_path",
            "train_dataset.data_loader.dataset_dir", "processor.tokenizer.vocab_file"} <= set(keys)  # fmt: skip
    (home / "empty.yaml").write_text("run_mode: eval\n")
    for key in [*keys, "resume_training", "callbacks.0.directory", "callbacks.0.summary_dir"]:
        overrides = {key: "~/x/y"}
        if key.endswith(("vocab_file", "merges_file")):
            overrides = {f"processor.tokenizer.{name}": "~/x/y" for name in ("vocab_file", "merges_file")}
        if key.startswith("callbacks"):
            kind = next(kind for kind, section in CALLBACKS.items() if key.split(".")[-1] in section.model_fields)
            overrides = {"callbacks": [{"type": kind, key.split(".")[-1]: "~/x/y"}]}
        config, _ = load_config("~/empty.yaml", overrides)
        value = config
        for part in key.split("."):
            value = value[int(part)] if part.isdecimal() else getattr(value, {"model_config": "config"}.get(part, part))
        assert value == f"{home}/x/y", key


def test_callbacks_have_no_other_paths():
    keys = {key for section in CALLBACKS.values() for key in section.model_fields if _PATH_KEY.search(key)}
    assert keys == {"directory", "summary_dir"}


def test_flags_options_and_prompts(home):
    (home / "run.yaml").write_text("run_mode: predict\n")
    config, _, _ = config_from_command_line([
        "--config=~/run.yaml", "--output_dir=~/out", "--load_checkpoint=~/w.ckpt",
        "--options", "processor.tokenizer.path=~/t",
    ])  # fmt: skip
    assert (config.output_dir, config.load_checkpoint) == (f"{home}/out", f"{home}/w.ckpt")
    assert config.processor.tokenizer.path == f"{home}/t"
    with pytest.raises(UserError, match=r"command line: --output_dir: output_dir: '~nobody-here': ~nobody-here means"):
        config_from_command_line(["--config=~/run.yaml", "--output_dir=~nobody-here"])


def test_python_calls(home):
    GPT2Config(num_layers=1, hidden_size=8, num_heads=2, vocab_size=300).save_pretrained("~/model")
    assert GPT2Config.from_pretrained("~/model").hidden_size == 8
    GPT2Tokenizer.train(["a text", "a text"], 260).save_pretrained("~/tokenizer")
    assert GPT2Tokenizer.from_pretrained("~/tokenizer").encode("a") == [ord("a") - 33]
    assert sorted(os.listdir(home)) == ["model", "tokenizer"]


def arguments_of(file: Path, monkeypatch):
    """The actions of the parser that a program makes."""

    class Made(Exception):
        pass

    def stop(parser, *_, **__):
        raise Made(parser)

    spec = importlib.util.spec_from_file_location(f"tool_{file.stem}", file)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", [str(file)])
    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
        monkeypatch.setattr("mindgpt.config.arguments.CheckedParser.parse_known_args", stop)
    with pytest.raises(Made) as made:
        tool.parse_arguments(None) if hasattr(tool, "parse_arguments") else tool.main()
    return made.value.args[0]._actions


def test_every_tool_expands_its_paths(repo, home, monkeypatch):
    """A path among the arguments is one whose name or metavar says so."""
    programs = [*(repo / "tools").rglob("*.py"), repo / "mindgpt/models/gpt2/convert_weight.py"]
    programs.remove(repo / "tools/benchmark.py")  # runs the one in benchmarks/
    programs.append(repo / "benchmarks/benchmark.py")
    seen = set()
    for file in programs:
        with monkeypatch.context() as patch:
            actions = arguments_of(file, patch)
        for action in actions:
            metavar = str(action.metavar or "")
            named = re.search(r"file|_dir$|path|folder|output|strategy", action.dest)
            if not named and metavar not in ("FILE", "DIR", "PATH"):
                continue
            if file.name == "score_text.py" and metavar == "X" or action.dest == "texts":
                continue  # handed over to run_mindformer's, and to `read_prompts`
            assert action.type is not None, f"{file.name} --{action.dest}"
            assert str(action.type("~/x/y")) == f"{home}/x/y", f"{file.name} --{action.dest}"
            seen.add(f"{file.name} {action.dest}")
    assert {"text_to_mindrecord.py tokenizer_type", "plot_run.py folder", "transform_ckpt.py src_ckpt_strategy",
            "convert_weight.py torch_path", "dry_run.py hardware", "score_text.py output"} <= seen  # fmt: skip


def test_file_argument(home):
    assert file_argument("~/x") == home / "x"
