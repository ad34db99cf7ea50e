"""LoRA against Hugging Face's `peft` on the same toy GPT-2, in both directions."""

import json
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2LMHeadModel, UserError
from mindgpt.checkpoints.weights import load_weights
from mindgpt.config.model_sections import PetSection
from mindgpt.pet.adapter import open_adapter, resolve_settings
from mindgpt.pet.lora import add_lora
from mindgpt.pet.names import FACTOR_A, FACTOR_B
from mindgpt.pet.peft_folder import read_peft, write_peft

pytestmark = pytest.mark.usefixtures("unfused")
LAYERS = {"attn.c_proj": "attention.projection", "mlp.c_fc": "output.mapping", "mlp.c_proj": "output.projection"}


@pytest.fixture
def peft_model(torch, peft, base):
    """A function: LoraConfig's settings -> a PEFT model on the base, its factors random."""
    from transformers import GPT2LMHeadModel as Peer

    def build(**settings):
        torch.manual_seed(2)
        config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings)
        model = peft.get_peft_model(Peer.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.1)
        return model.eval()

    return build


def ours_with(base, adapter_folder):
    model = GPT2LMHeadModel.from_pretrained(base)
    adapter = open_adapter(adapter_folder)
    add_lora(model, resolve_settings(PetSection(), adapter.settings, adapter.source))
    load_weights({parameter.name: parameter for parameter in model.trainable_params()}, adapter.source)
    return model.set_train(False)


def joined(gradients, path, factor):
    """PEFT's gradient of a factor of c_attn out of ours: its A is shared by three layers, its B stacks theirs."""
    parts = [gradients[f"{path}.dense{part}.{factor}"] for part in (1, 2, 3)]
    return sum(parts) if factor == FACTOR_A else np.concatenate(parts)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_outputs_and_gradients_equal_peft(torch, peft_model, base, ids, tmp_path, use_rslora):
    theirs = peft_model(
        r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    )
    theirs.save_pretrained(tmp_path)
    ours = ours_with(base, tmp_path)
    reference = theirs(torch.tensor(ids).long(), labels=torch.tensor(ids).long())
    reference.loss.backward()
    logits = ours(Tensor(ids)).asnumpy()
    assert np.abs(logits - reference.logits.detach().numpy()).max() < 1e-5
    with theirs.disable_adapter(), torch.no_grad():
        assert np.abs(logits - theirs(torch.tensor(ids).long()).logits.numpy()).max() > 0.1  # the factors matter

    ours.set_train(True)
    parameters = ours.trainable_params()
    loss, values = ms.value_and_grad(ours, None, parameters)(Tensor(ids))
    assert float(loss.asnumpy()) == pytest.approx(reference.loss.item(), abs=1e-5)
    gradients = {parameter.name: value.asnumpy() for parameter, value in zip(parameters, values, strict=True)}
    compared = 0
    for name, parameter in theirs.named_parameters():
        if match := re.search(r"h\.(\d)\.(.+)\.lora_([AB])\.", name):
            path, factor = f"backbone.blocks.{match[1]}", {"A": FACTOR_A, "B": FACTOR_B}[match[3]]
            if match[2] == "attn.c_attn":
                mine = joined(gradients, f"{path}.attention", factor)
            else:
                mine = gradients[f"{path}.{LAYERS[match[2]]}.{factor}"]
            assert np.abs(mine - parameter.grad.numpy()).max() < 1e-5, name
            assert np.abs(mine).max() > 1e-4, name
            compared += 1
    assert compared == 2 * 2 * 4  # factors, blocks, layers


def factors_of(model):
    return {parameter.name: parameter.asnumpy() for parameter in model.trainable_params()}


@pytest.mark.parametrize(
    "target",
    [
        ".*dense1.*|.*dense3.*",  # PEFT has one c_attn for both: blocks
        ".*dense2|.*attention.projection",
        r".*blocks\.1\.(attention\.dense1|output\.mapping|output\.projection)",
    ],
)
def test_exported_adapter_computes_the_same_in_peft(torch, peft, base, ids, tmp_path, with_lora, target):
    from transformers import GPT2LMHeadModel as Peer

    settings = {"lora_rank": 3, "lora_alpha": 6.0, "target_modules": target}
    ours = with_lora(base, **settings)
    write_peft(tmp_path, PetSection(**settings), factors_of(ours))
    theirs = peft.PeftModel.from_pretrained(Peer.from_pretrained(base), tmp_path).eval()
    with torch.no_grad():
        reference = theirs(torch.tensor(ids).long()).logits.numpy()
    logits = ours(Tensor(ids)).asnumpy()
    assert np.abs(logits - reference).max() < 1e-5
    with theirs.disable_adapter(), torch.no_grad():
        assert np.abs(logits - theirs(torch.tensor(ids).long()).logits.numpy()).max() > 0.05

    settings, arrays = read_peft(tmp_path)
    assert (settings["lora_rank"], settings["lora_alpha"]) == (3, 6.0)
    assert arrays.keys() == factors_of(ours).keys()
    assert all(np.array_equal(arrays[name], value) for name, value in factors_of(ours).items())
    model = GPT2LMHeadModel.from_pretrained(base)
    add_lora(model, PetSection(**settings))
    assert {p.name for p in model.trainable_params()} == set(arrays)


def test_peft_adapter_round_trip(torch, peft_model, tmp_path):
    theirs = peft_model(r=4, lora_alpha=8, lora_dropout=0.25, target_modules=["c_attn", "c_fc"])
    theirs.save_pretrained(tmp_path / "theirs")
    settings, arrays = read_peft(tmp_path / "theirs")
    assert settings["lora_dropout"] == 0.25
    write_peft(tmp_path / "ours", PetSection(**settings), arrays)
    from safetensors.numpy import load_file

    first, second = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["lora_alpha"] == 8


def test_an_untrained_adapter_can_be_read(peft, base, tmp_path):
    from transformers import GPT2LMHeadModel as Peer

    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    peft.get_peft_model(Peer.from_pretrained(base), config).save_pretrained(tmp_path)  # every B is zero
    settings, arrays = read_peft(tmp_path)
    assert settings["lora_rank"] == 4
    assert len(arrays) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True, "target_modules": ["c_fc"]}, "asks for more than LoRA's factors: use_dora: True"),
        ({"bias": "lora_only", "target_modules": ["c_fc"]}, "bias: 'lora_only'"),
        ({"target_modules": ["c_fc", "wte"]}, "no place for base_model.model.transformer.wte.lora_embedding_A"),
        ({"target_modules": ["c_fc", "c_attn"], "rank_pattern": {"c_fc": 8}}, "layers differ: backbone.blocks.0."),
        ({"target_modules": ["c_fc"], "alpha_pattern": {"h.1.mlp.c_fc": 3}}, "one rank and one scaling for all"),
    ],
)
def test_more_than_plain_lora_is_refused(peft_model, tmp_path, settings, said):
    peft_model(r=4, lora_alpha=8, **settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said):
        read_peft(tmp_path)


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "of a later release"]
)
def test_an_adapter_of_a_changed_base_is_refused(peft_model, tmp_path, start):
    """PEFT subtracts from the base what such factors begin with (field report R5)."""
    peft_model(r=4, lora_alpha=8, target_modules=["c_fc"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    with pytest.raises(UserError, match=f"init_lora_weights '{start}' changes the base weights.*merge_and_unload"):
        read_peft(tmp_path)
    for harmless in (True, False, None, "gaussian", "eva", "orthogonal", "mica"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": harmless}))
        assert read_peft(tmp_path)[0]["lora_rank"] == 4


def test_keys_of_newer_peft_are_refused_where_they_may_ask_for_another_method(peft_model, tmp_path):
    peft_model(r=4, lora_alpha=8, target_modules=["c_fc"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    for asks in ({"use_newlora": True}, {"newlora_config": {"rank": 3}}):
        file.write_text(json.dumps(config | asks))
        with pytest.raises(UserError, match=f"asks for more than LoRA's factors: {next(iter(asks))}: "):
            read_peft(tmp_path)
    nothing = {"use_newlora": False, "newlora_config": None, "newlora_size": 16, "lora_bias": None, "bias": None}
    file.write_text(json.dumps(config | nothing))
    assert read_peft(tmp_path)[0]["lora_rank"] == 4


def test_broken_folders_are_refused(peft_model, tmp_path):
    peft_model(r=4, lora_alpha=8, target_modules=["c_fc"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for changes, said in (
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', not 'IA3'"),
        ({"r": 5}, "says rank 5 for transformer.h.0.mlp.c_fc, and its lora_A has 4 rows"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number, not None"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number, not nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a positive number, not 1000"),
        ({"r": True}, "r must be a positive number, not True"),
        ({"lora_dropout": "x"}, "lora_dropout must be a number from 0 to below 1, not 'x'"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number from 0 to below 1, not 1.0"),
        ({"use_rslora": "no"}, "use_rslora must be true or false, not 'no'"),
        ({"rank_pattern": ["c_fc"]}, r"rank_pattern must give a positive number for each name, not \['c_fc'\]"),
        ({"alpha_pattern": {"c_fc": "x"}}, "alpha_pattern must give a positive number for each name"),
        ({"rank_pattern": {"c_fc(": 4}}, r"rank_pattern: 'c_fc\(' is not a regular expression"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=said):
            read_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors in this folder"):
        read_peft(tmp_path)


def test_trained_biases_cannot_be_written_to_a_peft_folder(tmp_path):
    name = "backbone.blocks.0.attention.dense1"
    arrays = {f"{name}.{FACTOR_A}": np.ones((2, 8), np.float32), f"{name}.{FACTOR_B}": np.ones((8, 2), np.float32)}
    with pytest.raises(UserError, match=r"not for backbone\.blocks\.0\.attention\.dense1\.bias"):
        write_peft(tmp_path, PetSection(lora_rank=2), arrays | {f"{name}.bias": np.ones(8, np.float32)})
