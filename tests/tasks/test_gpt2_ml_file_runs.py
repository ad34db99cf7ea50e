"""A TensorFlow checkpoint of GPT2_ML as `load_checkpoint` of every run mode, and after conversion; nothing is changed.

The oracle is the network written from its formulas. The second half is bad input, through both programs.
"""

import ast
import contextlib
import io
import json
import math
import random
import runpy
import shutil
import sys

import numpy as np
import pytest

import mindgpt
from mindgpt.config import load_config
from mindgpt.config.errors import UserError, run_program
from mindgpt.models.gpt2 import convert_weight
from mindgpt.tasks.main import main
from mindgpt.tasks.model_setup import plan_model
from tests.checkpoints.gpt2_ml_files import CONFIG, JSON, TOKENS, WEIGHTS, H, P, V, convert, write_model
from tests.checkpoints.tensorflow_files import BIG_ENDIAN, CODES, Stored, write_bundle
from tests.models.gpt2_ml_reference import loss_and_gradients, reference_logits

pytestmark = pytest.mark.usefixtures("cpu")

SEP = TOKENS.index("[SEP]")
WORDS = [token for token in TOKENS if token.startswith("t")]
ROWS, NEW = 4, 6
YAML = f"""\
context: {{enable_graph_kernel: False}}
runner_config: {{epochs: 1, batch_size: {ROWS}}}
lr_schedule: {{type: constant, learning_rate: 0.01}}
model:
  model_config:
    {{variant: %s, seq_length: {P}, hidden_size: {H}, num_layers: 2, num_heads: {CONFIG.num_heads}, vocab_size: {V},
      hidden_dropout_rate: 0.0, attention_dropout_rate: 0.0, embedding_dropout_rate: 0.0, max_new_tokens: {NEW},
      prompt_special_tokens: none}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory, repo):
    """The checkpoint, `tf/model.ckpt-100000`; the .ckpt and the folders made of it; data and YAMLs."""
    base = tmp_path_factory.mktemp("gpt2_ml")
    prefix = write_model(base / "tf")
    convert(prefix, base / "ckpt" / "x.ckpt")
    convert(prefix, base / "hf")
    convert(prefix, base / "port", "--target_format", "gpt2_ml_torch")
    pick = random.Random(1)
    (base / "data.txt").write_text("".join(" ".join(pick.choices(WORDS, k=P - 1)) + "\n" for _ in range(ROWS)))
    words = ["--input_file", base / "data.txt", "--output_file", base / "x.mindrecord", "--max_length", P + 1]
    words += ["--tokenizer_type", base / "tf", "--document_per", "line"]
    runpy.run_path(str(repo / "tools/dataset_preprocess/text_to_mindrecord.py"))["main"](list(map(str, words)))
    for variant in ("gpt2_ml", "gpt2"):
        (base / f"{variant}.yaml").write_text(YAML % variant)
    return base


@pytest.fixture(scope="module")
def expected_loss(base):
    """Of the rows, which are [CLS], the words of a line, and [SEP]."""
    lines = (base / "data.txt").read_text().splitlines()
    ids = [[TOKENS.index("[CLS]"), *map(TOKENS.index, line.split()), SEP] for line in lines]
    return loss_and_gradients(WEIGHTS, CONFIG, np.array(ids))[0]


@pytest.fixture
def start(base, tmp_path, monkeypatch):
    """Run `run_mindformer.py` in this process: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)

    def run(mode, weights, *arguments, yaml="gpt2_ml"):
        words = ["--config", base / f"{yaml}.yaml", "--run_mode", mode, "--load_checkpoint", weights, *arguments]
        monkeypatch.setattr(sys, "argv", ["run_mindformer.py", *map(str, words)])
        return _outcome(main)

    return run


def _outcome(program):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
        program()
    return end.value.code, out.getvalue(), errors.getvalue()


def tokenizer(base):
    """Words of the command line that name the vocabulary, whose rules are then BERT's."""
    return "--options", f"processor.tokenizer.vocab_file={base / 'tf' / 'vocab.txt'}"


def greedy(prompt):
    """The words that follow, by the formulas."""
    ids = list(map(TOKENS.index, prompt.split()))
    for _ in range(NEW):
        ids.append(int(reference_logits(WEIGHTS, CONFIG, np.array([ids]))[0, -1].argmax()))
        if ids[-1] == SEP:
            break
    return [TOKENS[number] for number in ids if number != SEP]


def test_fine_tuning_starts_from_it(start, base, expected_loss, tmp_path):
    status, out, errors = start("finetune", base / "tf/model.ckpt-100000", "--train_dataset_dir", base / "x.mindrecord")
    assert status == 0, errors
    assert "36 parameters loaded; 50 skipped (optimizer state); 1 skipped (training counter)" in out
    (first,) = map(json.loads, (tmp_path / "output/log/train.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(expected_loss, rel=1e-4)
    assert mindgpt.GPT2Config.from_pretrained(tmp_path / "output/checkpoint/rank_0").variant == "gpt2_ml"


def test_evaluation(start, base, expected_loss):
    status, out, errors = start("eval", base / "tf", "--eval_dataset_dir", base / "x.mindrecord")
    assert status == 0, errors
    (line,) = (line for line in out.splitlines() if line.startswith("PerplexityMetric: "))
    metric = ast.literal_eval(line.removeprefix("PerplexityMetric: "))["PerplexityMetric"]
    assert metric["loss"] == pytest.approx(expected_loss, rel=1e-4)
    assert metric["PPL"] == pytest.approx(math.exp(expected_loss), rel=1e-3)


def test_prediction_before_and_after_conversion(start, base, tmp_path):
    prompts = ["t1 t2 t3", "t9"]
    for weights in ("tf/model.ckpt-100000", "ckpt/x.ckpt"):
        status, _, errors = start("predict", base / weights, "--predict_data", *prompts, *tokenizer(base))
        assert status == 0, errors
        lines = (tmp_path / "output/predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)["generated_text"].split() for line in lines] == list(map(greedy, prompts))


def test_a_yaml_of_the_other_variant(start, base, tmp_path):
    """Whatever the format, the message names both."""
    mindgpt.GPT2LMHeadModel(CONFIG.replaced({"variant": "gpt2"})).save_pretrained(tmp_path / "gpt2")
    ml, plain = "a GPT2_ML (variant gpt2_ml)", "a GPT-2 (variant gpt2)"
    cases = [(base / path, "gpt2", ml, plain) for path in ("tf/model.ckpt-100000", "ckpt/x.ckpt", "hf", "port")]
    for weights, yaml, held, built in [*cases, (tmp_path / "gpt2", "gpt2_ml", plain, ml)]:
        status, _, errors = start("predict", weights, "--predict_data", "t1", *tokenizer(base), yaml=yaml)
        assert status == 2 and "Traceback" not in errors
        assert f"holds the weights of {held}, and the model is {built}, another network" in errors
    with pytest.raises(UserError, match="holds the weights of a GPT2_ML .* the model is a GPT-2 "):
        plan_model(load_config(base / "gpt2.yaml")[0], weights_follow=base / "ckpt" / "x.ckpt")  # as a resumed run


def flipped(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 16
    file.write_bytes(content)


def shortened(file, length):
    file.write_bytes(file.read_bytes()[:length])


ONES = Stored(CODES["float32"], (2,), np.ones(2, np.float32).tobytes())
KERNEL = "newslm/layer00/query_layer/kernel"


def rewritten(folder, tensors=WEIGHTS, **options):
    for file in folder.glob("model.ckpt*"):
        file.unlink()
    write_bundle(folder / "model.ckpt-100000", tensors, **options)


def with_vocabulary(folder, lines):
    tokens = [*TOKENS, *(f"more{number}" for number in range(lines))][:lines]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")


DATA, INDEX = "model.ckpt-100000.data-00000-of-00001", "model.ckpt-100000.index"
BAD = {  # what happens to the folder -> what the message says
    "another model": (
        lambda folder: rewritten(folder, {"bert/embeddings/word_embeddings": np.ones((2, 2), np.float32)}),
        "not the weights of a GPT-2, but of a BERT",
    ),
    "missing data": (lambda folder: (folder / DATA).unlink(), f"the data is missing: {DATA}"),
    "missing shard": (
        lambda folder: (rewritten(folder, shards=3), (folder / DATA.replace("0-of-00001", "1-of-00003")).unlink()),
        "the data is missing: model.ckpt-100000.data-00001-of-00003",
    ),
    "missing index": (lambda folder: (folder / INDEX).unlink(), f"its index, {INDEX}, is missing"),
    "truncated index": (lambda folder: shortened(folder / INDEX, 700), "not a whole index"),
    "empty index": (lambda folder: shortened(folder / INDEX, 0), "the file is empty"),
    "truncated data": (lambda folder: shortened(folder / DATA, 5000), "has 5,000 bytes, and by its index"),
    "a bit of the index": (lambda folder: flipped(folder / INDEX, 300), "does not match its checksum"),
    "a bit of the data": (lambda folder: flipped(folder / DATA, 60_000), "does not match its checksum: the file is"),
    "big-endian": (lambda folder: rewritten(folder, endianness=BIG_ENDIAN), "written on a big-endian machine"),
    "partitioned": (
        lambda folder: rewritten(folder, {**WEIGHTS, KERNEL: ONES._replace(slices=2)}),
        f"{KERNEL} is a partitioned variable",
    ),
    "object-based": (
        lambda folder: rewritten(folder, {"model/w/.ATTRIBUTES/VARIABLE_VALUE": ONES}),
        "an object-based checkpoint of TensorFlow 2",
    ),
    "integers": (
        lambda folder: rewritten(folder, {**WEIGHTS, KERNEL: np.ones((H, H), np.int32)}),
        f"wrong dtype: {KERNEL} is int32",
    ),
    "a vocabulary too long": (lambda folder: with_vocabulary(folder, V + 1), f"has {V + 1} tokens, and "),
    "a config of another size": (
        lambda folder: (folder / "mega.json").write_text(json.dumps(JSON | {"vocab_size": 50})),
        f"vocab_size is 50, the weights have {V}",
    ),
    "Keras": (
        lambda folder: [file.write_bytes(b"\x89HDF\r\n\x1a\n") for file in folder.glob("model.ckpt*")],
        "not a whole index",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_ends_in_one_message(start, base, tmp_path, kind):
    spoil, says = BAD[kind]
    shutil.copytree(base / "tf", tmp_path / "tf")
    spoil(tmp_path / "tf")
    prefix = tmp_path / "tf" / "model.ckpt-100000"
    words = ["--input_path", str(prefix), "--output_path", str(tmp_path / "made" / "x.ckpt")]
    outcomes = [
        _outcome(lambda: run_program(lambda: convert_weight.main(words))),
        start("predict", prefix, "--predict_data", "t1"),
    ]
    for status, _, errors in outcomes:
        assert status == 2 and "Traceback" not in errors
        message = errors[errors.index("error: ") :]  # after the progress bar
        assert says in message and str(tmp_path / "tf") in message and len(message.strip().splitlines()) < 4
    assert not (tmp_path / "made" / "x.ckpt").exists() and not (tmp_path / "output").exists()
