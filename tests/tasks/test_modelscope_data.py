"""From src_txt and tgt_txt to a fine-tuned model and its metrics, by the commands a user types."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.data.dataset import build_dataset
from mindgpt.data.instruction_rows import write_examples
from mindgpt.data.instructions import ExampleReader

pytest.importorskip("jieba")
pytest.importorskip("rouge_score")
pytestmark = pytest.mark.usefixtures("unfused")

TOOL = "tools/dataset_preprocess/instruction_to_mindrecord.py"
SEQUENCE_LENGTH = 33  # ModelScope's; the toy model has 32 positions
PAIRS = [
    ("春眠", "不觉晓"),
    ("处处", "闻啼鸟"),
    ("夜来", "风雨声"),
    ("花落", "知多少"),
    ("白日", "依山尽"),
    ("黄河", "入海流"),
]


@pytest.fixture(scope="module")
def data(toy, succeed, tmp_path_factory):
    """A tokenizer of 300 tokens, and pairs and poems as MindRecord, by the command."""
    from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer

    folder = tmp_path_factory.mktemp("modelscope")
    records = [{"src_txt": f"{source}\n", "tgt_txt": target} for source, target in PAIRS]
    tokenizer = JiebaTokenizer.train([text for record in records for text in record.values()], 300, min_frequency=1)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (folder / "poems.csv").write_text("src_txt\n" + "".join(f"{a}，{b}。\n" for a, b in PAIRS), "utf-8")
    for name in ("pairs.jsonl", "poems.csv"):
        succeed(
            TOOL, "--layout", "modelscope", "--input_file", name, "--output_file", f"{name.split('.')[0]}.mindrecord",
            "--sequence_length", SEQUENCE_LENGTH, "--tokenizer_type", "tokenizer", cwd=folder,
        )  # fmt: skip
    paths = {"pairs": folder / "pairs.mindrecord", "poems": folder / "poems.mindrecord"}
    return SimpleNamespace(folder=folder, tokenizer=tokenizer, **paths)


@pytest.fixture(scope="module")
def tuned(toy, data, succeed, tmp_path_factory):
    """A model that has learned the pairs by heart, evaluated in each epoch; and what the run printed."""
    cwd = tmp_path_factory.mktemp("tuned")
    console = succeed(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", data.pairs, "--epochs", 25, "--batch_size", 6,
        "--do_eval", "True", "--eval_dataset_dir", data.pairs, "--options",
        "lr_schedule.type=noam", "lr_schedule.learning_rate=0.06", "lr_schedule.warmup_steps=5",
        "optimizer.beta2=0.999", "optimizer.weight_decay=0.01", "runner_wrapper.use_clip_grad=False",
        "callbacks.1.save_checkpoint_steps=25", cwd=cwd,
    )  # fmt: skip
    return SimpleNamespace(cwd=cwd, console=console)


def columns_of(path):
    dataset = build_dataset(
        path, batch_size=100, columns=["input_ids", "attention_mask", "labels"], drop_remainder=False
    )
    (columns,) = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    return columns


def test_perplexity_in_each_epoch_and_responses_after_training(toy, data, tuned, succeed):
    log = tuned.cwd / "output" / "log"
    evaluations = [json.loads(line) for line in (log / "eval.jsonl").read_text().splitlines()]
    assert [evaluation["step"] for evaluation in evaluations] == list(range(26))
    perplexities = [evaluation["PPL"] for evaluation in evaluations]
    assert perplexities[-1] < 1.5 < 100 < perplexities[0]
    assert all(set(evaluation) == {"step", "loss", "PPL", "PplMetric"} for evaluation in evaluations)
    assert "evaluation after step 1: loss " in tuned.console and ", PplMetric " in tuned.console
    rates = [json.loads(line)["learning_rate"] for line in (log / "train.jsonl").read_text().splitlines()]
    assert rates[0] == pytest.approx(0.06 * 5**-1.5) and max(rates) == pytest.approx(0.06 * 5**-0.5)  # s = 1, s = w
    console = succeed(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", data.pairs,
        "--load_checkpoint", "output/checkpoint", "--tokenizer", data.folder / "tokenizer", "--batch_size", 4,
        "--options", "metric.type=GenerationMetric", cwd=tuned.cwd,
    )  # fmt: skip
    (line,) = (line for line in console.splitlines() if line.startswith("GenerationMetric: "))
    values = ast.literal_eval(line.removeprefix("GenerationMetric: "))["GenerationMetric"]
    assert values == {"rouge-1": 1.0, "rouge-l": 1.0, "bleu-1": 1.0, "bleu-4": pytest.approx(values["bleu-4"])}
    generations = (tuned.cwd / "output" / "eval_generations.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in generations]
    assert records == [{"prompt": f"{a}\n", "target": b, "prediction": b} for a, b in PAIRS]
    result = json.loads((tuned.cwd / "output" / "eval_result.json").read_text())
    assert (result["metric"], result["rows"], result["rouge-l"]) == ("GenerationMetric", 6, 1.0)


# ---- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(toy, tmp_path, monkeypatch):
    """The toy configuration, to evaluate, with other values."""
    monkeypatch.chdir(tmp_path)

    def configured(**values):
        values = {key.replace("__", "."): str(v) if isinstance(v, Path) else v for key, v in values.items()}
        return load_config(toy.yaml, {"run_mode": "eval", "runner_config.batch_size": 4, **values})[0]

    return configured


@pytest.fixture(scope="module")
def model(toy, cpu):
    """With random weights large enough that the greedy text is no single token over and over."""
    from mindgpt import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config.from_section(load_config(toy.yaml)[0].model.config))
    draw = np.random.default_rng(1)
    for parameter in model.get_parameters():
        parameter.set_data(parameter + Tensor(draw.normal(0, 0.3, parameter.shape).astype(np.float32)))
    return model.set_train(True)


def logits_of(model, ids):
    """Of each position, in float64. ids: (6, 32)"""
    model.set_train(False)
    logits = model(Tensor(ids)).asnumpy().astype(np.float64)
    model.set_train(True)
    return logits


@pytest.mark.parametrize("name", ["pairs", "poems"])
def test_perplexities_are_those_of_the_definition(configured, data, model, name):
    from mindgpt.tasks.evaluate import Evaluator

    ids, _, labels = columns_of(getattr(data, name))
    logits, learned = logits_of(model, ids[:, :-1]), labels[:, 1:] != -100
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    average, rows = 0.0, 0
    for batch in (losses[:4], losses[4:]):  # ModelScope's PplMetric, batches of 4
        average = (average * rows + batch.mean() * len(batch)) / (rows + len(batch))
        rows += len(batch)
    evaluator = Evaluator(configured(eval_dataset__data_loader__dataset_dir=getattr(data, name)))
    found = evaluator.run(model)
    mean = losses[learned].mean()
    assert found == pytest.approx({"loss": mean, "PPL": np.exp(mean), "PplMetric": np.exp(average)}, rel=1e-4)
    assert model.training
    assert any("PplMetric is ModelScope's" in line for line in evaluator.measure.lines(found, 1.0))


def generation(configured, data, **values):
    from mindgpt.tasks.evaluate import Evaluator

    values = {"eval_dataset__data_loader__dataset_dir": data.pairs, **values}
    values = {"processor__tokenizer__path": data.folder / "tokenizer", **values}
    return Evaluator(configured(metric__type="GenerationMetric", **values))


def greedy_texts(model, data, tokens):
    """Responses of so many tokens to the pairs, from the model's own logits."""
    ids, _, labels = columns_of(data.pairs)
    firsts = (labels == -100).argmin(1)
    texts, rows = ids[:, :-1].copy(), np.arange(len(ids))
    for step in range(tokens):
        texts[rows, firsts + step] = logits_of(model, texts)[rows, firsts + step - 1].argmax(-1)
    new = [text[first : first + tokens].tolist() for text, first in zip(texts, firsts, strict=True)]
    ends = {data.tokenizer.eos_token_id, data.tokenizer.sep_token_id}
    ended = [row[: next((place for place, token in enumerate(row) if token in ends), tokens)] for row in new]
    return [data.tokenizer.decode(row, skip_special_tokens=True) for row in ended]


def test_responses_are_greedy_also_of_a_model_that_is_being_trained(configured, data, model):
    from mindgpt.evaluation.generation_metrics import GenerationMetric

    table = model.parameters_dict()["backbone.embedding.word_embedding.embedding_table"]
    evaluator = generation(configured, data, model__model_config__max_new_tokens=7)
    before, texts = table.asnumpy(), []
    for weights in (before, before[::-1].copy()):
        table.set_data(Tensor(weights))
        values = evaluator.run(model)
        texts.append(greedy_texts(model, data, tokens=7))
        records = [json.loads(line) for line in Path("output/eval_generations.jsonl").read_text("utf-8").splitlines()]
        assert [record["prediction"] for record in records] == texts[-1]
        assert [record["target"] for record in records] == [target for _, target in PAIRS]
        metric = GenerationMetric()
        metric.update(texts[-1], [target for _, target in PAIRS])
        assert values == metric.eval()
    table.set_data(Tensor(before))
    assert texts[0] != texts[1] and model.training
    assert evaluator.measure.rows == 6 and evaluator.measure.without_target == 0


def test_rows_without_a_target_are_left_out(configured, data, model, tmp_path):
    def written(name, *records):
        examples = ExampleReader.of_records([{"src_txt": a, "tgt_txt": b} for a, b in records])
        write_examples(
            examples, data.tokenizer, tmp_path / name, max_length=SEQUENCE_LENGTH, layout="modelscope",
            show_progress=False,
        )  # fmt: skip
        return {"eval_dataset__data_loader__dataset_dir": tmp_path / name}

    evaluator = generation(configured, data, **written("a.mindrecord", ("春" * 60, "x"), *PAIRS[:2]))
    evaluator.run(model)
    assert "1 row(s) left out, whose prompt fills the row" in list(evaluator.measure.lines({}, 1.0))
    evaluator = generation(configured, data, **written("b.mindrecord", ("春" * 60, "x")))
    with pytest.raises(UserError, match="b.mindrecord: no row has a target"):
        evaluator.run(model)


def test_data_that_has_no_responses_is_refused(configured, data, toy, model):
    with pytest.raises(UserError, match="poems.mindrecord: has a row without a prompt"):
        generation(configured, data, eval_dataset__data_loader__dataset_dir=data.poems).run(model)
    with pytest.raises(UserError, match="valid.mindrecord: is read without 'labels'"):
        generation(configured, data, eval_dataset__data_loader__dataset_dir=toy.valid)
    with pytest.raises(UserError, match="pairs.mindrecord: was made with another tokenizer"):
        generation(configured, data, processor__tokenizer__path=toy.tokenizer)


def test_flags_of_generation_are_refused_where_nothing_is_generated(toy, data, program, tmp_path):
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", data.pairs,
        "--load_checkpoint", "x.ckpt", "--tokenizer", data.folder / "tokenizer", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--tokenizer has no effect with run_mode eval; it is for predict, or for GenerationMetric" in done.stderr
