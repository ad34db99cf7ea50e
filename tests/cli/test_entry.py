"""The `mindgpt` command itself: help, names of subcommands, completion, what it hands over to."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from mindgpt.cli import entry, launch
from mindgpt.cli import serve as serving
from mindgpt.cli.completion import main as print_completion
from mindgpt.cli.completion import script
from mindgpt.cli.help_texts import HELP
from mindgpt.cli.subcommands import GROUPS, SUBCOMMANDS, find

SCREEN = (40, 120)  # lines and columns


def test_every_subcommand_and_group_has_a_help():
    assert HELP.keys() == SUBCOMMANDS.keys() | GROUPS.keys()


@pytest.mark.parametrize("name", HELP)
def test_help_fits_a_screen_and_has_an_example(name, capsys):
    entry.run([*name.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN[0]
    assert max(map(len, lines)) <= SCREEN[1]
    usage = [line for line in lines if re.match(rf"(usage: |       )mindgpt {name}", line)]
    example = [line for line in lines if line.startswith("  mindgpt ")]
    assert usage
    assert example


@pytest.mark.parametrize("name", [name for name, one in SUBCOMMANDS.items() if one.parser])
def test_the_flags_of_a_help_exist(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"mindgpt {name}"])
    parser = SUBCOMMANDS[name].load(SUBCOMMANDS[name].parser)()
    known = {*parser.flag_names(), "--help-all"}
    if name in ("train", "finetune", "eval", "predict", "chat", "plan"):
        known |= {"--help"}
    if name == "plan":  # it hands the others to the parser of a run
        known |= {"--config", "--set"}
    if name == "launch":  # those of what it launches
        known |= {"--config", "--train_dataset_dir", "--use_parallel"}
    # A flag of another subcommand may stand in an example of it.
    text = "\n".join(
        line for line in HELP[name].splitlines() if not line.startswith("  mindgpt ") or f" {name} " in line
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert named - known == set()


@pytest.mark.parametrize("name", [name for name, one in SUBCOMMANDS.items() if one.parser])
def test_the_full_help_lists_every_flag_and_names_this_command(name, capsys):
    entry.run([*name.split(), "--help-all"])
    printed = capsys.readouterr().out
    assert f"mindgpt {name}" in printed
    assert "python tools/" not in printed
    parser = SUBCOMMANDS[name].load(SUBCOMMANDS[name].parser)()
    for action in parser._actions:
        if action.help != "==SUPPRESS==":
            assert all(flag in printed for flag in action.option_strings)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_lists_every_subcommand(words, capsys):
    entry.run(words)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN[0]
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z_]+ +\w", line) and "mindgpt" not in line[:10]]
    assert listed == entry.names()


def test_help_loads_nothing_that_takes_time():
    code = (
        "import sys; from mindgpt.cli import entry; entry.run(['--help']); entry.run(['train', '--help']);"
        "print(sorted({'mindspore', 'numpy', 'pydantic', 'yaml', 'tokenizers', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    import mindgpt

    entry.run(["--version"])
    assert capsys.readouterr().out.startswith(f"mindgpt {mindgpt.__version__}, MindSpore ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "there is no subcommand 'trian'; did you mean 'train'?"),
        (["prepare", "txt"], "mindgpt prepare: there is no 'txt'; did you mean 'text'?"),
        (["lora", "x"], "known are: merge, convert"),
        (["--config", "nope.yaml"], "nope.yaml"),
        (["completion", "fish"], "mindgpt completion bash, or mindgpt completion zsh"),
        (["plot"], "the following arguments are required: folder\nmindgpt plot -h lists the flags"),
        (["plan", "--model", "gpt3_1.3"], "did you mean 'gpt3_1.3b'?"),
        (["plan", "--dry_run", "--model", "gpt2_small"], "--rank_size N is required"),
        (["launch"], "name one, such as"),
        (["launch", "-n", "2", "info", "x"], "'info' is none of them"),
        (["launch", "-n", "3", "--local_workers", "2", "train"], "--local_workers 2 must divide --workers 3"),
    ],
)
def test_a_wrong_command_is_reported(words, expected, complaint):
    assert expected in complaint(entry.run, words)


def test_a_group_alone_prints_its_help(capsys):
    entry.run(["prepare"])
    assert capsys.readouterr().out.strip() == HELP["prepare"]


def test_names_of_two_words():
    assert find(["prepare", "text", "--input_file", "x"])[::2] == ("prepare text", ["--input_file", "x"])
    assert find(["prepare"]) is None


def test_launch_starts_the_command_in_each_process(monkeypatch, capsys):
    jobs = []
    monkeypatch.setattr(launch, "launch", lambda job: jobs.append(job) or 3)
    with pytest.raises(SystemExit) as end:
        launch.main(["-n", "2", "--log_dir", "logs", "train", "--config", "x.yaml", "--seed", "1"])
    assert end.value.code == 3
    with pytest.raises(SystemExit):
        launch.main(["-n", "4", "--local_workers", "2", "train", "--config", "x.yaml"])
    job, of_two_machines = jobs
    assert of_two_machines.port == 8118
    assert job.arguments == ["train", "--use_parallel", "True", "--config", "x.yaml", "--seed", "1"]
    assert (job.workers, job.local_workers, job.log_dir.name, job.port) == (2, 2, "logs", 0)
    done = subprocess.run([sys.executable, job.script, "trian"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'train'?" in done.stderr


def test_serve_without_its_packages_says_how_to_install_them(monkeypatch, complaint):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'mindgpt[serve]'" in complaint(serving.main, ["--model", "gpt2-hf"])


# ---- completion ------------------------------------------------------------------------------------------------------


def completed(script_file, *words):
    """What bash offers for the last of these words."""
    quoted = " ".join(map(shlex.quote, ["mindgpt", *words]))
    code = f"source {script_file}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _mindgpt; "
    code += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_subcommands_flags_and_values(tmp_path, capsys):
    print_completion(["bash"])
    file = tmp_path / "mindgpt.bash"
    file.write_text(capsys.readouterr().out)
    assert completed(file, "tr") == ["train"]
    assert set(completed(file, "")) == set(entry.names())
    assert completed(file, "prepare", "in") == ["instructions"]
    assert completed(file, "finetune", "--lor") == ["--lora", "--lora_rank"]
    assert completed(file, "prepare", "text", "--pack") == ["--packing"]
    assert completed(file, "prepare", "text", "--packing", "") == ["full", "none"]
    assert completed(file, "predict", "--do_sample", "T") == ["True"]
    assert completed(file, "train", "--model", "") == []  # left to bash: file names


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script(tmp_path):
    file = tmp_path / "_mindgpt"
    file.write_text(script("zsh"))
    subprocess.run(["zsh", "-n", file], check=True)


def test_both_shells_get_the_same_words():
    bash, zsh = script("bash"), script("zsh")
    for name in ("train", "'prepare text'", "'lora merge'"):
        of_bash = re.search(rf"^ *{name}\) words='(.*)';;$", bash, re.MULTILINE)[1].split()
        of_zsh = re.search(rf"^ *{name}\) found=\((.*)\);;$", zsh, re.MULTILINE)[1].split()
        assert of_bash == of_zsh
        assert "--help-all" in of_bash


# ---- the documents ---------------------------------------------------------------------------------------------------

PAGES = ("docs/command_line.md", "docs/zh/command_line.md")


def documented(page):
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line.split(" > ")[0])[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_and_subcommands_exist(page, repo):
    for words in documented(repo / page):
        found = find(words)
        assert found is not None, words
        name, subcommand, rest = found
        known = subcommand.load(subcommand.parser)().flag_names() if subcommand.parser else []
        rest = rest[:2] if name == "launch" else rest
        assert [word for word in rest if word.startswith("-") and word not in known] == []
    text = (repo / page).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_ ]+)` \|", text, re.MULTILINE)) == SUBCOMMANDS.keys()


def test_both_languages_have_the_same_commands(repo):
    english, chinese = (documented(repo / page) for page in PAGES)
    assert [[word for word in words if word.isascii()] for words in chinese] == [
        [word for word in words if " " not in word] for words in english
    ]
