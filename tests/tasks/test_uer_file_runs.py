"""A .bin of UER-py as `load_checkpoint` of every run mode and as the model of a pipeline: nothing is converted first.

The oracle is UER-py's network, written from the formulas.
"""

import ast
import json
import math
import random
import runpy
import sys

import pytest

import mindgpt
from mindgpt.tasks.main import main
from tests.checkpoints.uer_models import TOKENS, P, V, logits, state, write_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("cpu")

CLS, SEP = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")
WORDS = [token for token in TOKENS if token.startswith("t")]
ROWS = 4
YAML = f"""\
context: {{enable_graph_kernel: False}}
runner_config: {{epochs: 1, batch_size: {ROWS}}}
lr_schedule: {{type: constant, learning_rate: 0.01}}
model:
  model_config:
    {{seq_length: {P}, hidden_size: 12, ffn_hidden_size: 20, num_layers: 2, num_heads: 3, vocab_size: {V},
      hidden_dropout_rate: 0.0, attention_dropout_rate: 0.0, embedding_dropout_rate: 0.0, max_new_tokens: 6}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, repo):
    """The file with its config and vocabulary, data whose documents fill a row each, and a YAML of those sizes."""
    folder = tmp_path_factory.mktemp("uer")
    write_model(folder / "model", state())
    pick = random.Random(1)
    lines = [" ".join(pick.choices(WORDS, k=P - 1)) for _ in range(ROWS)]
    (folder / "data.txt").write_text("\n".join(lines) + "\n")
    words = ["--input_file", folder / "data.txt", "--output_file", folder / "x.mindrecord", "--max_length", P + 1]
    words += ["--tokenizer_type", folder / "model", "--document_per", "line"]
    runpy.run_path(str(repo / "tools/dataset_preprocess/text_to_mindrecord.py"))["main"](list(map(str, words)))
    (folder / "uer.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def expected_loss(folder):
    lines = (folder / "data.txt").read_text().splitlines()
    ids = torch.tensor([[CLS, *map(TOKENS.index, line.split()), SEP] for line in lines])
    return torch.nn.functional.cross_entropy(logits(state(), ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run the program in this process; what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)

    def run(mode, *arguments):
        words = ["--config", folder / "uer.yaml", "--run_mode", mode, "--load_checkpoint", folder / "model/model.bin"]
        monkeypatch.setattr(sys, "argv", ["run_mindformer.py", *map(str, [*words, *arguments])])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        assert "layer_norm: uer, as the config of" in printed.out
        return printed.out

    return run


def greedy(prompt, new):
    """The words that follow, by the formulas."""
    ids = [CLS, *map(TOKENS.index, prompt.split())]
    for _ in range(new):
        ids.append(logits(state(), torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] == SEP:
            break
    return [TOKENS[number] for number in ids[1 + len(prompt.split()) :] if number != SEP]


def test_training_starts_from_it(run, folder, expected_loss, tmp_path):
    run("train", "--train_dataset_dir", folder / "x.mindrecord")
    (first,) = map(json.loads, (tmp_path / "output/log/train.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(expected_loss, rel=1e-4)
    saved = mindgpt.GPT2Config.from_pretrained(tmp_path / "output/checkpoint/rank_0")
    assert (saved.layer_norm, saved.layer_norm_conversion, saved.layernorm_epsilon) == ("uer", "uer", 1e-6)


def test_evaluation(run, folder, expected_loss):
    printed = run("eval", "--eval_dataset_dir", folder / "x.mindrecord")
    (line,) = (line for line in printed.splitlines() if line.startswith("PerplexityMetric: "))
    metric = ast.literal_eval(line.removeprefix("PerplexityMetric: "))["PerplexityMetric"]
    assert metric["loss"] == pytest.approx(expected_loss, rel=1e-4)
    assert metric["PPL"] == pytest.approx(math.exp(expected_loss), rel=1e-3)


def test_prediction_and_pipeline(run, folder, tmp_path):
    prompts = ["t1 t2 t3", "t9"]
    run("predict", "--predict_data", *prompts)
    lines = (tmp_path / "output/predictions.jsonl").read_text().splitlines()
    texts = [json.loads(line)["generated_text"] for line in lines]
    assert [text.split() for text in texts] == [[*prompt.split(), *greedy(prompt, 6)] for prompt in prompts]
    pipe = mindgpt.pipeline("text-generation", model=folder / "model" / "model.bin", max_new_tokens=6)
    assert [pipe(prompt)[0]["generated_text"] for prompt in prompts] == texts
