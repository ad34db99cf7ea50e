"""Whatever is wrong with what a run is given: one message with the way out, status 2, and nothing written over.

Most cases run in this process, through the same `main` as `run_mindformer.py`; the last tests start the program.
"""

import contextlib
import io
import shutil
import sys

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.tasks.main import main

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def refused(toy, trained, tmp_path, monkeypatch, checksums):
    """Run with bad input in a folder that holds an earlier run's output: the message."""
    monkeypatch.chdir(tmp_path)
    for name in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(trained.output, "output", ignore=shutil.ignore_patterns("compile"))
    before = checksums(tmp_path / "output")

    def run(*arguments, config=toy.yaml, mode="train", data=toy.train):
        command = ["run_mindformer.py", "--config", config, "--run_mode", mode]
        if data is not None:
            command += ["--eval_dataset_dir" if mode == "eval" else "--train_dataset_dir", data]
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*command, *arguments)])
        console, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(console), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        message = errors.getvalue()
        assert message.startswith("error: ")
        assert message.count("error: ") == 1
        assert "Traceback" not in message
        assert checksums(tmp_path / "output") == before, "an earlier run's files were changed"
        return message.removeprefix("error: ").strip()

    return run


# ---- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["bad.yaml", "there is no such file"]),
        (b"", ["bad.yaml", "is empty"]),
        (b"run_mode: train\noutput_dir: \xfc\n", ["bad.yaml:2", "not UTF-8", "save it as UTF-8"]),
        (b"run_mode: [train\nseed: 1\n", ["bad.yaml:2", "not valid YAML"]),
        (b"run_mode: train\nrunner_confg: {epochs: 2}\n", ["bad.yaml:2: runner_confg", "did you mean 'runner_config'"]),
        (b"run_mode: train\nrunner_config:\n  epochs: two\n", ["bad.yaml:3", "epochs", "whole number", "'two'"]),
        (b"model: {model_config: {seq_length: 64, max_position_embeddings: 32}}\n",
         ["bad.yaml:1", "seq_length", "64 is longer than max_position_embeddings 32"]),
        (b"model: {model_config: {checkpoint_name_or_path: 3}}\n", ["checkpoint_name_or_path", "text", "3"]),
    ],
    ids=["missing", "empty", "not UTF-8", "syntax", "unknown key", "wrong type", "over the positions", "a number"],
)  # fmt: skip
def test_a_wrong_configuration(refused, tmp_path, content, parts):
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)
    message = refused(config="bad.yaml")
    for part in parts:
        assert part in message


def test_wrong_flags(refused):
    assert "--epocs" in refused("--epocs", 3)
    assert "--epochs" in refused("--epocs", 3)
    assert "must be True or False" in refused("--do_eval", "maybe")
    assert "runner_config.batch_size" in refused("--batch_size", 0)
    assert "--eval_dataset_dir has no effect" in refused("--eval_dataset_dir", "x.mindrecord")


# ---- the data --------------------------------------------------------------------------------------------------------


def row(length=33, highest=299, lowest=0):
    return {"input_ids": [lowest] * (length - 1) + [highest], "attention_mask": [1] * length}


def foreign(folder, rows, kind="int32"):
    """A MindRecord of rows {column: values}, as it would be if mindgpt's tools did not write it. Returns its path."""
    from mindspore.mindrecord import FileWriter

    path = folder / "x.mindrecord"
    writer = FileWriter(str(path), 1, overwrite=True)
    writer.add_schema({column: {"type": kind, "shape": [-1]} for column in (rows or [row()])[0]}, "from elsewhere")
    if rows:
        writer.write_raw_data([{column: np.array(values, kind) for column, values in each.items()} for each in rows])
    writer.commit()
    return path


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([row(65)] * 9, ["65 tokens", "seq_length 32 takes 33", "--max_length 33", "seq_length to 64"]),
        ([row()] * 9 + [row(32)], ["32 to 33 tokens", "of one length"]),
        ([row(highest=5000)] * 9, ["5001 tokens", "vocab_size is 300", "Set it to 5001"]),
        ([row(lowest=-1)] * 9, ["'input_ids' holds -1", "no token id"]),
        ([{"tokens": [1] * 33}] * 9, ["no column 'input_ids'", "it has 'tokens'"]),
        ([{"input_ids": [1] * 33}] * 9, ["no column 'attention_mask'", "input_columns", "--data_columns"]),
        ([], ["holds no rows"]),
        ([row() | {"labels": [1]}] * 9, ["'labels' is one number a row, as for classification"]),
        ([row() | {"labels": [1] * 32}] * 9, ["rows of 'labels' have 32 tokens"]),
        ([row() | {"labels": [-1] * 33}] * 9, ["'labels' holds -1", "below vocab_size 300, or -100"]),
        ([row() | {"labels": [-100] * 32 + [300]}] * 9, ["'labels' holds 300"]),
    ],
    ids=[
        "longer rows",
        "uneven rows",
        "vocabulary",
        "negative",
        "no ids",
        "no mask",
        "empty",
        "classes",
        "fewer labels",
        "negative label",
        "label outside",
    ],
)
def test_data_that_do_not_fit(refused, tmp_path, rows, parts):
    message = refused(data=foreign(tmp_path, rows))
    for part in ("x.mindrecord", *parts):
        assert part in message


@pytest.mark.parametrize("kernels", ["1", "0"])
def test_an_id_outside_the_vocabulary_far_down_in_data_to_evaluate(program, toy, trained, tmp_path, kernels):
    """Behind the rows that are looked at first."""
    data = foreign(tmp_path, [row()] * 299 + [row(highest=2**31 - 1)])
    flags = ["--config", toy.yaml, "--run_mode", "eval", "--load_checkpoint", trained.last_checkpoint]
    environment = {"MINDGPT_CPU_KERNELS": kernels}
    done = program("run_mindformer.py", *flags, "--eval_dataset_dir", data, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "x.mindrecord: a token id or a label is outside the vocabulary" in done.stderr + done.stdout
    assert "PPL" not in done.stdout


def test_columns_of_another_type(refused, tmp_path):
    message = refused(
        data=foreign(tmp_path, [{"input_ids": [1.0] * 33, "attention_mask": [1.0] * 33}] * 9, kind="float32")
    )
    assert "'input_ids' should hold whole numbers (int32); it is float32" in message


def test_a_smaller_vocabulary_than_the_tokenizer_s(refused):
    message = refused("--options", "model.model_config.vocab_size=299")
    assert "a tokenizer of 300 tokens, but model.model_config.vocab_size is 299. Set it to 300" in message


def test_data_that_are_not_there_or_broken(refused, toy, tmp_path):
    assert "--train_dataset_dir" in refused(data=None)
    assert "no.mindrecord" in refused(data="no.mindrecord")
    (tmp_path / "empty").mkdir()
    assert "empty holds no file whose name ends in 'mindrecord'" in refused(data="empty")
    copy, index = tmp_path / toy.train.name, tmp_path / f"{toy.train.name}.db"
    content = toy.train.read_bytes()
    copy.write_bytes(content)
    assert "train.mindrecord.db is missing" in refused(data=copy)
    index.write_bytes(b"")
    assert "train.mindrecord.db is not a MindRecord index" in refused(data=copy)
    shutil.copy(f"{toy.train}.db", index)
    copy.write_bytes(content[: len(content) * 2 // 3])
    assert "is cut short" in refused(data=copy)
    copy.write_bytes(b"")
    assert "is empty" in refused(data=copy)
    copy.write_text("This is text.")
    assert "is not a MindRecord file" in refused(data=copy)
    copy.write_bytes(content)
    index.write_bytes(index.read_bytes()[:4096] + bytes(8192))
    assert "cannot be read" in refused(data=copy)


def test_less_data_than_a_batch(refused):
    message = refused("--num_samples", 7)
    assert "7 rows" in message
    assert "one batch of 8" in message
    assert "Lower the batch size" in message
    message = refused("--num_samples", 15, "--gradient_accumulation_steps", 2)
    assert "one batch of 16" in message


@pytest.mark.parametrize("columns", ["[input_ids, labels]", "[input_id]", "[input_ids, input_ids]"])
def test_columns_that_the_model_does_not_take(refused, columns):
    message = refused("--options", f"train_dataset.input_columns={columns}")
    assert "input_columns: must be ['input_ids'], ['input_ids', 'attention_mask'] or" in message


def test_evaluation_data_are_looked_at_before_training(refused, tmp_path):
    assert "eval_dataset" in refused("--do_eval", "True")
    assert "no.mindrecord" in refused("--do_eval", "True", "--eval_dataset_dir", "no.mindrecord")
    data = foreign(tmp_path, [row(20)] * 3)
    assert "20 tokens" in refused("--do_eval", "True", "--eval_dataset_dir", data)


# ---- the weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "finetune"])
def test_weights_are_needed(refused, mode):
    elsewhere = ("--output_dir", "elsewhere")  # an evaluation would take what a run left in its output folder
    assert "--load_checkpoint" in refused(*elsewhere, mode=mode)
    message = refused("--load_checkpoint", "gpt2", mode=mode)
    assert "no checkpoint_download/gpt2/gpt2.ckpt" in message
    assert "downloads nothing" in message
    assert ("A run has left some in this output folder: --load_checkpoint output/checkpoint" in message) == (
        mode == "eval"
    )
    assert "gpt2_xl is a model name" in refused(
        "--options", "model.model_config.checkpoint_name_or_path=gpt2_xl", mode=mode
    )
    assert "no file or folder lost/x.ckpt" in refused("--load_checkpoint", "lost/x.ckpt", mode=mode)


def test_a_missing_file_is_no_model_name_in_training_either(refused):
    assert "no file or folder x.ckpt" in refused("--load_checkpoint", "x.ckpt")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["hidden_size=64"], ["hidden_size is 32 in the file and 64 in the YAML"]),
        (["num_layers=2"], ["num_layers is 1 in the file and 2 in the YAML"]),
        (["vocab_size=400"], ["vocab_size is 300 in the file and 400 in the YAML"]),
        (["max_position_embeddings=64"], ["max_position_embeddings is 32 in the file and 64 in the YAML"]),
        (["ffn_hidden_size=96"], ["ffn_hidden_size is 128 in the file and 96 in the YAML"]),
        (["num_heads=4"], ["config.json", "num_heads is 2 there and 4 in the YAML"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_a_checkpoint_of_another_shape(refused, trained, settings, parts):
    options = [f"model.model_config.{setting}" for setting in settings]
    message = refused("--load_checkpoint", trained.last_checkpoint, "--options", *options, mode="eval")
    for part in (trained.last_checkpoint.name, "Correct model.model_config", *parts):
        assert part in message


def test_checkpoints_that_are_broken_or_of_other_names(refused, trained, tmp_path):
    content = trained.last_checkpoint.read_bytes()
    bad = tmp_path / "bad.ckpt"
    for broken, what in (
        (content[: len(content) // 2], "not a whole MindSpore checkpoint"),
        (content[:-1], "not a whole MindSpore checkpoint"),
        (b"", "is empty"),
        (b"This is text.", "not a whole MindSpore checkpoint"),
    ):
        bad.write_bytes(broken)
        message = refused("--load_checkpoint", bad, mode="finetune")
        assert "bad.ckpt" in message
        assert what in message
    whole = CheckpointFile(trained.last_checkpoint)
    weights = {name: whole.read(name) for name in whole.entries if name.startswith("backbone.")}
    lost = weights.pop("backbone.layernorm.gamma")
    save_checkpoint(bad, {**weights, "backbone.ln_f.gamma": lost})
    message = refused("--load_checkpoint", bad, mode="finetune")
    assert "missing in the file: backbone.layernorm.gamma [32]" in message
    assert "left over in the file: backbone.ln_f.gamma [32]" in message
    (tmp_path / "empty").mkdir()
    assert "no weights in this folder" in refused("--load_checkpoint", "empty", mode="eval")


# ---- the machine and what this version does not do -------------------------------------------------------------------


def test_a_device_that_is_not_there(refused):
    message = refused("--device_target", "Ascend")
    assert "context.device_target is Ascend, but this machine has no Ascend card" in message
    assert "--device_target CPU" in message


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("model.model_config.pet_config={lora_rank: 4}", "pet_config"),
        ("only_save_strategy=True", "only_save_strategy"),
        ("profile=True", "profile"),
    ],
)
def test_what_is_not_done_is_refused_rather_than_dropped(refused, option, named):
    assert named in refused("--options", option)


@pytest.mark.parametrize("name", ["output/log", "output/checkpoint"])
def test_a_file_in_the_way_stops_the_run_before_the_first_step(refused, tmp_path, name):
    (tmp_path / "elsewhere" / name).parent.mkdir(parents=True)
    (tmp_path / "elsewhere" / name).write_text("a file")
    message = refused("--output_dir", tmp_path / "elsewhere" / "output")
    assert "Cannot create the folder" in message
    assert "elsewhere" in message
    assert not (tmp_path / "elsewhere" / "output" / "log" / "train.jsonl").exists()


# ---- as a user types it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "part"),
    [
        ([], {}, "--config FILE is required"),
        (["--config", "lost.yaml"], {}, "lost.yaml: there is no such file"),
        (
            ["--config", "{yaml}", "--train_dataset_dir", "lost.mindrecord"],
            {},
            "No such file or folder: lost.mindrecord",
        ),
        (["--config", "{yaml}", "--run_mode", "finetune", "--train_dataset_dir", "{data}"], {}, "--load_checkpoint"),
        (
            ["--config", "{yaml}", "--train_dataset_dir", "{data}"],
            {"MS_WORKER_NUM": "2", "RANK_ID": "0"},
            "use_parallel is False",
        ),
    ],
    ids=["nothing", "no configuration", "no data", "no weights", "under msrun"],
)
def test_the_program_prints_the_message_alone(program, toy, tmp_path, arguments, env, part):
    words = [word.format(yaml=toy.yaml, data=toy.train) for word in arguments]
    done = program("run_mindformer.py", *words, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert part in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_rows_that_break_in_the_middle_of_training(program, toy, tmp_path):
    """Looking at every row beforehand would cost an epoch; the run ends where it meets the first that does not fit."""
    data = foreign(tmp_path, [*[row()] * 300, row(31)])
    options = ["train_dataset.data_loader.shuffle=False", "train_dataset.num_samples=301"]
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", data, "--batch_size", 43,
        "--options", *options, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert "x.mindrecord: reading stopped:" in message
    assert "shape" in message
    assert "Make the data again" in message
