"""LoRA files of TencentPretrain; the oracle adds B A alpha / r to the matrices of the whole file."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.pet.adapter import open_adapter, resolve_settings
from mindgpt.tasks.merge_lora import export_peft, export_tencentpretrain, import_adapter, merge
from tests import programs
from tests.checkpoints.uer_models import JSON, H, L, state, write_model

RANK, ALPHA = 2, 12
ADAPTED = [f"encoder.transformer.{i}.self_attn.linear_layers.{n}" for i in range(L) for n in (0, 2)]


def factors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"lora_A": (RANK, H), "lora_B": (H, RANK)}
    return {f"{n}.{part}": torch.randn(s, generator=generator) for n in ADAPTED for part, s in shapes.items()}


def merged_by_hand() -> dict[str, torch.Tensor]:
    held, lora = state(), factors()
    for name in ADAPTED:
        update = lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"]
        held[f"{name}.weight"] = held[f"{name}.weight"] + update * (ALPHA / RANK)
    return held


@pytest.fixture
def files(tmp_path):
    """The base of UER-py, and the LoRA in a folder of its own."""
    (tmp_path / "lora").mkdir()
    torch.save(factors(), tmp_path / "lora" / "lora.bin")
    return write_model(tmp_path / "base", state()), tmp_path / "lora" / "lora.bin"


def assert_merged(path, scratch) -> None:
    merged, wanted = open_weights(path).source, open_weights(write_model(scratch, merged_by_hand())).source
    assert merged.entries.keys() == wanted.entries.keys()
    for name in wanted.entries:
        np.testing.assert_allclose(merged.read(name), wanted.read(name), rtol=0, atol=2e-6, err_msg=name)


def test_merged_into_its_base(tmp_path, files):
    base, lora = files
    merged = merge(base, tmp_path / "merged", adapter=lora, alpha=ALPHA)
    assert_merged(merged, tmp_path / "wanted")
    assert open_weights(merged).config.layer_norm == "uer"
    with pytest.raises(UserError, match="with what lora_alpha was it trained"):
        merge(base, tmp_path / "again", adapter=lora)


def test_by_way_of_our_checkpoint(tmp_path, files):
    base, lora = files
    config = tmp_path / "config.json"
    config.write_text(json.dumps(open_weights(base).config.to_hf_dict()))
    import_adapter(lora, tmp_path / "x" / "adapter.ckpt", config, ALPHA)
    assert_merged(merge(base, tmp_path / "merged", adapter=tmp_path / "x" / "adapter.ckpt"), tmp_path / "wanted")
    export_tencentpretrain(tmp_path / "x" / "adapter.ckpt", tmp_path / "back.bin")
    held = torch.load(tmp_path / "back.bin")
    assert held.keys() == factors().keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in factors().items())


def test_by_way_of_peft(tmp_path, files):
    base, lora = files
    export_peft(lora, tmp_path / "peft", ALPHA)
    assert_merged(merge(base, tmp_path / "merged", adapter=tmp_path / "peft"), tmp_path / "wanted")
    with pytest.raises(UserError, match="with what lora_alpha"):
        export_peft(lora, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_asks_for_alpha_unless_a_config_says_it(files):
    _, lora = files
    adapter = open_adapter(lora)
    with pytest.raises(UserError, match="what was lora_alpha"):
        resolve_settings(PetSection(), adapter.settings, adapter.source)
    settings = resolve_settings(PetSection(lora_alpha=ALPHA), adapter.settings, adapter.source)
    assert (settings.lora_rank, settings.scaling) == (RANK, ALPHA / RANK)
    params = {"lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0}
    lora.with_name("config.json").write_text(json.dumps(JSON | {"lora_params": params}))
    adapter = open_adapter(lora)
    assert resolve_settings(PetSection(), adapter.settings, adapter.source).scaling == ALPHA / RANK
    lora.with_name("config.json").write_text(json.dumps(JSON | {"lora_params": params | {"lora_r": 8}}))
    with pytest.raises(UserError, match="is of another LoRA: lora_r is 8 there, and .* has rank 2"):
        open_adapter(lora)


def test_what_is_refused(tmp_path, files):
    base, lora = files
    with pytest.raises(UserError, match="holds factors of a LoRA of TencentPretrain"):
        open_weights(lora)
    with pytest.raises(UserError, match="not a LoRA file of TencentPretrain"):
        open_adapter(base)
    held = factors()
    del held[f"{ADAPTED[0]}.lora_A"]
    torch.save(held, tmp_path / "half.bin")
    with pytest.raises(UserError, match="dense1 has mindpet_delta_lora_b and no mindpet_delta_lora_a"):
        open_adapter(tmp_path / "half.bin")
    torch.save({name.replace("layers.2", "layers.1"): tensor for name, tensor in factors().items()}, tmp_path / "k.bin")
    import_adapter(tmp_path / "k.bin", tmp_path / "k" / "x.ckpt", None, ALPHA)
    with pytest.raises(UserError, match=r"LoRA on query and value only, and no place for .*dense2"):
        export_tencentpretrain(tmp_path / "k" / "x.ckpt", tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()


def test_the_program(repo, tmp_path, files):
    _, lora = files
    shutil.copy(lora, tmp_path / "lora.bin")
    tool = repo / "tools" / "convert_lora.py"
    words = ["--reversed", "--tencentpretrain_path", "lora.bin", "--lora_alpha", "16", "--mindspore_path", "x.ckpt"]
    done = programs.run([sys.executable, tool, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'lora_rank': 2, 'lora_alpha': 16.0" in done.stdout
    done = programs.run([sys.executable, tool, "--mindspore_path", "x.ckpt"], tmp_path)
    assert done.returncode == 2 and "one of them" in done.stderr
