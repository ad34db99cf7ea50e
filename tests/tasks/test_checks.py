"""A wrong path is answered before MindSpore is loaded, by every run mode and every tool."""

import json
import os
import subprocess
import sys

import pytest

# All cases in one process: each as its program, with what it writes to standard error and whether MindSpore was loaded.
RUN_ALL = """
import contextlib, io, json, runpy, sys
answers = []
for program, *arguments in json.load(sys.stdin):
    sys.argv, errors, status = [program, *arguments], io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ending:
            status = ending.code
    answers.append([status, errors.getvalue(), "mindspore" in sys.modules])
print(json.dumps(answers))
"""
CONFIG = "configs/gpt2/pretrain_gpt2_quickstart.yaml"
RUN = ["run_mindformer.py", "--config", CONFIG, "--output_dir", "{out}", "--run_mode"]
TRAIN = [*RUN, "train", "--train_dataset_dir", "{data}"]
PREDICT = [*RUN, "predict", "--load_checkpoint", "{weights}", "--tokenizer", "{tokenizer}", "--predict_data", "a"]
CLASSIFY = ["--options", "trainer.type=TextClassificationTrainer", "model.arch.type=GPT2ForSequenceClassification"]
DATA = "tools/dataset_preprocess"
SCORE = ["tools/score_text.py", "--config", CONFIG, "--load_checkpoint", "{weights}", "--tokenizer", "{tokenizer}"]
CASES = [
    (["run_mindformer.py", "--config", "nope.yaml"], "nope.yaml: there is no such file"),
    ([*RUN, "train", "--train_dataset_dir", "nope"], "No such file or folder: nope"),
    ([*RUN, "train"], "train_dataset.data_loader.dataset_dir: no data set is named"),
    ([*TRAIN, "--do_eval", "True", "--eval_dataset_dir", "nope"], "No such file or folder: nope"),
    ([*TRAIN, "--load_checkpoint", "nope.ckpt"], "load_checkpoint: there is no file or folder nope.ckpt"),
    ([*TRAIN, "--load_checkpoint", "{file}.ckpt"], "{file}.ckpt"),
    ([*TRAIN, "--resume_training", "nope.ckpt"], "resume_training: there is no checkpoint nope.ckpt"),
    ([*TRAIN, "--output_dir", "{file}/run"], "output_dir: {file} is a file"),
    ([*TRAIN, "--options", "callbacks.1.directory={file}"], "callbacks.1.directory: {file} is a file"),
    ([*RUN, "finetune", "--train_dataset_dir", "{data}", "--load_checkpoint", "nope"], "nope is a model name"),
    ([*RUN, "finetune", "--train_dataset_dir", "{data}", "--load_checkpoint", "{weights}", "--adapter", "no/pe"],
     "adapter: there is no file or folder no/pe"),
    ([*RUN, "eval", "--eval_dataset_dir", "nope"], "No such file or folder: nope"),
    ([*RUN, "eval", "--eval_dataset_dir", "{data}"], "run_mode eval needs weights"),
    ([*RUN, "eval", "--eval_dataset_dir", "{data}", "--load_checkpoint", "{tokenizer}"], "{tokenizer}"),
    ([*PREDICT, "--load_checkpoint", "no/pe"], "load_checkpoint: there is no file or folder no/pe"),
    ([*PREDICT, "--tokenizer", "nope"], "No tokenizer at nope"),
    ([*PREDICT, "--predict_data", "nope.txt"], "--predict_data: there is no file nope.txt"),
    ([*PREDICT, "--predict_data", "{file}.txt"], "holds no prompt"),
    ([*PREDICT, "--device_target", "Ascend", "--predict_data", "a"], "this machine has no Ascend card"),
    ([*PREDICT, *CLASSIFY, "--tokenizer", "nope"], "No tokenizer at nope"),
    ([*SCORE, "nope.txt"], "texts: there is no file nope.txt"),
    ([*SCORE, "--load_checkpoint", "no/pe", "a text"], "load_checkpoint: there is no file or folder no/pe"),
    ([*SCORE, "--tokenizer", "nope", "a text"], "No tokenizer at nope"),
    ([f"{DATA}/text_to_mindrecord.py", "--input_file", "nope", "--output_file", "x.mindrecord"], "nope"),
    ([f"{DATA}/text_to_mindrecord.py", "--input_file", "README.md", "--output_file", "{out}/x.mindrecord",
      "--tokenizer_type", "no/pe"], "No tokenizer at no/pe"),
    ([f"{DATA}/instruction_to_mindrecord.py", "--input_file", "nope.json", "--output_file", "x.mindrecord"], "nope"),
    ([f"{DATA}/gpt2/txtcls_dataset_to_mindrecord.py", "--dataset_name", "csv", "--input_file", "nope.csv",
      "--output_file", "x.mindrecord"], "No such file: nope.csv"),
    ([f"{DATA}/gpt2/wikitext2_data_process.py", "--input_file", "nope", "--output_file", "x.mindrecord"], "nope"),
    (["tools/train_tokenizer.py", "--input_file", "nope", "--vocab_size", "300", "--output_dir", "{out}"], "nope"),
    (["tools/split_text.py", "--input_file", "nope", "--output_dir", "{out}"], "No such file: nope"),
    (["tools/plot_run.py", "nope"], "nope: there is no such folder"),
    (["tools/transform_ckpt.py", "--src_ckpt_dir", "nope", "--dst_ckpt_dir", "{out}"], "nope"),
    (["tools/transform_ckpt_lora.py", "--src_ckpt_path_or_dir", "nope", "--dst_ckpt_dir", "{out}"], "nope"),
    (["tools/convert_lora.py", "--mindspore_path", "nope", "--peft_dir", "{out}"], "nope"),
    (["tools/convert_lora.py", "--reversed", "--mindspore_path", "x.ckpt", "--peft_dir", "nope"], "nope"),
    (["tools/dry_run.py", "--config", "nope.yaml", "--rank_size", "8"], "nope.yaml: there is no such file"),
    (["tools/dry_run.py", "--config", CONFIG, "--rank_size", "8", "--hardware", "nope.yaml"], "nope.yaml"),
    (["mindgpt/models/gpt2/convert_weight.py", "--torch_path", "nope", "--mindspore_path", "x.ckpt"], "nope"),
    (["mindgpt/models/gpt2/convert_weight.py", "--reversed", "--torch_path", "{out}", "--mindspore_path", "no.ckpt"],
     "no.ckpt"),
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(toy, trained, repo, tmp_path_factory):
    """Status, message and whether MindSpore was loaded, of each case in order."""
    folder = tmp_path_factory.mktemp("checks")
    for name in ("file", "file.ckpt", "file.txt"):
        (folder / name).write_text("\n" if name == "file.txt" else "nothing good")
    places = {
        "out": folder / "out", "file": folder / "file", "data": toy.train, "weights": trained.last_checkpoint,
        "tokenizer": toy.tokenizer,
    }  # fmt: skip
    commands = [[word.format(**places) for word in command] for command, _ in CASES]
    environment = {key: value for key, value in os.environ.items() if key not in ("MS_ROLE", "RANK_ID")}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(commands), cwd=repo, env=environment, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    assert not (folder / "out").exists()
    return [(*answer, part.format(**places)) for answer, (_, part) in zip(json.loads(done.stdout), CASES, strict=True)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(command[-3:]) for command, _ in CASES])
def test_a_wrong_path_is_answered_before_mindspore_is_loaded(answers, number):
    status, message, loaded, part = answers[number]
    assert status == 2, message
    assert message.startswith("error: ")
    assert part in message
    assert "Traceback" not in message
    assert not loaded
