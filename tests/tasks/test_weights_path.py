"""Which file of weights a run starts from."""

import os

import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.tasks.weights_files import weights_path


@pytest.fixture
def named(tmp_path, monkeypatch):
    """The path that a configuration leads to, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("optimizer: {learning_rate: 0.001}\n")

    def path(load_checkpoint="", in_model="", mode="eval", more=None):
        values = {"run_mode": mode, "load_checkpoint": load_checkpoint}
        config, _ = load_config(
            "run.yaml", {**values, "model.model_config.checkpoint_name_or_path": in_model} | (more or {})
        )
        found = weights_path(config)
        return found and str(found)

    return path


def make(*names):
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w") as file:
            file.write("weights")


def test_the_flag_goes_before_the_model_section(named):
    make("a.ckpt", "b.ckpt")
    assert named("a.ckpt", "b.ckpt") == "a.ckpt"
    assert named("", "b.ckpt") == "b.ckpt"


def test_a_bare_name_is_looked_for_where_mindformers_put_it(named, capsys):
    make("checkpoint_download/gpt2/gpt2.ckpt")
    assert named("gpt2") == "checkpoint_download/gpt2/gpt2.ckpt"
    assert named(in_model="gpt2", mode="train") == "checkpoint_download/gpt2/gpt2.ckpt"
    assert named("gpt2_xl", mode="train") is None
    assert "gpt2_xl is not in checkpoint_download/gpt2, and nothing is downloaded" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="gpt2_xl is a model name, and there is no checkpoint_download/gpt2/gpt2_xl.ckpt"
    ):
        named("gpt2_xl", mode="finetune")


def test_who_named_no_weights_learns_which_flag_does(named):
    """The second stages and the fine-tuning files name a download that most users do not have."""
    wanted = "checkpoint_download/gpt2/x.ckpt .*; --load_checkpoint names others, such as a run's folder checkpoint"
    with pytest.raises(UserError, match=wanted):
        named("checkpoint_download/gpt2/x.ckpt", mode="train")


def test_a_prefix_of_a_tensorflow_checkpoint_is_no_model_name(named):
    """Training must not start from scratch because no file has the name of a prefix."""
    make("mega.index", "model.ckpt-5.data-00000-of-00001")
    assert named("mega", mode="train") == "mega.index"
    assert named("model.ckpt-5", mode="train") == "model.ckpt-5.index"  # opening it tells that it is missing
    with pytest.raises(UserError, match="load_checkpoint: there is no file or folder model.ckpt-6"):
        named("model.ckpt-6", mode="train")


CLASSIFIER = {
    "trainer.type": "TextClassificationTrainer",
    "model.arch.type": "GPT2ForSequenceClassification",
}
OWN = "output/checkpoint/rank_0/x_rank_0-1_20.ckpt"


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_without_a_name_the_output_folder_s_own_weights_are_used_and_it_is_said(named, mode, capsys):
    make(OWN)
    assert named(mode=mode) == OWN
    assert (
        "weights: none are named, so those of the run in this output folder are used (--load_checkpoint names oth"
        in (capsys.readouterr().out)
    )
    make("a.ckpt")
    assert named("a.ckpt", mode=mode) == "a.ckpt"
    assert named("", "a.ckpt", mode=mode) == "a.ckpt"


def test_training_never_takes_the_output_folder_s_own_weights(named):
    make(OWN)
    assert named(mode="train") is None
    with pytest.raises(UserError, match="run_mode finetune needs weights"):
        named(mode="finetune")


def test_the_output_folder_is_that_of_the_yaml(named):
    make("elsewhere/rank_0/x_rank_0-1_20.ckpt", OWN)
    monitor = {"callbacks": [{"type": "CheckpointMonitor", "directory": "elsewhere"}]}
    assert named(more=monitor) == "elsewhere/rank_0/x_rank_0-1_20.ckpt"
    assert named(more={"output_dir": "./output"}) == OWN
    with pytest.raises(UserError, match="run_mode eval needs weights"):
        named(more={"output_dir": "other"})


def test_a_classifier_s_own_weights_go_before_a_language_model_s(named, capsys):
    """As the YAML of MindFormers names gpt2 for the fine-tuning, also for the evaluation after it."""
    make("checkpoint_download/gpt2/gpt2.ckpt")
    assert named("gpt2", more=CLASSIFIER) == "checkpoint_download/gpt2/gpt2.ckpt", "there is nothing better"
    make(OWN)
    assert named(in_model="gpt2", more=CLASSIFIER) == OWN
    assert "weights: gpt2 has no classification head, so those of the run in this" in capsys.readouterr().out
    assert named("gpt2", more=CLASSIFIER, mode="finetune") == "checkpoint_download/gpt2/gpt2.ckpt"
    assert named("gpt2") == "checkpoint_download/gpt2/gpt2.ckpt", "a language model"
    make("mine/model.safetensors")
    assert named("mine", more=CLASSIFIER) == "mine"


def test_a_language_model_that_is_not_there_is_not_replaced_but_the_way_is_shown(named):
    make(OWN)
    with pytest.raises(
        UserError, match="A run has left some in this output folder: --load_checkpoint output/checkpoin"
    ):
        named("gpt2")


def test_only_training_starts_from_scratch(named):
    assert named(mode="train") is None
    for mode in ("finetune", "eval", "predict"):
        with pytest.raises(UserError, match=f"run_mode {mode} needs weights"):
            named(mode=mode)


def test_a_run_s_folder_means_its_newest_checkpoint_by_epoch_and_step(named, capsys):
    names = ["x_rank_0-9_100.ckpt", "x_rank_0-10_20.ckpt", "x_rank_0-10_9.ckpt"]
    make(*(f"output/checkpoint/rank_0/{name}" for name in names))
    make(*(f"output/checkpoint_network/rank_0/{name.replace('.ckpt', '-network.ckpt')}" for name in names))
    for number, name in enumerate(names):
        os.utime(f"output/checkpoint/rank_0/{name}", (number, number))
    assert named("output/checkpoint") == "output/checkpoint/rank_0/x_rank_0-10_20.ckpt"
    note = "note: x_rank_0-10_9.ckpt was written later; if it is of a later run, name it with --load_checkpoint"
    assert note in capsys.readouterr().out
    os.utime(f"output/checkpoint/rank_0/{names[1]}", (9, 9))
    assert named("output/checkpoint/rank_0") == "output/checkpoint/rank_0/x_rank_0-10_20.ckpt"
    assert "note" not in capsys.readouterr().out
    assert named("output/checkpoint_network") == "output/checkpoint_network/rank_0/x_rank_0-10_20-network.ckpt"


def test_a_folder_of_weights_is_left_for_the_reader_of_weights(named):
    make("hf/model.safetensors", "hf/config.json")
    assert named("hf") == "hf"


def test_a_named_strategy_makes_a_folder_one_of_shards(named):
    """It may lie elsewhere. Without it, several ranks' files are those of data parallel training."""
    make("run/checkpoint/rank_0/x_rank_0-1_4.ckpt", "run/checkpoint/rank_1/x_rank_1-1_4.ckpt", "kept/s.ckpt")
    assert named("run/checkpoint", more={"src_strategy_path_or_dir": "kept"}) == "run/checkpoint"
    assert named("run/checkpoint") == "run/checkpoint/rank_0/x_rank_0-1_4.ckpt"
