"""The commands of MindFormers' page on GPT-2, as it has them, in the order of the page: paths, sizes and the number of
cards are replaced, and nothing else. The merging of shards is in test_transform_checkpoint.py, since a CPU has none.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from mindgpt.checkpoints.conversion import convert_to_hugging_face

SMALL = {"runner_config": {"epochs": 1, "batch_size": 8}, "train_dataset": {"num_samples": 32}}
LORA = {"pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "target_modules": ".*dense1.*|.*dense3.*"}


def toy_configs(toy):
    """Name -> content of the configurations that the commands name, at toy size."""
    base = yaml.safe_load(toy.yaml.read_text()) | SMALL
    base["callbacks"][1]["prefix"] = "gpt2"

    def changed(model=None, **sections):
        network = {"model_config": base["model"]["model_config"] | (model or {}), "arch": sections.pop("arch", {})}
        return base | {"model": network} | sections

    return {
        "pretrain_gpt2_small_fp16": changed({"checkpoint_name_or_path": "gpt2"}, metric={"type": "PerplexityMetric"}),
        "finetune_gpt2_small_fp16": changed(
            run_mode="finetune",
            load_checkpoint="gpt2",
            lr_schedule={"type": "CosineWithWarmUpLR", "learning_rate": 0.01, "warmup_steps": 2000},  # as in theirs
        ),
        "finetune_gpt2_small_lora_fp16": changed({"pet_config": LORA}, run_mode="finetune", load_checkpoint="gpt2"),
        "predict_gpt2_small_fp16": changed({"max_new_tokens": 3}, run_mode="predict", load_checkpoint="gpt2"),
        "finetune_gpt2_small_txtcls_fp16": changed(
            {"checkpoint_name_or_path": "gpt2", "num_labels": 2},
            arch={"type": "GPT2ForSequenceClassification"},
            run_mode="finetune",
            trainer={"type": "TextClassificationTrainer"},
            train_dataset={"num_buckets": 1},
            eval_dataset={"num_buckets": 1},
        ),
    }


@pytest.fixture(scope="module")
def checkout(repo, toy, trained, tmp_path_factory):
    """A folder that looks like the checkout, with configurations at toy size, and the files that a person brings."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("mindgpt", "scripts", "tools", "run_mindformer.py"):
        (folder / name).symlink_to(repo / name)
    (folder / "configs" / "gpt2").mkdir(parents=True)
    for name, content in toy_configs(toy).items():
        (folder / "configs" / "gpt2" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    convert_to_hugging_face(trained.last_checkpoint, folder / "hf")
    (folder / "checkpoint_download" / "gpt2").mkdir(parents=True)
    for name in os.listdir(toy.tokenizer):
        (folder / "checkpoint_download" / "gpt2" / name).write_bytes((toy.tokenizer / name).read_bytes())
    prose = toy.train.with_suffix(".txt").read_text()
    for part in ("train", "valid"):
        (folder / f"wiki.{part}.tokens").write_text(f" = One = \n\n {prose}\n = Two = \n\n {prose}\n = Three = \n")
    for part in ("train", "dev"):
        rows = "".join(
            f"ships sail {word}\t1\nlazy dog {word}\t0\n" for word in ["a", "the", "over", "while", "new", "old"] * 6
        )
        (folder / f"{part}.tsv").write_text(f"sentence\tlabel\n{rows}")
    return folder


@pytest.fixture(scope="module")
def shell(checkout, tmp_path_factory):
    """Run lines as a person's bash does, in the checkout: what they print."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    ours = ("MS_", "RANK_ID", "AKG_", "OMP_", "PYTHON")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["PATH"] = f"{folder}:{environment['PATH']}"

    def run(line, cwd=checkout):
        command = ["bash", "-c", line]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def converted(shell, checkout):
    """Data and weights, by the commands of the page."""
    shell("""\
python tools/dataset_preprocess/gpt2/wikitext2_data_process.py \\
    --input_file ./wiki.train.tokens \\
    --output_file ./wikitext-2.train.mindrecord \\
    --max_length 33 \\
    --tokenizer_type checkpoint_download/gpt2""")
    shell("""\
python tools/dataset_preprocess/gpt2/wikitext2_data_process.py --input_file ./wiki.valid.tokens \\
    --output_file ./wikitext-2.valid.mindrecord --max_length 32 --tokenizer_type checkpoint_download/gpt2""")
    shell("""\
python mindgpt/models/gpt2/convert_weight.py \\
    --layers 1\\
    --torch_path hf \\
    --mindspore_path checkpoint_download/gpt2/gpt2.ckpt""")
    return checkout


def test_pretraining_on_several_cards(shell, converted):
    console = shell("""\
bash scripts/msrun_launcher.sh "run_mindformer.py \\
  --run_mode train \\
  --train_dataset_dir wikitext-2.train.mindrecord \\
  --config configs/gpt2/pretrain_gpt2_small_fp16.yaml \\
  --use_parallel True" 2""")
    assert "data parallel: 2 processes" in console
    assert "training done:" in console
    assert {path.name for path in (converted / "output/checkpoint").iterdir()} >= {"rank_0"}


def test_full_fine_tuning_without_naming_weights(shell, converted):
    console = shell("""\
bash scripts/msrun_launcher.sh "run_mindformer.py \\
  --run_mode finetune \\
  --train_dataset_dir wikitext-2.train.mindrecord \\
  --config configs/gpt2/finetune_gpt2_small_fp16.yaml \\
  --use_parallel True" 1""")
    assert re.search(r"weights: .*gpt2\.ckpt", console)
    assert "warning: lr_schedule.warmup_steps is 2000, and the run has 4 steps: the learning rate never" in console
    assert "training done:" in console


def test_lora_with_the_quotes_and_the_line_end_of_the_page(shell, converted):
    """The page's command has quotes within quotes, and lacks a backslash."""
    console = shell("""\
bash scripts/msrun_launcher.sh "run_mindformer.py \\
    --run_mode finetune \\
    --train_dataset_dir wikitext-2.train.mindrecord
    --config configs/gpt2/finetune_gpt2_small_lora_fp16.yaml \\
    --load_checkpoint "checkpoint_download/gpt2/gpt2.ckpt" \\
    --use_parallel True" 1""")
    assert "training done:" in console
    assert "LoRA" in console


def test_prediction(shell, converted):
    console = shell("""\
bash scripts/examples/gpt2/run_gpt2_predict.sh \\
    single \\
    configs/gpt2/predict_gpt2_small_fp16.yaml \\
    checkpoint_download/gpt2/gpt2.ckpt \\
    1 \\
    checkpoint_download/gpt2""")
    assert ">>> Huawei is a company that" in console


def test_perplexity(shell, converted):
    console = shell("""\
python run_mindformer.py --config configs/gpt2/pretrain_gpt2_small_fp16.yaml \\
                         --eval_dataset_dir wikitext-2.valid.mindrecord \\
                         --run_mode eval \\
                         --epochs 1""")
    assert re.search(r"^PerplexityMetric: \{'PerplexityMetric': \{'loss': [\d.]+, 'PPL': [\d.]+\}\}$", console, re.M)


def test_a_classifier_is_evaluated_right_after_its_fine_tuning(shell, converted, tmp_path):
    """In a folder of its own, so that the output is that of this run; without --load_checkpoint in the evaluation."""
    for name in ("configs", "checkpoint_download", "tools", "run_mindformer.py", "train.tsv", "dev.tsv"):
        (tmp_path / name).symlink_to(converted / name)
    for part in ("train", "dev"):
        shell(
            f"""\
python tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py --dataset_name 'sst_2' \\
                                     --input_file {part}.tsv \\
                                     --output_file sst2.{part}.mindrecord""",
            cwd=tmp_path,
        )
    shell(
        """\
python run_mindformer.py --config configs/gpt2/finetune_gpt2_small_txtcls_fp16.yaml \\
                       --train_dataset_dir sst2.train.mindrecord \\
                       --load_checkpoint checkpoint_download/gpt2/gpt2.ckpt \\
                       --run_mode finetune""",
        cwd=tmp_path,
    )
    console = shell(
        """\
python run_mindformer.py --config configs/gpt2/finetune_gpt2_small_txtcls_fp16.yaml \\
                       --eval_dataset_dir sst2.dev.mindrecord \\
                       --run_mode eval \\
                       --epochs 1""",
        cwd=tmp_path,
    )
    assert "weights: gpt2 has no classification head, so those of the run in this output folder are used" in console
    assert re.search(r"weights: the newest in output/checkpoint/rank_0 is gpt2_rank_0-1_9\.ckpt", console)
    result = json.loads((tmp_path / "output/eval_result.json").read_text())
    assert f"ACC: {result['ACC']}" in console.splitlines()
    assert result["rows"] == 72
