"""LoRA as a user types it: fine-tune, evaluate, continue, merge, to PEFT and back; and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml

from mindgpt.checkpoints.gpt2_names import MF_EMBEDDING
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.config.command_line import parse_arguments
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.model_sections import PetSection
from mindgpt.pet.names import FACTOR_A, FACTOR_B
from mindgpt.pet.peft_folder import write_peft
from mindgpt.tasks.merge_lora import import_adapter, merge
from mindgpt.tasks.model_setup import build_model

PET = {
    "pet_type": "lora",
    "lora_rank": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.1,
    "target_modules": ".*dense1.*|.*dense3.*",
}
NAME = "toy_rank_0-1_10"


@pytest.fixture(scope="module")
def yamls(toy, tmp_path_factory):
    """The toy configuration with LoRA, for one epoch, and without."""
    values = yaml.safe_load(toy.yaml.read_text())
    values["runner_config"]["epochs"] = 1
    values["callbacks"][1] |= {"save_trainable_params": True, "save_checkpoint_steps": 5}
    values["model"]["model_config"]["pet_config"] = PET
    folder = tmp_path_factory.mktemp("yamls")
    (folder / "lora.yaml").write_text(yaml.safe_dump(values))
    return folder / "lora.yaml", toy.yaml


@pytest.fixture(scope="module")
def tuned(toy, trained, yamls, succeed, tmp_path_factory):
    """A LoRA fine-tuning of the toy model: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("tuned")
    console = succeed(
        "run_mindformer.py", "--config", yamls[0], "--run_mode", "finetune", "--train_dataset_dir", toy.train,
        "--load_checkpoint", trained.last_checkpoint, cwd=cwd,
    )  # fmt: skip
    return cwd, console


@pytest.fixture(scope="module")
def evaluate(toy, succeed, tmp_path_factory):
    """A function: flags -> the perplexity that an evaluation in a folder of its own prints."""

    def run(config, *flags):
        cwd = tmp_path_factory.mktemp("evaluate")
        arguments = ("--run_mode", "eval", "--eval_dataset_dir", toy.valid, "--epochs", 1)
        console = succeed("run_mindformer.py", "--config", config, *arguments, *flags, cwd=cwd)
        return float(re.search(r"'PPL': ([\d.]+)", console)[1])

    return run


@pytest.fixture(scope="module")
def unmerged(evaluate, yamls, tuned):
    """The perplexity of the LoRA checkpoint as it is."""
    return evaluate(yamls[0], "--load_checkpoint", tuned[0] / "output/checkpoint")


def test_a_run_says_what_it_trains_and_trains_nothing_else(trained, tuned):
    cwd, console = tuned
    count, total = 2 * 4 * (32 + 32), 300 * 32 + 32 * 32 + 12 * 32 * 32 + 13 * 32 + 2 * 32
    lines = console.splitlines()
    assert (
        "LoRA: rank 4, scaling 1.5, on 2 linear layers: backbone.blocks.0.attention.dense1, "
        "backbone.blocks.0.attention.dense3"
    ) in lines
    assert f"trained: {count:,} of {total + count:,} values ({100 * count / (total + count):.3g} %)" in lines
    base, after = CheckpointFile(trained.last_checkpoint), CheckpointFile(cwd / f"output/checkpoint/rank_0/{NAME}.ckpt")
    weights = [name for name in base.entries if name.startswith("backbone")]
    assert all(np.array_equal(base.read(name), after.read(name)) for name in weights)
    new = {name for name in after.entries if name.startswith("backbone")} - set(weights)
    layers = ("dense1", "dense3")
    assert new == {f"backbone.blocks.0.attention.{x}.mindpet_delta_lora_{f}" for x in layers for f in "ab"}
    assert all(np.abs(after.read(name)).max() > 0 for name in new)
    assert {name for name in after.entries if name.startswith("adam_")} == {f"adam_{m}.{n}" for m in "mv" for n in new}
    adapter = CheckpointFile(cwd / f"output/checkpoint_trainable/rank_0/{NAME}-trainable.ckpt")
    assert set(adapter.entries) == new


def test_the_adapter_alone_on_its_base_is_the_same(evaluate, yamls, trained, tuned, unmerged):
    base = ("--load_checkpoint", trained.last_checkpoint)
    folder = tuned[0] / "output/checkpoint_trainable"
    assert evaluate(yamls[1], *base, "--adapter", folder) == unmerged  # the settings lie with the adapter
    log = (trained.output / "log" / "eval.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["PPL"] != pytest.approx(unmerged, rel=1e-3)


def test_merged_is_the_same(evaluate, yamls, tuned, unmerged, succeed, tmp_path, checksums):
    before = checksums(tuned[0])
    console = succeed(
        "tools/transform_ckpt_lora.py", "--src_ckpt_path_or_dir", tuned[0] / "output/checkpoint",
        "--dst_ckpt_dir", "merged", "--prefix", "toy_", cwd=tmp_path,
    )  # fmt: skip
    assert "merged 2 LoRA updates, scaling 1.5, into 20 tensors: merged/rank_0/toy_0.ckpt" in console
    assert checksums(tuned[0]) == before
    # Merged, it is evaluated by mindgpt's kernels, unmerged by MindSpore's fused operators (docs/performance.md).
    merged = evaluate(yamls[1], "--load_checkpoint", tmp_path / "merged/rank_0/toy_0.ckpt")
    assert merged == pytest.approx(unmerged, rel=2e-5)
    assert "pet_config" not in json.loads((tmp_path / "merged/rank_0/config.json").read_text())["mindgpt"]


def test_by_way_of_peft_it_is_the_same(evaluate, yamls, trained, tuned, unmerged, succeed, tmp_path):
    source = tuned[0] / "output/checkpoint_trainable"
    succeed("tools/convert_lora.py", "--mindspore_path", source, "--peft_dir", "peft", cwd=tmp_path)
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["rank_pattern"] == {"h.0.attn.c_attn": 8}
    base = ("--load_checkpoint", trained.last_checkpoint)
    assert evaluate(yamls[1], *base, "--adapter", tmp_path / "peft") == unmerged
    succeed(
        "tools/convert_lora.py", "--reversed", "--peft_dir", "peft", "--mindspore_path", "back/x.ckpt",
        "--config", trained.last_checkpoint.parent, cwd=tmp_path,
    )  # fmt: skip
    first = CheckpointFile(source / f"rank_0/{NAME}-trainable.ckpt")
    second = CheckpointFile(tmp_path / "back/x.ckpt")
    assert first.entries == {name: second.entries[name] for name in first.entries}
    assert all(np.array_equal(first.read(name), second.read(name)) for name in first.entries)
    whole = CheckpointFile(merge(tuned[0] / f"output/checkpoint/rank_0/{NAME}.ckpt", tmp_path / "whole"))
    parts = CheckpointFile(merge(trained.last_checkpoint, tmp_path / "parts", adapter=tmp_path / "back/x.ckpt"))
    assert all(np.array_equal(whole.read(name), parts.read(name)) for name in (*whole.entries, *parts.entries))


def test_tuning_goes_on_from_a_lora_checkpoint_and_predicts(toy, yamls, tuned, succeed, tmp_path):
    console = succeed(
        "run_mindformer.py", "--config", yamls[0], "--run_mode", "finetune", "--train_dataset_dir", toy.train,
        "--load_checkpoint", tuned[0] / "output/checkpoint", cwd=tmp_path,
    )  # fmt: skip
    first = [json.loads(line)["loss"] for line in (tuned[0] / "output/log/train.jsonl").read_text().splitlines()]
    second = [json.loads(line)["loss"] for line in (tmp_path / "output/log/train.jsonl").read_text().splitlines()]
    assert np.mean(second) < np.mean(first)
    assert "24 parameters loaded" in console
    assert load_config(tmp_path / "output/finetune_config.yaml")[0].model.config.pet_config.lora_rank == 4
    console = succeed(
        "run_mindformer.py", "--config", yamls[0], "--run_mode", "predict", "--predict_data", "the quick brown",
        "--tokenizer", toy.tokenizer, "--max_new_tokens", 4, "--load_checkpoint", tmp_path / "output/checkpoint",
        cwd=tmp_path,
    )  # fmt: skip
    assert "the quick brown" in console


def test_a_lora_checkpoint_without_pet_config_is_one_message(toy, yamls, tuned, program, tmp_path):
    whole = tuned[0] / f"output/checkpoint/rank_0/{NAME}.ckpt"
    done = program(
        "run_mindformer.py", "--config", yamls[1], "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
        "--load_checkpoint", whole, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    said = r"the YAML has no pet_config.*lora_rank: 4, lora_alpha: 6.0.*transform_ckpt_lora\.py"
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr


def test_what_does_not_fit_is_refused(cpu, yamls, trained, tuned):
    lora = yamls[0]
    whole = tuned[0] / f"output/checkpoint/rank_0/{NAME}.ckpt"
    adapter = tuned[0] / f"output/checkpoint_trainable/rank_0/{NAME}-trainable.ckpt"
    base = trained.last_checkpoint
    for checkpoint, settings, said in (
        (base, {}, "holds no LoRA factors, and there is nothing trained to eval"),
        (adapter, {}, f"holds an adapter alone.*--adapter {adapter}"),
        (whole, {"adapter": str(adapter)}, "holds LoRA factors already"),
        (base, {"adapter": str(whole)}, "holds the base weights, too"),
        (base, {"adapter": "nowhere"}, "adapter: there is no file or folder nowhere"),
        (base, {"adapter": str(base.parent / "config.json")}, "not an adapter"),
        (whole, {"lora_rank": 8}, "lora_rank is 8 in the settings and 4 in the weights"),
        (whole, {"lora_alpha": 8}, "is 2 in the YAML and 1.5 in what lies"),
        (whole, {"target_modules": ".*dense2"}, r"missing in the file: \S*dense2.mindpet_delta"),
    ):
        values = {"run_mode": "eval", "load_checkpoint": str(checkpoint)}
        values |= {f"model.model_config.pet_config.{key}": value for key, value in settings.items()}
        with pytest.raises(UserError, match=said):
            build_model(load_config(lora, values)[0])
    with pytest.raises(UserError, match="LoRA tunes pretrained weights, and none are named"):
        build_model(load_config(lora, {"run_mode": "train"})[0])
    with pytest.raises(UserError, match=r"--adapter_id has no effect here.*--adapter"):
        parse_arguments(["--config", str(lora), "--adapter_id", "x"])


def test_a_classifier_s_adapter_brings_its_head(cpu, yamls, trained, tmp_path):
    values = {
        "run_mode": "finetune",
        "load_checkpoint": str(trained.last_checkpoint),
        "trainer.type": "TextClassificationTrainer",
        "model.arch.type": "GPT2ForSequenceClassification",
        "metric.type": "Accuracy",
        "model.model_config.num_labels": 3,
    }
    model, _ = build_model(load_config(yamls[0], values)[0])
    trained_names = {parameter.name for parameter in model.trainable_params()}
    assert "score.weight" in trained_names
    model.config.save_pretrained(tmp_path)
    save_checkpoint(tmp_path / "adapter.ckpt", {name: model.parameters_dict()[name] for name in trained_names})
    values |= {"run_mode": "eval", "model.model_config.pet_config": {"adapter": str(tmp_path / "adapter.ckpt")}}
    again = build_model(load_config(yamls[0], values)[0])[0].parameters_dict()
    assert again.keys() == model.parameters_dict().keys()
    assert all(
        np.array_equal(again[name].asnumpy(), value.asnumpy()) for name, value in model.parameters_dict().items()
    )


def test_merging_needs_the_scaling_and_keeps_away_from_the_source(tuned, tmp_path, capsys):
    lone = tmp_path / "elsewhere" / "x.ckpt"  # as MindFormers leaves it: no config.json
    lone.parent.mkdir()
    beside = tuned[0] / f"output/checkpoint/rank_0/{NAME}.ckpt"
    shutil.copy(beside, lone)
    two_ranks = tmp_path / "sharded"
    for rank in (0, 1):
        (two_ranks / f"rank_{rank}").mkdir(parents=True)
        shutil.copy(lone, two_ranks / f"rank_{rank}" / "x_rank_0-1_1.ckpt")
    plain = tmp_path / "plain.ckpt"
    write_checkpoint(plain, [(MF_EMBEDDING, np.ones((3, 2), np.float32))])
    merged = tmp_path / "merged"
    for source, settings, said in (
        (lone, {}, "with what lora_alpha was it trained.*Give --lora_alpha, or --lora_scaling"),
        (lone, {"alpha": 6, "scaling": 1.5}, "say the same in two ways"),
        (lone, {"scaling": 0.0}, "--lora_scaling must be a positive number"),
        (two_ranks, {}, "holds the files of 2 ranks, and no strategy that says how they belong together"),
        (lone, {"strategy": tmp_path / "nowhere"}, "there is no .*nowhere"),
        (tmp_path / "nowhere.ckpt", {}, "there is no .*nowhere.ckpt"),
        (plain, {"scaling": 2}, "no mindpet_delta_lora_a"),
    ):
        with pytest.raises(UserError, match=said):
            merge(source, merged, **settings)
    assert not merged.exists()
    named = tmp_path / "source" / "rank_0" / "checkpoint_0.ckpt"
    named.parent.mkdir(parents=True)
    shutil.copy(lone, named)
    with pytest.raises(UserError, match="would lie among the sources"):
        merge(named, tmp_path / "source", scaling=1.5)
    for settings in ({"alpha": 6}, {"scaling": 1.5}):
        merge(lone, merged, **settings)
        assert "scaling 1.5" in capsys.readouterr().out
    merge(beside, merged, scaling=3.0)
    assert "says scaling 1.5; 3 is obeyed" in capsys.readouterr().out
    config = json.loads((beside.parent / "config.json").read_text())
    config["mindgpt"]["pet_config"]["lora_rank"] = 8
    (lone.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is of another LoRA: lora_rank is 8 there and 4 in the weights"):
        merge(lone, merged)
    lone = tuned[0] / "output" / "x.ckpt"  # no config.json, but the run's own configuration above it
    shutil.copy(beside, lone)
    merge(lone, merged)
    lone.unlink()
    assert "scaling 1.5" in capsys.readouterr().out


def test_importing_from_peft_writes_over_nothing_but_an_adapter(tmp_path):
    layer, target = "backbone.blocks.0.output.mapping", tmp_path / "adapter.ckpt"
    factors = {f"{layer}.{FACTOR_A}": np.ones((2, 8), np.float32), f"{layer}.{FACTOR_B}": np.ones((32, 2), np.float32)}
    write_peft(tmp_path / "peft", PetSection(lora_rank=2), factors)
    with pytest.raises(UserError, match="nowhere"):
        import_adapter(tmp_path / "peft", target, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--mindspore_path: \S*adapter must be the name of a file that ends in \.ckpt"):
        import_adapter(tmp_path / "peft", tmp_path / "adapter", None)
    assert [file.name for file in tmp_path.iterdir()] == ["peft"]
    base = tmp_path / "base.ckpt"
    write_checkpoint(base, [("backbone.layernorm.gamma", np.ones(8, np.float32))])
    before = base.read_bytes()
    with pytest.raises(UserError, match="would write over what is no adapter"):
        import_adapter(tmp_path / "peft", base, None)
    assert base.read_bytes() == before
    for _ in range(2):  # an adapter may be written anew
        import_adapter(tmp_path / "peft", target, None)
    assert set(CheckpointFile(target).entries) == set(factors)
