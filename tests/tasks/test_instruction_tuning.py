"""Instruction data from the file to a fine-tuned model, by the commands a user types, and what becomes of labels."""

import json
import re

import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.data.dataset import build_dataset

TOOL = "tools/dataset_preprocess/instruction_to_mindrecord.py"
LENGTH = 48  # positions; the toy model has 32
WORDS = re.findall("[a-z]+", "fox dog ships land brown lazy quick north sail over seven old new jumps while the")


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory):
    """Sixteen examples, some with an input."""
    file = tmp_path_factory.mktemp("alpaca") / "alpaca.json"
    records = [
        {"instruction": "say it twice" if number % 2 else word, "input": word if number % 2 else "", "output": word * 2}
        for number, word in enumerate(WORDS)
    ]
    file.write_text(json.dumps(records, indent=1))
    return file


@pytest.fixture(scope="module")
def rows(alpaca, toy, succeed):
    """The examples as MindRecord, prepared by the command; and its columns, each (rows, LENGTH + 1)."""
    file = alpaca.with_suffix(".mindrecord")
    template = alpaca.with_name("short.json")
    template.write_text(
        json.dumps({"prompt_input": "{instruction}: {input} = ", "prompt_no_input": "{instruction} = "})
    )
    console = succeed(
        TOOL, "--input_file", alpaca, "--output_file", file, "--max_length", LENGTH + 1,
        "--tokenizer_type", toy.tokenizer, "--template", template, cwd=alpaca.parent,
    )  # fmt: skip
    assert console.startswith("16 example(s), ")
    dataset = build_dataset(file, batch_size=16, columns=["input_ids", "attention_mask", "labels"])
    (columns,) = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    return file, columns


def transformers_loss(folder, columns, start=0, stop=None):
    """The loss that transformers computes with these labels, for a model whose positions are repeated to LENGTH."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    old = model.transformer.wpe.weight.data
    model.transformer.wpe = torch.nn.Embedding.from_pretrained(torch.cat([old, old])[:LENGTH])
    for block in model.transformer.h:
        block.attn.bias = torch.tril(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
    ids, mask, labels = (torch.tensor(column[start:stop]).long() for column in columns)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100))


def test_prepare_tune_and_evaluate(toy, trained, rows, program, succeed, tmp_path):
    data, columns = rows
    tune = [
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "finetune", "--train_dataset_dir", data,
        "--load_checkpoint", trained.output / "checkpoint", "--epochs", 10, "--batch_size", 8,
        "--options", f"model.model_config.seq_length={LENGTH}", "train_dataset.data_loader.shuffle=False",
    ]  # fmt: skip
    refused = program(*tune, cwd=tmp_path)
    assert refused.returncode == 2
    assert "max_position_embeddings is 32 in the file and 48 in the YAML" in refused.stderr
    assert "resize_embeddings: True resizes the embedding tables" in refused.stderr
    assert not (tmp_path / "output" / "checkpoint").exists()

    console = succeed(*tune, "resize_embeddings=True", cwd=tmp_path)
    assert "resize_embeddings: positions: from 32 to 48; new rows are copies of the old ones" in console
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "output" / "log" / "train.jsonl").read_text().splitlines()
    ]
    succeed(
        "mindgpt/models/gpt2/convert_weight.py", "--reversed", "--mindspore_path", trained.last_checkpoint,
        "--torch_path", "hf", cwd=tmp_path,
    )  # fmt: skip
    assert losses[0] == pytest.approx(transformers_loss(tmp_path / "hf", columns, 0, 8), rel=1e-5)
    assert len(losses) == 20

    console = succeed(  # the weights are of the new size now: nothing is left to resize
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", data,
        "--load_checkpoint", "output/checkpoint", "--options", f"model.model_config.seq_length={LENGTH}", cwd=tmp_path,
    )  # fmt: skip
    loss = float(re.search(r"'loss': ([\d.]+)", console)[1])
    succeed(
        "mindgpt/models/gpt2/convert_weight.py", "--reversed", "--torch_path", "tuned",
        "--mindspore_path", "output/checkpoint/rank_0/toy_rank_0-10_2.ckpt", cwd=tmp_path,
    )  # fmt: skip
    assert loss == pytest.approx(transformers_loss(tmp_path / "tuned", columns), rel=1e-5)
    assert loss < 0.7 * losses[0]
    assert f"{(columns[2][:, 1:] != -100).sum()} predicted tokens" in console


# ---- which columns are read ------------------------------------------------------------------------------------------


@pytest.fixture
def configured(toy, tmp_path, monkeypatch):
    """The toy configuration with other values."""
    monkeypatch.chdir(tmp_path)

    def configured(**values):
        values = {key.replace("__", "."): value for key, value in values.items()}
        return load_config(toy.yaml, {"model.model_config.seq_length": LENGTH, **values})[0]

    return configured


def test_labels_in_the_data_are_obeyed_unless_left_out(configured, rows, toy, cpu, capsys):
    from mindgpt.tasks.datasets import evaluation_data, training_data

    data = str(rows[0])
    config = configured(train_dataset__data_loader__dataset_dir=data, eval_dataset__data_loader__dataset_dir=data)
    assert training_data(config)[0].get_col_names() == ["input_ids", "attention_mask", "labels"]
    assert evaluation_data(config)[0].get_col_names() == ["input_ids", "attention_mask", "labels"]
    assert "note" not in capsys.readouterr().out

    config = configured(
        train_dataset__data_loader__dataset_dir=data, train_dataset__input_columns=["input_ids", "attention_mask"]
    )
    assert training_data(config)[0].get_col_names() == ["input_ids", "attention_mask"]
    line = "train_dataset.input_columns leaves them out: every token counts in the loss, prompts too"
    assert f"note: {data} has 'labels', and {line}" in capsys.readouterr().out

    config = configured(train_dataset__data_loader__dataset_dir=str(toy.train), model__model_config__seq_length=32)
    assert training_data(config)[0].get_col_names() == ["input_ids", "attention_mask"]
    assert capsys.readouterr().out == ""


# ---- resizing and weights --------------------------------------------------------------------------------------------


def test_what_does_not_train_is_not_enlarged(configured, trained, cpu, capsys):
    from mindgpt.checkpoints.resizing import POSITIONS
    from mindgpt.tasks.model_setup import build_model

    checkpoint = str(trained.last_checkpoint)
    arguments = {"load_checkpoint": checkpoint, "resize_embeddings": True}
    for mode in ("eval", "predict"):
        with pytest.raises(UserError, match=f"max_position_embeddings is 32 in .* 48.*run_mode {mode} would use rows"):
            build_model(configured(run_mode=mode, **arguments))
    with pytest.raises(UserError, match="300 tokens cannot be cut to 299"):
        build_model(configured(model__model_config__vocab_size=299, **arguments))
    capsys.readouterr()

    model, _ = build_model(configured(run_mode="eval", model__model_config__seq_length=8, **arguments))
    assert model.parameters_dict()[POSITIONS].shape == (8, 32)
    assert "resize_embeddings: positions: from 32 to 8; the first 8 rows\n" in capsys.readouterr().out
    build_model(configured(resize_embeddings=True))
    assert "resize_embeddings has no effect: there are no weights to resize" in capsys.readouterr().out
    with pytest.raises(UserError, match="hidden_size is 32 in the file and 64 in the YAML") as error:
        build_model(configured(model__model_config__hidden_size=64, **arguments))
    assert "True resizes" not in str(error.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "run_mode finetune needs weights"),
        ("gpt2_xl", "gpt2_xl is a model name, and there is no checkpoint_download/gpt2/gpt2_xl.ckpt"),
        ("no/such.ckpt", "there is no file or folder no/such.ckpt"),
        ("empty", "empty: no weights in this folder"),
        ("output/checkpoint", "no weights in this folder"),
        ("text", "text: no weights in this folder"),
        ("other", "other: no weights in this folder. .* Found a.ckpt, b.ckpt: name the file you mean"),
        ("lone", "a.ckpt: the file is empty"),
    ],
)
def test_fine_tuning_does_not_start_from_random_weights(configured, cpu, tmp_path, named, message):
    from mindgpt.tasks.model_setup import build_model

    for folder in ("empty", "output/checkpoint/rank_0", "text", "other", "lone"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "text" / "config.json").write_text("{}")
    for file in ("other/a.ckpt", "other/b.ckpt", "lone/a.ckpt"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        build_model(configured(run_mode="finetune", load_checkpoint=named))


def test_the_command_refuses_to_fine_tune_an_empty_folder(toy, program, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "finetune", "--train_dataset_dir", toy.train,
        "--load_checkpoint", "checkpoint", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: checkpoint: no weights in this folder. Looked for model.safetensors")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output" / "log").exists()


# ---- the tool --------------------------------------------------------------------------------------------------------


def files_in(folder):
    return sorted(file.name for file in folder.iterdir() if "mindrecord" in file.name)


@pytest.fixture
def prepare(toy, program, tmp_path):
    """Run the tool on content: (exit status, standard output, standard error)."""

    def prepare(name, content, *arguments):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        done = program(
            TOOL, "--input_file", name, "--output_file", "x.mindrecord", "--max_length", 33,
            "--tokenizer_type", toy.tokenizer, *arguments, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return prepare


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'[{"instruction": "a",\n "output": "b"},\n {"instruction": "c"}]', "x.json:3: no key 'output'"),
        ("x.json", b'[{"instruction": "",\n "output": "b"}]', "x.json:1: 'instruction' is empty. --skip_bad"),
        ("x.json", b'[{"instruction": "a",\n "output": ""}]', "no example: 1 record(s) have no response: x.json:1"),
        ("x.json", b'[{"instruction": "a",\n "output": "b"}', "x.json:2:16: not valid JSON"),
        ("x.csv", b"src_txt,tgt_txt\na,b\n\"c,d\n", "x.csv:3: broken quotes"),
        ("x.csv", b"text,label\na,b\n", "x.csv:1: the keys 'text', 'label' fit no format"),
        ("x.jsonl", b'{"prompt": "a", "response": "b"}\n\xff', "x.jsonl:2: not UTF-8"),
        ("x.jsonl", b"", "nothing to write: the input holds no example"),
        ("x.jsonl", None, "No such file: x.jsonl"),
    ],
    ids=[
        "missing key", "empty prompt", "empty response", "broken JSON", "broken quotes", "wrong header", "not UTF-8",
        "nothing", "absent",
    ],
)  # fmt: skip
def test_bad_data(prepare, tmp_path, name, content, message):
    status, output, errors = prepare(name, content)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert files_in(tmp_path) == []


def test_what_is_left_out_is_counted(prepare, tmp_path):
    long = "the quick brown fox " * 20
    lines = [{"prompt": "a", "response": "b", "id": 1}, {"prompt": "a"}, {"prompt": long, "response": "b"}]
    lines += [{"prompt": "a", "response": long}, {"prompt": "a", "response": ""}]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    status, output, errors = prepare("x.jsonl", content, "--skip_bad")
    assert status == 0
    warnings = errors.splitlines()
    assert warnings[0] == "warning: 1 example(s) of more than 33 tokens: the end of the response is truncated"
    assert warnings[1] == "warning: 1 example(s) dropped as too long for 33 tokens"
    assert warnings[2] == "warning: 1 record(s) with an empty response left out: x.jsonl:5: 'response' is empty."
    assert warnings[3].startswith("warning: 1 bad record(s) left out: x.jsonl:2: no key 'response'")
    assert warnings[4:] == ["warning: unused keys: 'id'"]
    assert output.startswith("2 example(s), ")
    assert files_in(tmp_path) == ["x.mindrecord", "x.mindrecord.db"]

    before = (tmp_path / "x.mindrecord").read_bytes()
    status, output, errors = prepare("x.jsonl", content, "--skip_bad")
    assert (status, errors) == (
        2,
        "error: x.mindrecord exists already. Use --overwrite to replace it, or another name.\n",
    )
    assert (tmp_path / "x.mindrecord").read_bytes() == before
    status, output, errors = prepare("x.jsonl", content, "--skip_bad", "--overwrite", "--too_long", "drop", "--pack",
                                     "--num_splits", 1, "--format", "prompt_response")  # fmt: skip
    assert status == 0
    assert "2 example(s) dropped as too long" in errors
    assert re.match(r"1 example\(s\), 3 tokens of which 2 are learned, 1 rows of 33, 91% padding", output)
