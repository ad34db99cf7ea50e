"""The scripts: their environment is whole or made again, their paths are the caller's, their line ends survive Windows.

Python is a stub in most tests, which writes down how it was called: nothing is downloaded or trained.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindgpt.config.command_line import config_from_command_line

# As the interpreter that makes environments, and as the one in an environment. BREAK names what fails.
STUB = r"""#!/usr/bin/env bash
printf '%s\n' "$PWD: $*" >> "$LOG"
case "$*" in
"-c import ensurepip, venv") [ "$BREAK" != ensurepip ] ;;
-c*) exit 0 ;;
"-m venv "*)
    mkdir -p "$3/bin"
    touch "$3/pyvenv.cfg"
    [ "$BREAK" != venv ] || exit 1
    cp "$0" "$3/bin/python"
    touch "$3/pip"
    ;;
"-m pip --version") [ -e "$(dirname "$0")/../pip" ] ;;
"-m ensurepip") [ "$BREAK" != ensurepip ] && touch "$(dirname "$0")/../pip" ;;
"-m pip install"*) [ "$BREAK" != install ] ;;
esac
"""


@pytest.fixture
def stub(tmp_path):
    """An executable file."""
    file = tmp_path / "python3.11"
    file.write_text(STUB)
    file.chmod(0o755)
    return file


@pytest.fixture
def script(repo, tmp_path, stub):
    """Runs a bash command in a folder of its own, with the stub for Python: status, output, and the calls of Python."""
    here, log = tmp_path / "here", tmp_path / "log"
    here.mkdir()

    def run(command, fails="", **variables):
        log.write_text("")
        environment = {
            **os.environ,
            "PYTHON": str(stub),
            "LOG": str(log),
            "BREAK": fails,
            "VENV": str(tmp_path / "venv"),
        }
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail; REPO={repo}; {command}"], cwd=here, env=environment | variables,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout, log.read_text().splitlines()

    return run


MAKE = "source $REPO/scripts/environment.sh; make_environment '[test]'; echo made with $PYTHON"


def test_an_environment_is_made_once(script, tmp_path, repo):
    status, output, calls = script(MAKE)
    assert status == 0
    assert output.endswith(f"made with {tmp_path}/venv/bin/python\n")
    assert [call for call in calls if " install " in call] == [
        f"{tmp_path}/here: -m pip install --quiet --disable-pip-version-check --editable {repo}[test]"
    ]
    (tmp_path / "venv" / "mine").touch()
    status, output, calls = script(MAKE)
    assert (status, output) == (0, f"made with {tmp_path}/venv/bin/python\n")
    assert [call.split(": ")[1] for call in calls] == ["-m pip --version"]


def test_an_environment_without_pip_gets_it(script, stub, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_bytes(stub.read_bytes())
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "venv" / "mine").touch()
    status, output, _ = script(MAKE)
    assert status == 0
    assert f"the virtual environment {tmp_path}/venv had no pip: added" in output
    assert (tmp_path / "venv" / "mine").exists()


def test_a_real_environment_without_pip_gets_it(repo, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    command = f"source {repo}/scripts/environment.sh; make_venv; $VENV/bin/python -m pip --version"
    done = subprocess.run(
        ["bash", "-c", f"set -e; {command}"], env=os.environ | {"VENV": str(tmp_path / "venv")}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert f"from {tmp_path}/venv/lib" in done.stdout


@pytest.mark.parametrize("left", ["unfinished", "dangling"])
def test_a_broken_environment_is_made_again(script, tmp_path, left):
    """One that was interrupted, or whose interpreter is gone."""
    if left == "unfinished":
        assert script(MAKE, fails="venv")[0] == 1
        assert (tmp_path / "venv" / ".unfinished").exists()
    else:
        (tmp_path / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "venv" / "bin" / "python").symlink_to("/no/such/python")
        (tmp_path / "venv" / "pyvenv.cfg").touch()
    status, output, _ = script(MAKE)
    assert status == 0
    assert "is broken or unfinished: making it again" in output
    assert not (tmp_path / "venv" / ".unfinished").exists()


def test_a_folder_that_is_no_environment_is_left_alone(script, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis").touch()
    status, output, _ = script(MAKE)
    assert (status, output) == (
        2, f"error: {tmp_path}/venv is a folder, and no virtual environment; name another with VENV=folder\n"
    )  # fmt: skip
    assert (tmp_path / "venv" / "thesis").exists()


def test_a_file_is_no_environment(script, tmp_path):
    (tmp_path / "venv").write_text("my notes")
    status, output, _ = script(MAKE)
    assert (status, output) == (2, f"error: {tmp_path}/venv is a file; name a folder with VENV=folder\n")
    assert (tmp_path / "venv").read_text() == "my notes"


def test_a_python_without_ensurepip_is_told_of(script, stub, tmp_path):
    status, output, _ = script(MAKE, fails="ensurepip")
    assert status == 2
    assert output == (
        f"error: {stub} cannot make virtual environments: it has no ensurepip or venv.\n"
        "Debian and Ubuntu: apt install python3-venv; or set PYTHON=/path/to/another\n"
    )
    assert not (tmp_path / "venv").exists()


def test_an_installation_that_failed_is_begun_again(script, tmp_path):
    status, output, _ = script(MAKE, fails="install")
    assert status == 1
    assert output.endswith("run this again once the reason above is gone\n")
    status, _, calls = script(MAKE)
    assert status == 0
    assert any(" install " in call for call in calls)


def test_the_paths_of_the_quickstart_are_the_callers(script, tmp_path, repo):
    (tmp_path / "here" / "my text.txt").write_text("a text\n")
    status, output, calls = script("bash $REPO/scripts/quickstart.sh 'my text.txt'", OUTPUT="out")
    assert status == 0, output
    out = tmp_path / "here" / "out"
    ours = [call.removeprefix(f"{repo}: ") for call in calls if call.startswith(f"{repo}: ")]
    assert ours[0] == f"tools/split_text.py --input_file {tmp_path}/here/my text.txt --output_dir {out}/text"
    assert any(f"--output_dir {out}/run" in call for call in ours)
    assert not any(" out/" in call for call in ours)
    status, output, _ = script("bash $REPO/scripts/quickstart.sh nope.txt")
    assert (status, output) == (2, f"error: there is no text file {tmp_path}/here/nope.txt\n")


@pytest.mark.parametrize(
    ("output", "place"),
    [("", "{repo}/output/quickstart"), ("/x", "/x"), ("~/x", "{home}/x"), ("a/../b", "{here}/a/../b")],
)
def test_where_the_quickstart_writes(script, tmp_path, repo, output, place):
    variables = {"OUTPUT": output} if output else {}
    status, _, calls = script("bash $REPO/scripts/quickstart.sh", HOME=str(tmp_path / "home"), **variables)
    place = place.format(repo=repo, home=tmp_path / "home", here=tmp_path / "here")
    assert status == 0
    assert f"{repo}: tools/split_text.py --output_dir {place}/text" in calls


def test_a_relative_environment_is_the_callers(script, tmp_path):
    status, output, _ = script(MAKE, VENV="env")
    assert (status, output.splitlines()[-1]) == (0, f"made with {tmp_path}/here/env/bin/python")


def test_the_paths_of_sst2_are_the_callers(script, tmp_path, repo):
    (tmp_path / "here" / "data").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "here" / "data" / name).write_text("sentence\tlabel\ngood\t1\n")
    status, output, calls = script("bash $REPO/scripts/examples/gpt2/sst2.sh data '~/out'", HOME=str(tmp_path / "home"))
    assert status == 0, output
    out = tmp_path / "home" / "out"
    assert (
        f"{repo}: tools/train_tokenizer.py --input_file {out}/sentences.txt --vocab_size 10000 --output_dir "
        in "\n".join(calls)
    )
    assert any(f"--input_file {tmp_path}/here/data/dev.tsv" in call for call in calls)
    assert os.listdir(tmp_path / "here") == ["data"]


@pytest.mark.parametrize(
    ("name", "files", "arguments", "calls_with"),
    [
        ("two_stage", ["lines.txt", "vocab.txt"], "lines.txt vocab.txt '~/out'", "--input_file {here}/lines.txt"),
        ("poems", ["poems.json", "vocab.txt"], "poems.json '~/out' vocab.txt", "- {here}/poems.json {out}/poems.txt"),
        (
            "chnsenticorp",
            ["chnsenticorp.train4k.tsv", "chnsenticorp.dev.tsv"],
            ". '~/out'",
            "--input_file {here}/./chnsenticorp.dev.tsv",
        ),
    ],
)
def test_examples_of_chinese_gpt2(script, tmp_path, repo, name, files, arguments, calls_with):
    """Paths are the caller's, all go into OUT_DIR, and each stage begins with the weights of the one before."""
    here, out = tmp_path / "here", tmp_path / "home" / "out"
    for file in files:
        (here / file).write_text("label\ttext_a\n1\tx\n")
    (out / "tokenizer").mkdir(parents=True)
    (out / "tokenizer" / "vocab.txt").write_text("[PAD]\n")  # as if it had been learnt
    command = f"bash $REPO/examples/gpt2_chinese/{name}.sh"
    status, output, calls = script(f"{command} {arguments}", HOME=str(tmp_path / "home"))
    assert status == 0, output
    assert calls_with.format(here=here, out=out) in "\n".join(calls)
    assert sorted(os.listdir(here)) == sorted(files)
    runs = [call for call in calls if "run_mindformer.py" in call]
    for before, run in itertools.pairwise(runs):
        folder = before.split("--output_dir ")[1].split()[0]
        assert f"--load_checkpoint {folder}/checkpoint" in run
    for missing in (f"{command} {arguments.split()[0]}", f"{command} nowhere {arguments}".rsplit(" ", 1)[0]):
        assert script(missing)[0] == 2


@pytest.mark.parametrize(("name", "arguments"), [("poetry", ["poems.json"]), ("dureader", [])])
def test_examples_of_gpt3(script, tmp_path, repo, monkeypatch, name, arguments):
    """Paths are the caller's, all go into OUT_DIR, the runs understand their flags, and the second has the first's
    weights."""
    here, out = tmp_path / "here", tmp_path / "home" / "out"
    for file in arguments:
        (here / file).write_text('[{"paragraphs": ["春眠"]}]')
    (out / "model").mkdir(parents=True)
    (out / "model" / "eval_generations.jsonl").write_text("as if it had been written")
    command = " ".join(["bash $REPO/examples/gpt3/" + f"{name}.sh", *arguments])
    status, output, calls = script(f"{command} '~/out'", HOME=str(tmp_path / "home"))
    assert status == 0, output
    assert any(call.endswith(" ".join(["-", *(f"{here}/{file}" for file in arguments), str(out)])) for call in calls)
    assert sorted(os.listdir(here)) == arguments
    monkeypatch.chdir(repo)
    runs = [call.split("run_mindformer.py ")[1] for call in calls if "run_mindformer.py" in call]
    learnt = [run.replace("vocab_size=", "vocab_size=300").split() for run in runs]
    training, other = (config_from_command_line(words)[0] for words in learnt)
    assert training.do_eval and training.optimizer.decay_all and training.lr_schedule.type == "noam"
    assert training.output_dir == other.output_dir == str(out / "model")
    assert f"--load_checkpoint {out}/model/checkpoint" in runs[1]
    sizes = ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_position_embeddings")
    assert all(getattr(training.model.config, size) == getattr(other.model.config, size) for size in sizes)
    for wrong in (
        f"{command} '~/out' more",
        command.replace("poems.json", "nowhere '~/out'") if arguments else command,
    ):
        assert script(wrong)[0] == 2


def test_predict_expands_the_home_folder_in_quotes(script, tmp_path):
    (tmp_path / "here" / "a.yaml").touch()
    (tmp_path / "here" / "tokenizer").mkdir()
    arguments = "single '~/a.yaml' '~/w.ckpt' 1 '~/tokenizer' '~ is no path'"
    status, output, calls = script(
        f"bash $REPO/scripts/examples/gpt2/run_gpt2_predict.sh {arguments}", HOME=str(tmp_path / "here")
    )
    assert status == 0, output
    here = tmp_path / "here"
    assert f"--config {here}/a.yaml --run_mode predict --load_checkpoint {here}/w.ckpt" in calls[-1]
    assert "--predict_data ~ is no path" in calls[-1]
    assert f"--tokenizer {here}/tokenizer" in calls[-1]


def test_scripts_keep_their_line_ends_in_every_clone(repo):
    """Also under core.autocrlf, as Git for Windows sets it."""
    if not (repo / ".git").exists():
        pytest.skip("needs a clone")
    git = ["git", "-C", str(repo), "-c", "core.autocrlf=true"]
    files = subprocess.run([*git, "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    scripts = [name for name in files if name.endswith(".sh") or (repo / name).read_bytes().startswith(b"#!")]
    assert {"scripts/environment.sh", "scripts/examples/gpt2/sst2.sh", ".ci/run"} <= set(scripts)
    asked = subprocess.run(
        [*git, "check-attr", "text", "eol", "--", *scripts], capture_output=True, text=True, check=True
    )
    wanted = [f"{name}: {line}" for name in scripts for line in ("text: set", "eol: lf")]
    assert asked.stdout.splitlines() == wanted
    texts = [name for name in files if not name.endswith(".png")]
    assert [name for name in texts if b"\r\n" in (repo / name).read_bytes()] == []


SHELL_FILES = [
    file for folder in ("scripts", "examples") for file in Path(__file__).parents[1].glob(f"{folder}/**/*.sh")
]


@pytest.mark.parametrize("file", sorted(SHELL_FILES), ids=lambda file: file.name)
def test_bash_reads_the_script(file):
    assert subprocess.run(["bash", "-n", file], capture_output=True).stderr == b""
