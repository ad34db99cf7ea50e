"""An adapter belongs to one variant of GPT-2; a base of the other, and files of programs without it, are refused."""

import numpy as np
import pytest
import yaml

from mindgpt import GPT2LMHeadModel
from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.model_sections import PetSection
from mindgpt.pet.names import FACTOR_A, FACTOR_B
from mindgpt.tasks.merge_lora import export_peft, export_tencentpretrain, import_adapter, merge
from mindgpt.tasks.model_setup import build_model
from tests.models.gpt2_ml_reference import toy_config

pytestmark = pytest.mark.usefixtures("cpu")

RANK, ALPHA = 2, 6.0
QUERY = "backbone.blocks.1.attention.dense1"
NAMES = {"gpt2": "a GPT-2 (variant gpt2)", "gpt2_ml": "a GPT2_ML (variant gpt2_ml)"}


@pytest.fixture
def files(tmp_path):
    """Base weights and an adapter of query and value, `<variant>/model.ckpt` and `<variant>_adapter/x.ckpt`."""
    random, h = np.random.default_rng(3), toy_config().hidden_size
    for variant in NAMES:
        config = toy_config(variant=variant)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / variant)
        shapes = {FACTOR_A: (RANK, h), FACTOR_B: (h, RANK)}
        factors = {
            f"backbone.blocks.{block}.attention.{linear}.{factor}": random.normal(size=shape).astype(np.float32)
            for block in range(config.num_layers)
            for linear in ("dense1", "dense3")
            for factor, shape in shapes.items()
        }
        folder = tmp_path / f"{variant}_adapter"
        folder.mkdir()
        write_checkpoint(folder / "x.ckpt", factors.items())
        config.replaced({"pet_config": PetSection(lora_rank=RANK, lora_alpha=ALPHA)}).save_pretrained(folder)
    return tmp_path


def refused(held, built, call, *arguments, **keywords):
    with pytest.raises(UserError) as raised:
        call(*arguments, **keywords)
    said = f"is an adapter of {NAMES[held]}, and the base model is {NAMES[built]}, another network"
    assert said in str(raised.value)


@pytest.mark.parametrize(("held", "built"), [("gpt2", "gpt2_ml"), ("gpt2_ml", "gpt2")])
def test_a_base_of_the_other_variant(files, held, built):
    adapter = files / f"{held}_adapter" / "x.ckpt"
    refused(held, built, merge, files / built, files / "merged", "x_", adapter=adapter)
    assert not (files / "merged").exists()
    network = toy_config(variant=built)
    names = ("variant", "num_layers", "hidden_size", "num_heads", "vocab_size", "seq_length")
    values = {
        "run_mode": "eval",
        "load_checkpoint": str(files / built),
        "model": {
            "model_config": {
                **{name: getattr(network, name) for name in names},
                "pet_config": {"pet_type": "lora", "adapter": str(adapter)},
            }
        },
    }
    (files / "run.yaml").write_text(yaml.safe_dump(values))
    refused(held, built, build_model, load_config(files / "run.yaml")[0])


def test_its_own_base(files):
    merge(files / "gpt2_ml", files / "merged", "x_", adapter=files / "gpt2_ml_adapter" / "x.ckpt")
    merged, base = (CheckpointFile(files / name) for name in ("merged/rank_0/x_0.ckpt", "gpt2_ml/model.ckpt"))
    adapter = CheckpointFile(files / "gpt2_ml_adapter" / "x.ckpt")
    update = adapter.read(f"{QUERY}.{FACTOR_B}") @ adapter.read(f"{QUERY}.{FACTOR_A}") * (ALPHA / RANK)
    expected = base.read(f"{QUERY}.weight") + update
    np.testing.assert_allclose(merged.read(f"{QUERY}.weight"), expected, rtol=0, atol=1e-6)


def test_other_programs(files, capsys):
    """TencentPretrain has no such network; a folder of PEFT is for mindgpt alone, and says so."""
    with pytest.raises(UserError, match="is a LoRA of a GPT2_ML, a network that TencentPretrain does not have"):
        export_tencentpretrain(files / "gpt2_ml_adapter" / "x.ckpt", files / "out.bin")
    export_tencentpretrain(files / "gpt2_adapter" / "x.ckpt", files / "gpt2.bin")
    refused("gpt2", "gpt2_ml", import_adapter, files / "gpt2.bin", files / "y.ckpt", files / "gpt2_ml", ALPHA)
    capsys.readouterr()
    export_peft(files / "gpt2_ml_adapter" / "x.ckpt", files / "peft")
    assert "the adapter is for mindgpt's GPT2_ML alone" in capsys.readouterr().out
    export_peft(files / "gpt2_adapter" / "x.ckpt", files / "peft_gpt2")
    assert "note:" not in capsys.readouterr().out
