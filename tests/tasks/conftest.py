"""Toy data, a toy configuration, and `run_mindformer.py` run as a user types it."""

import dataclasses
import hashlib
import random
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests import programs

VOCAB_SIZE = 300
SEQ_LENGTH = 32

# Two epochs of ten steps. Without fusion, which is measured and tested elsewhere: compiles in a third of the time.
# Without dropout: the masks of MindSpore 2.10's CPU kernel depend, from its sixth call on, on how its threads take
# turns (and it chooses their number by the clock), so that no seed repeats them.
TOY_YAML = f"""\
run_mode: train
context: {{enable_graph_kernel: False}}
runner_config: {{epochs: 2, batch_size: 8}}
lr_schedule: {{type: constant, learning_rate: 0.01, warmup_steps: 4}}
train_dataset: {{num_samples: 80}}
model:
  model_config:
    seq_length: {SEQ_LENGTH}
    hidden_size: 32
    num_layers: 1
    num_heads: 2
    vocab_size: {VOCAB_SIZE}
    hidden_dropout_rate: 0.0
    attention_dropout_rate: 0.0
callbacks:
  - {{type: MFLossMonitor, per_print_times: 7}}
  - {{type: CheckpointMonitor, prefix: toy, save_checkpoint_steps: 4, keep_checkpoint_max: 2}}
"""


@dataclasses.dataclass(frozen=True)
class Toy:
    """Paths of the toy data: `train` has 90 rows or more, `valid` a last row that is mostly padding."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def train(self) -> Path:
        return self.folder / "train.mindrecord"

    @property
    def valid(self) -> Path:
        return self.folder / "valid.mindrecord"

    @property
    def yaml(self) -> Path:
        return self.folder / "toy.yaml"


def text(lines: int, seed: int) -> str:
    words = re.findall(
        "[a-z]+", "the quick brown fox jumps over a lazy dog while seven old ships sail north to new land"
    )
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(words, k=12)) + " .\n" for _ in range(lines))


@pytest.fixture(scope="session")
def program(repo):
    """Run a program of the checkout: `program("run_mindformer.py", "--config", ..., cwd=...)` -> CompletedProcess."""

    def run(name, *arguments, cwd, env=None, timeout=120):
        environment = programs.user_environment() | (env or {})
        return programs.run([sys.executable, repo / name, *arguments], cwd, environment, timeout)

    return run


@pytest.fixture(scope="session")
def succeed(program):
    """As `program`, for runs that must end well: their standard output."""

    def run(*arguments, **keywords):
        done = program(*arguments, **keywords)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def toy(tmp_path_factory, repo):
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    toy = Toy(tmp_path_factory.mktemp("toy"))
    GPT2Tokenizer.train([text(200, seed=1)], VOCAB_SIZE).save_pretrained(toy.tokenizer)
    make_data = runpy.run_path(str(repo / "tools/dataset_preprocess/text_to_mindrecord.py"))["main"]
    for path, lines in ((toy.train, 110), (toy.valid, 21)):
        path.with_suffix(".txt").write_text(text(lines, seed=lines))
        words = ["--input_file", path.with_suffix(".txt"), "--output_file", path, "--max_length", SEQ_LENGTH + 1]
        make_data(list(map(str, [*words, "--tokenizer_type", toy.tokenizer])))
    toy.yaml.write_text(TOY_YAML)
    return toy


def digests(folder: Path) -> dict[str, str]:
    """The checksum of every file below `folder`."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="session")
def checksums():
    return digests


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training: the folder it ran in, and what it printed."""

    cwd: Path
    console: str

    @property
    def output(self) -> Path:
        return self.cwd / "output"

    @property
    def last_checkpoint(self) -> Path:
        return self.output / "checkpoint" / "rank_0" / "toy_rank_0-2_10.ckpt"


@pytest.fixture(scope="session")
def trained(toy, succeed, tmp_path_factory):
    """The toy training, evaluating every 5 steps; all tests that need a run's output share it and leave it as it is."""
    cwd = tmp_path_factory.mktemp("trained")
    console = succeed(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
        "--do_eval", "True", "--eval_dataset_dir", toy.valid, "--options", "eval_step_interval=5", cwd=cwd,
    )  # fmt: skip
    return Run(cwd, console)
