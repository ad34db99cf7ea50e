"""Programs and scripts under the names that older releases of MindFormers had: they hand on to those of today."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from tests import programs

H, LAYERS = 8, 2


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A tiny GPT-2 in Hugging Face's form."""
    draw = np.random.default_rng(0)
    shapes = {"wte.weight": (20, H), "wpe.weight": (4, H), "ln_f.weight": (H,), "ln_f.bias": (H,)}
    for layer in range(LAYERS):
        shapes |= {
            f"h.{layer}.{name}": shape
            for name, shape in {
                "ln_1.weight": (H,), "ln_1.bias": (H,), "ln_2.weight": (H,), "ln_2.bias": (H,),
                "attn.c_attn.weight": (H, 3 * H), "attn.c_attn.bias": (3 * H,),
                "attn.c_proj.weight": (H, H), "attn.c_proj.bias": (H,),
                "mlp.c_fc.weight": (H, 4 * H), "mlp.c_fc.bias": (4 * H,),
                "mlp.c_proj.weight": (4 * H, H), "mlp.c_proj.bias": (H,),
            }.items()
        }  # fmt: skip
    tensors = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("hf")
    entries = {name: TensorInfo(value.shape, "float32") for name, value in tensors.items()}
    write_safetensors(folder / "model.safetensors", entries, tensors.items())
    sizes = '"vocab_size": 20, "n_positions": 4, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0'
    (folder / "config.json").write_text(f'{{"model_type": "gpt2", "eos_token_id": 0, {sizes}}}')
    return folder


@pytest.fixture
def convert(repo, monkeypatch):
    """`main` of the convert_weight.py at the top."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("top_convert_weight", repo / "convert_weight.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *words: module.main(list(map(str, words)))


def test_the_program_at_the_top_converts_there_and_back(convert, hugging_face, tmp_path):
    ckpt, back = tmp_path / "gpt2.ckpt", tmp_path / "back"
    convert("--model", "gpt2", "--input_path", hugging_face, "--output_path", ckpt, "--layers", LAYERS)
    convert("--model", "gpt", "--reversed", "--input_path", ckpt, "--output_path", back, "--dtype", "fp32")
    ours, theirs = open_weights(back).source, open_weights(hugging_face).source
    assert set(ours.entries) == set(theirs.entries)
    for name in ours.entries:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "llama"], "--model llama: mindgpt has GPT-2 only; known are: gpt, gpt2"),
        (["--model", "gpt2", "--dtype", "bf16"], "--dtype bf16: must be fp32 or fp16"),
        (["--model", "gpt2", "--is_lora", "True"], "tools/convert_lora.py"),
        (["--model", "gpt2", "--layers", "12"], "--layers 12: .* has 2 layers"),
    ],
)
def test_what_the_program_at_the_top_cannot_do(convert, hugging_face, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        convert(*words, "--input_path", hugging_face, "--output_path", tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_both_programs_run_as_scripts(repo, hugging_face, tmp_path):
    ckpt = tmp_path / "gpt2.ckpt"
    for program, words in (
        ("convert_weight.py", ["--model", "gpt2", "--input_path", hugging_face, "--output_path", ckpt]),
        ("mindgpt/models/gpt2/convert_reversed.py", ["--mindspore_path", ckpt, "--torch_path", tmp_path / "back"]),
    ):
        done = programs.run([sys.executable, repo / program, *words], tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back" / "model.safetensors").exists()


# ---- run_standalone.sh, run_distribute.sh ----------------------------------------------------------------------------


@pytest.fixture
def script(repo, tmp_path):
    """Run a copy of a script beside a launcher and under a Python that tell what they got: its words, and the process.

    In a folder with a space in its name.
    """
    home = tmp_path / "my checkout"
    (home / "scripts").mkdir(parents=True)
    (home / "scripts/msrun_launcher.sh").write_text(
        'printf "cards %s visible %s\\n" "$2" "$ASCEND_RT_VISIBLE_DEVICES"; printf %s "$1"'
    )
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "run.yaml").write_text("seed: 0\n")

    def run(name, *words):
        (home / "scripts" / name).write_text((repo / "scripts" / name).read_text())
        environment = os.environ | {"PYTHON": str(python), "ASCEND_RT_VISIBLE_DEVICES": ""}
        command = ["bash", str(home / "scripts" / name), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)

    return run


def test_one_card(script, tmp_path):
    done = script("run_standalone.sh", "run.yaml", "3", "train", "--train_dataset_dir", "a b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(tmp_path / "my checkout/run_mindformer.py"), "--config", "run.yaml", "--run_mode", "train",
        "--use_parallel", "False", "--device_id", "3", "--train_dataset_dir", "a b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "cards", "visible", "handed_on"),
    [
        (["[0,8]", "train"], 8, "", ["train"]),
        (["[4,8]", "finetune", "4"], 4, "4,5,6,7", ["finetune"]),
        (["[0,2]", "predict", "it's odd"], 2, "", ["predict", "--predict_data", "it's odd"]),
        (["[0,2]", "predict", "2", "hello"], 2, "", ["predict", "--predict_data", "hello"]),
        (["[0,2]", "predict", "2"], 2, "", ["predict", "--predict_data", "2"]),
        (["[0,2]", "eval", "--options", "seed=1", "x=2"], 2, "", ["eval", "--options", "seed=1", "x=2"]),
    ],
)
def test_the_cards_of_a_machine(script, tmp_path, words, cards, visible, handed_on):
    done = script("run_distribute.sh", "hccl_8p.json", "run.yaml", *words)
    assert done.returncode == 0, done.stderr
    first, command = done.stdout.split("\n", 1)
    assert first == f"cards {cards} visible {visible}"
    mode, *rest = handed_on
    program = str(tmp_path / "my checkout/run_mindformer.py")
    expected = [program, "--config", "run.yaml", "--run_mode", mode, "--use_parallel", "True", *rest]
    assert shlex.split(command) == expected


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("run_standalone.sh", ["run.yaml", "0"], "three arguments or more are needed, and there are 2"),
        ("run_standalone.sh", ["lost.yaml", "0", "train"], "CONFIG: there is no file lost.yaml"),
        ("run_standalone.sh", ["run.yaml", "x", "train"], "DEVICE_ID must be a whole number from 0, not 'x'"),
        (
            "run_standalone.sh",
            ["run.yaml", "0", "test"],
            "RUN_MODE must be train, finetune, eval or predict, not 'test'",
        ),
        (
            "run_standalone.sh",
            ["run.yaml", "0", "train", "more"],
            "what follows RUN_MODE are flags, and 'more' is none",
        ),
        ("run_distribute.sh", [], "four arguments or more are needed, and there are 0"),
        ("run_distribute.sh", ["t", "run.yaml", "[0,8]"], "four arguments or more are needed, and there are 3"),
        ("run_distribute.sh", ["t", "lost.yaml", "[0,8]", "train"], "CONFIG: there is no file lost.yaml"),
        ("run_distribute.sh", ["t", "run.yaml", "0-8", "train"], "the cards must be written like [0,8], not '0-8'"),
        ("run_distribute.sh", ["t", "run.yaml", "[8,8]", "train"], "[8,8] holds no card"),
        ("run_distribute.sh", ["t", "run.yaml", "[0,8]", "test"], "RUN_MODE must be train, finetune, eval or predict"),
        ("run_distribute.sh", ["t", "run.yaml", "[0,8]", "predict"], "PREDICT_DATA is missing"),
        ("run_distribute.sh", ["t", "run.yaml", "[0,8]", "train", "8", "x"], "'x' is one argument too many"),
        (
            "run_distribute.sh",
            ["t", "run.yaml", "[0,8]", "train", "16"],
            "RANK_SIZE 16 is not the 8 cards of [0,8]. For several machines type on each of them: bash "
            'scripts/msrun_launcher.sh "run_mindformer.py --config run.yaml --run_mode train --use_parallel True" 16 8 '
            "MASTER_ADDR 8118 NODE_RANK output/msrun_log True 7200",
        ),
    ],
)
def test_wrong_arguments(script, name, words, message):
    done = script(name, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert "usage: bash" in done.stderr
    assert done.stdout == ""
