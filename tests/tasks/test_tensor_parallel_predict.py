"""The graphs of evaluation and prediction in tensor parallelism, compiled for simulated Ascend. The numbers are checked
on CPU processes (tests/generation/test_tensor_parallel.py)."""

import functools
import re
import sys
from collections import Counter

import pytest

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT
from tests.programs import run_simulated

pytestmark = [
    pytest.mark.usefixtures("cpu"),
    pytest.mark.needs_ascend,
]
LAYERS, MODES = 2, ("predict", "eval")
OPTIONS = (
    f"model.model_config.num_layers={LAYERS}", "parallel.parallel_mode=1", "model.model_config.compute_dtype=float16",
    "model.model_config.use_flash_attention=True",
)  # fmt: skip
_OPERATOR = re.compile(r"= (?:PrimFunc_)?(AllReduce|AllGather|ReduceScatter|FlashAttentionScore)\(")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a toy model of a variant: `folder_of(variant)`."""

    @functools.cache
    def save(variant):
        folder = tmp_path_factory.mktemp(variant)
        sizes = {"num_layers": LAYERS, "num_heads": 2, "hidden_size": 32, "vocab_size": 300, "seq_length": 32}
        GPT2LMHeadModel(GPT2Config(**sizes, variant=variant)).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def card(repo, toy, folder_of, tmp_path):
    """Run as the first card of some: `card(cards, "--run_mode", ...)` -> what it printed."""

    def run(cards, *arguments, options=(), variant="gpt2"):
        command = [
            sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--load_checkpoint", folder_of(variant),
            "--use_parallel", "True", *arguments, "--options", *OPTIONS, f"model.model_config.variant={variant}",
            *options,
        ]  # fmt: skip
        more = DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path / "graphs")}
        return run_simulated(command, 0, cards, cwd=tmp_path, timeout=300, more=more)

    return run


def operators(folder):
    """Of each compiled graph that has any, how many there are of each kind."""
    graphs = [Counter(_OPERATOR.findall(file.read_text())) for file in sorted(folder.rglob("*_validate_*.ir"))]
    return [graph for graph in graphs if graph]


@pytest.mark.parametrize(
    ("mode", "variant"),
    [*((mode, "gpt2") for mode in MODES), *(pytest.param(mode, "gpt2_ml", marks=pytest.mark.slow) for mode in MODES)],
)
def test_two_sums_a_block_and_flash_attention_on_the_cards_own_heads(card, toy, tmp_path, mode, variant):
    words = {
        "predict": ("--predict_data", "the cat", "--tokenizer", str(toy.tokenizer)),
        "eval": ("--eval_dataset_dir", str(toy.valid)),
    }[mode]
    done = card(2, "--run_mode", mode, *words, options=("parallel_config={model_parallel: 2}",), variant=variant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tensor parallel: 2 cards" in done.stdout
    assert "compiled" in done.stdout
    graphs = 2 if mode == "predict" else 1  # reading a text, and one more token; or a batch
    assert operators(tmp_path / "graphs") == [{"AllReduce": 2 * LAYERS, "FlashAttentionScore": LAYERS}] * graphs
    text = "".join(file.read_text() for file in (tmp_path / "graphs").rglob("*_validate_*.ir"))
    assert set(re.findall(r"head_num: I64\((\d+)\)", text)) == {"1"}


def test_layouts_that_only_training_knows_are_refused(card, toy, tmp_path):
    words = ("--run_mode", "eval", "--eval_dataset_dir", str(toy.valid))
    done = card(2, *words, options=("parallel_config={pipeline_stage: 2, micro_batch_num: 2}",))
    assert done.returncode == 2, done.stdout
    assert "to evaluate or predict on 2 cards, set model_parallel to 2" in done.stderr
    assert "Traceback" not in done.stderr
    done = card(4, *words, options=("parallel_config={model_parallel: 2, data_parallel: 2}",))
    assert done.returncode == 2
    assert "model_parallel 4 does not divide num_heads 2. Numbers of cards that work: 1, 2" in done.stderr
    assert not (tmp_path / "output").exists()
