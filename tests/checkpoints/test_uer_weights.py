"""Weights of UER-py and TencentPretrain in and out; the oracle is the network written from the formulas."""

import json
import os

import mindspore as ms
import numpy as np
import pytest
import torch
import transformers

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.uer_config import config_of_uer
from mindgpt.checkpoints.uer_views import UERView
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.models.gpt2 import convert_weight
from mindgpt.tasks.model_setup import build_model
from tests.checkpoints.uer_models import (
    GENERATIONS,
    JSON,
    H,
    L,
    P,
    V,
    convert,
    logits,
    refused,
    state,
    write_model,
)

IDS = torch.randint(V, (2, P), generator=torch.Generator().manual_seed(1))


def assert_same(file, wanted) -> None:
    held = torch.load(file, weights_only=True)
    assert held.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(held[name], tensor), name


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("head", ["tied", "untied", "missing"])
def test_uer_to_ckpt_to_uer_is_bit_for_bit(tmp_path, generation, head):
    held = state(generation, head)
    convert(write_model(tmp_path / "a", held), tmp_path / "b" / "x.ckpt")
    convert(tmp_path / "b" / "x.ckpt", tmp_path / "c" / "back.bin", "--target_format", "uer")
    wanted = state("new", "untied" if head == "untied" else "tied")
    assert_same(tmp_path / "c" / "back.bin", wanted)
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == JSON | {"tie_weights": head != "untied"}
    assert (tmp_path / "c" / "vocab.txt").read_bytes() == (tmp_path / "a" / "vocab.txt").read_bytes()
    shared = torch.load(tmp_path / "c" / "back.bin", weights_only=True)
    tables = [shared[name].data_ptr() for name in (GENERATIONS["new"][0], GENERATIONS["new"][2])]
    assert (tables[0] == tables[1]) == (head != "untied")


def test_config_of_the_checkpoint(tmp_path):
    convert(write_model(tmp_path / "a", state()), tmp_path / "x.ckpt")
    config = open_weights(tmp_path / "x.ckpt").config
    expected = {
        "vocab_size": V, "max_position_embeddings": P, "num_heads": 3, "num_layers": L, "hidden_size": H,
        "ffn_hidden_size": 20, "hidden_act": "gelu", "layer_norm": "uer", "layer_norm_conversion": "uer",
        "layernorm_epsilon": 1e-6, "prompt_special_tokens": "bos", "bos_token_id": 2, "eos_token_id": 3,
        "pad_token_id": 0, "hidden_dropout_rate": 0.1,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in expected} == expected
    assert open_weights(tmp_path / "a" / "model.bin").config == config


def test_no_ids_of_special_tokens_without_a_vocabulary(tmp_path):
    config = open_weights(write_model(tmp_path / "a", state(), vocabulary=False)).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert config.prompt_special_tokens == "bos"


@pytest.fixture(scope="module")
def unfused(cpu):
    """Without graph-kernel fusion, whose tanh is off by 1.2e-4."""
    ms.set_context(enable_graph_kernel=False)
    yield
    ms.set_context(enable_graph_kernel=True)


@pytest.mark.parametrize(
    ("generation", "head"),
    [("old", "tied"), ("between", "tied"), ("new", "tied"), ("new", "untied"), ("old", "untied"), ("new", "missing")],
)
def test_logits_are_those_of_the_formulas(tmp_path, unfused, generation, head):
    model = GPT2LMHeadModel.from_pretrained(write_model(tmp_path, state(generation, head)))
    ours = model(ms.Tensor(IDS.numpy(), ms.int32)).asnumpy()
    np.testing.assert_allclose(ours, logits(state("new", head), IDS).numpy(), rtol=0, atol=2e-5)


def to_hugging_face(held) -> dict[str, torch.Tensor]:
    """What UER-py's converter writes, without its mask buffers and the tied head: written out by hand."""
    made = {
        "wte.weight": held["embedding.word.embedding.weight"],
        "wpe.weight": held["embedding.pos.embedding.weight"],
        "ln_f.weight": held["encoder.layer_norm.gamma"],
        "ln_f.bias": held["encoder.layer_norm.beta"],
    }
    for i in range(L):
        theirs, ours = f"encoder.transformer.{i}.", f"h.{i}."
        attention = [f"{theirs}self_attn.linear_layers.{n}" for n in range(3)]
        made[f"{ours}attn.c_attn.weight"] = torch.cat([held[f"{name}.weight"] for name in attention]).T
        made[f"{ours}attn.c_attn.bias"] = torch.cat([held[f"{name}.bias"] for name in attention])
        pairs = {
            "attn.c_proj": "self_attn.final_linear",
            "mlp.c_fc": "feed_forward.linear_1",
            "mlp.c_proj": "feed_forward.linear_2",
        }
        for name, linear in pairs.items():
            made[f"{ours}{name}.weight"] = held[f"{theirs}{linear}.weight"].T
            made[f"{ours}{name}.bias"] = held[f"{theirs}{linear}.bias"]
        for n in (1, 2):
            made[f"{ours}ln_{n}.weight"] = held[f"{theirs}layer_norm_{n}.gamma"]
            made[f"{ours}ln_{n}.bias"] = held[f"{theirs}layer_norm_{n}.beta"]
    return {f"transformer.{name}": tensor for name, tensor in made.items()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A Hugging Face folder of the model of UER-py."""
    folder = tmp_path_factory.mktemp("uer")
    convert(write_model(folder, state()), folder / "hf")
    return folder / "hf"


def test_uer_to_hugging_face_as_uers_own_converter(copied):
    model, info = transformers.GPT2LMHeadModel.from_pretrained(copied, output_loading_info=True)
    assert not any(info.values())
    held = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    wanted = to_hugging_face(state())
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())
    config = json.loads((copied / "config.json").read_text())
    assert config["layer_norm_epsilon"] == 1e-5 and config["activation_function"] == "gelu_new"
    assert config["mindgpt"]["layer_norm_conversion"] == "copy" and config["mindgpt"]["layer_norm"] == "standard"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, 3, 0)


def test_a_checkpoint_with_uers_norms_to_hugging_face_is_the_same_folder(tmp_path, copied):
    """By default the norms are copied from there, too."""
    convert(write_model(tmp_path / "a", state()), tmp_path / "b" / "x.ckpt")
    assert open_weights(tmp_path / "b" / "x.ckpt").config.layer_norm == "uer"
    convert(tmp_path / "b" / "x.ckpt", tmp_path / "hf")
    for name in sorted(os.listdir(copied)):
        assert (tmp_path / "hf" / name).read_bytes() == (copied / name).read_bytes(), name


def test_the_tokenizer_of_the_folder_opens_in_transformers(copied):
    tokenizer = transformers.BertTokenizer.from_pretrained(copied)
    assert tokenizer("t1 t2")["input_ids"] == [2, 6, 7, 3]
    assert isinstance(transformers.AutoTokenizer.from_pretrained(copied), transformers.BertTokenizer)


def test_hugging_face_to_ckpt_to_hugging_face_is_bit_for_bit(tmp_path, copied):
    convert(copied, tmp_path / "x.ckpt")
    convert(tmp_path / "x.ckpt", tmp_path / "back")
    for name in sorted(os.listdir(copied)):
        assert (tmp_path / "back" / name).read_bytes() == (copied / name).read_bytes(), name


def test_hugging_face_back_to_uer_is_bit_for_bit(tmp_path, copied):
    convert(copied, tmp_path / "model.bin", "--target_format", "uer")
    assert_same(tmp_path / "model.bin", state())
    assert json.loads((tmp_path / "config.json").read_text()) == JSON


def test_folded_norms_compute_what_uer_computes(tmp_path):
    """transformers' model against UER-py's formulas."""
    convert(write_model(tmp_path / "a", state()), tmp_path / "folded", "--layer_norm", "folded")
    convert(tmp_path / "a" / "model.bin", tmp_path / "copy", "--layer_norm", "copy")
    wanted = logits(state(), IDS)
    differences = {}
    for way in ("folded", "copy"):
        model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / way).eval()
        differences[way] = (model(IDS).logits - wanted).abs().max().item()
    assert differences["folded"] < 2e-5 < 1e-2 < differences["copy"]


def test_the_eps_of_tencentpretrain_survives(tmp_path):
    """`layernorm_eps` of its JSON; UER-py has no such setting."""
    with_eps = JSON | {"layernorm_eps": 1e-5}
    convert(write_model(tmp_path / "a", state(), with_eps), tmp_path / "x.ckpt")
    assert open_weights(tmp_path / "x.ckpt").config.layernorm_epsilon == 1e-5
    convert(tmp_path / "x.ckpt", tmp_path / "b" / "back.bin", "--target_format", "tencentpretrain")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == with_eps
    ours = open_weights(tmp_path / "x.ckpt").config  # beside UER-py's weights, our own config says it, too
    (tmp_path / "b" / "config.json").write_text(json.dumps(ours.to_hf_dict()))
    assert open_weights(tmp_path / "b" / "back.bin").config.layernorm_epsilon == 1e-5


def test_going_back_unfolds(tmp_path):
    convert(write_model(tmp_path / "a", state()), tmp_path / "folded.ckpt", "--layer_norm", "folded")
    config = open_weights(tmp_path / "folded.ckpt").config
    assert (config.layer_norm, config.layer_norm_conversion, config.layernorm_epsilon) == ("standard", "folded", 1e-7)
    convert(tmp_path / "folded.ckpt", tmp_path / "back.bin", "--target_format", "uer")
    held, folded = torch.load(tmp_path / "back.bin"), open_weights(tmp_path / "folded.ckpt").source
    gamma = folded.read("backbone.layernorm.gamma")
    torch.testing.assert_close(torch.from_numpy(gamma), state()["encoder.layer_norm.gamma"] * ((H - 1) / H) ** 0.5)
    for name, tensor in state().items():
        if name.endswith(".gamma"):  # to one unit in the last place
            torch.testing.assert_close(held[name], tensor, rtol=1.3e-7, atol=0)
        else:
            assert torch.equal(held[name], tensor), name


def test_a_published_folder_with_uers_arithmetic(tmp_path, copied):
    convert(copied, tmp_path / "x.ckpt", "--layer_norm", "uer")
    weights = open_weights(tmp_path / "x.ckpt")
    assert (weights.config.layer_norm, weights.config.layernorm_epsilon) == ("uer", 1e-6)
    gamma = torch.from_numpy(weights.source.read("backbone.layernorm.gamma"))
    assert torch.equal(gamma, state()["encoder.layer_norm.gamma"])


def test_hugging_faces_gpt2_for_uer(tmp_path, capsys):
    """A GPT-2 that was never UER-py's: folded makes UER-py compute the same."""
    torch.manual_seed(5)
    sizes = {"n_embd": H, "n_layer": L, "n_head": 3, "n_inner": 20, "vocab_size": V, "n_positions": P}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, layer_norm_epsilon=1e-7)).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    model.save_pretrained(tmp_path / "hf")
    capsys.readouterr()
    convert(tmp_path / "hf", tmp_path / "a.bin", "--target_format", "uer")
    hint = "--layer_norm folded makes up for most of that"
    assert hint in capsys.readouterr().out
    convert(tmp_path / "hf", tmp_path / "b.bin", "--target_format", "uer", "--layer_norm", "folded")
    assert hint not in capsys.readouterr().out
    held = torch.load(tmp_path / "a.bin")
    assert torch.equal(held["encoder.layer_norm.gamma"], model.transformer.ln_f.weight.detach())
    torch.testing.assert_close(logits(torch.load(tmp_path / "b.bin"), IDS), model(IDS).logits, rtol=1e-4, atol=2e-5)


def test_a_vocabulary_for_other_weights(tmp_path, copied):
    longer = (copied / "vocab.txt").read_text(encoding="utf-8") + "one more\n"
    (tmp_path / "longer.txt").write_text(longer, encoding="utf-8")
    assert " tokens, and " in refused(tmp_path, copied, tmp_path / "x" / "x.ckpt", "--vocab", tmp_path / "longer.txt")
    convert(copied, tmp_path / "y" / "x.ckpt", "--vocab", copied)
    assert (tmp_path / "y" / "vocab.txt").read_bytes() == (copied / "vocab.txt").read_bytes()


def test_both_generations_in_one_file(tmp_path):
    file = write_model(tmp_path, state("old") | state("new"))
    assert "which name the same weight" in refused(tmp_path, file, tmp_path / "x.ckpt")


def test_folder_of_blocks_and_file_with_a_step(tmp_path):
    """TencentPretrain's convert_model_into_blocks.py; UER-py's <output_model_path>-<step>."""
    held, folder = state(), tmp_path / "blocks"
    folder.mkdir()
    names = list(held)
    files = {name: f"tencentpretrain_model-{number // 20}.bin" for number, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: held[name] for name in names if files[name] == file}, folder / file)
    index = {"weight_map": files, "metadata": {"total_size": 2 * 3316}}
    (folder / "tencentpretrain_model.bin.index.json").write_text(json.dumps(index))
    step = tmp_path / "step"
    step.mkdir()
    torch.save(held, step / "model.bin-250000")
    for path in (folder, step / "model.bin-250000", step):
        source = open_weights(path).source
        wanted = open_weights(write_model(tmp_path / "whole", held)).source
        assert source.entries == wanted.entries
        assert all((source.read(name) == wanted.read(name)).all() for name in wanted.entries)


def test_several_files_in_a_folder_are_listed(tmp_path):
    for name in ("model.bin-1000", "model.bin-2000", "training_args.bin"):
        torch.save(state(), tmp_path / name)
    with pytest.raises(UserError, match=r"Found model.bin-1000, model.bin-2000: name the file you mean"):
        open_weights(tmp_path)


def test_source_format_is_checked(tmp_path, copied):
    file = write_model(tmp_path, state())
    assert "have UER-py" in refused(tmp_path, file, tmp_path / "x.ckpt", "--source_format", "huggingface")
    no_folder = "--source_format deepspeed: it is no folder of DeepSpeed"
    assert no_folder in refused(tmp_path, file, tmp_path / "x.ckpt", "--source_format", "deepspeed")
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(4, 2)}, tmp_path / "bert.bin")
    assert no_folder in refused(tmp_path, tmp_path / "bert.bin", tmp_path / "x.ckpt", "--source_format", "deepspeed")
    convert(file, tmp_path / "x.ckpt", "--source_format", "tencentpretrain")
    wanted = refused(tmp_path, copied, tmp_path / "y.ckpt", "--source_format", "uer")
    assert "have Hugging Face's names" in wanted


TO_UER = "--output_path b.bin --target_format uer"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--torch_path a --output_path b", "give --torch_path and --mindspore_path, or --input_path"),
        ("--torch_path a --mindspore_path b.ckpt --target_format uer", "is what is written here"),
        ("--input_path a --output_path b --reversed", "--reversed is for"),
        (f"--input_path {{uer}} {TO_UER} --layer_norm folded", "arithmetic already"),
        (f"--input_path {{hf}} {TO_UER} --layer_norm uer", "have the standard"),
        ("--input_path {uer} --output_path folder --target_format uer", "ends in .bin"),
    ],
)
def test_what_the_command_line_refuses(tmp_path, monkeypatch, copied, words, says):
    monkeypatch.chdir(tmp_path)
    uer = write_model(tmp_path / "uer", state())
    with pytest.raises(UserError, match=says):
        convert_weight.main(words.format(uer=uer, hf=copied).split())
    assert sorted(os.listdir(tmp_path)) == ["uer"]


def test_reversed_with_a_target_format(tmp_path):
    write_model(tmp_path / "a", state())
    convert(tmp_path / "a", tmp_path / "x.ckpt")
    words = ["--reversed", "--mindspore_path", "x.ckpt", "--torch_path", "y.bin", "--target_format", "tencentpretrain"]
    convert_weight.main([str(tmp_path / word) if word[1:2] == "." else word for word in words])
    assert_same(tmp_path / "y.bin", state())
    assert json.loads((tmp_path / "y.config.json").read_text()) == JSON  # config.json is that of x.ckpt
    assert open_weights(tmp_path / "y.bin").config == open_weights(tmp_path / "x.ckpt").config


def test_output_of_zero_to_fp32_that_is_a_folder(tmp_path):
    """DeepSpeed since 0.15.3: the card's `zero_to_fp32.py DIR model.bin` makes a folder model.bin."""
    folder = tmp_path / "model.bin"
    folder.mkdir()
    torch.save(state(), folder / "pytorch_model.bin")
    convert(folder, tmp_path / "x.ckpt", "--vocab", write_model(tmp_path / "a", state()).parent, "--num_heads", 3)
    config = open_weights(tmp_path / "x.ckpt").config
    assert (config.num_heads, config.eos_token_id) == (3, 3)
    assert (tmp_path / "vocab.txt").read_bytes() == (tmp_path / "a" / "vocab.txt").read_bytes()


def test_a_hugging_face_config_beside_uers_weights(tmp_path, copied):
    """It gives heads and activation; the arithmetic is that of the weights."""
    file = write_model(tmp_path, state(), json.loads((copied / "config.json").read_text()))
    config = open_weights(file).config
    assert (config.num_heads, config.layer_norm, config.layer_norm_conversion) == (3, "uer", "uer")
    assert config.layernorm_epsilon == 1e-6
    other = json.loads((copied / "config.json").read_text()) | {"n_layer": 12}
    message = refused(tmp_path, write_model(tmp_path, state(), other), tmp_path / "x.ckpt")
    assert "num_layers is 12, the weights have 2" in message


def test_a_config_of_uer_for_other_weights_is_refused(tmp_path, copied):
    """Read as transformers reads a config.json, it would be a GPT-2 of 12 layers and 50257 tokens."""
    config = write_model(tmp_path, state()).with_name("config.json")
    with pytest.raises(UserError, match="is a config of UER-py or TencentPretrain"):
        GPT2Config.from_pretrained(config)
    assert "is a config of UER-py" in refused(tmp_path, copied, tmp_path / "x.ckpt", "--config", config)


class Shapes:
    """A source of the published sizes, none of whose tensors is read."""

    def __init__(self, path, layers, hidden, positions=1024, vocabulary=21128):
        self.path = path
        sizes = {V: vocabulary, P: positions, H: hidden, 20: 4 * hidden}
        self.entries = {}
        for name, tensor in state(head="missing").items():
            info = TensorInfo(tuple(sizes[size] for size in tensor.shape), "float32")
            for layer in range(layers) if name.startswith("encoder.transformer.0.") else ():
                self.entries[name.replace(".0.", f".{layer}.", 1)] = info
            if "encoder.transformer." not in name:
                self.entries[name] = info


@pytest.mark.parametrize(
    ("file", "layers", "hidden", "heads", "parameters"),
    [
        ("distil_config.json", 6, 768, 12, 59_541_504),
        ("config.json", 12, 768, 12, 102_068_736),
        ("medium_config.json", 24, 1024, 16, 324_995_072),
        ("large_config.json", 36, 1280, 20, 736_744_960),
        ("xlarge_config.json", 48, 1600, 25, 1_511_004_800),
    ],
)
def test_the_five_published_sizes(tmp_path, shared_data, file, layers, hidden, heads, parameters):
    view = UERView(Shapes(tmp_path / "model.bin", layers, hidden))
    vocabulary = shared_data / "zh" / "google_zh_vocab.txt"
    found = config_of_uer(view, str(shared_data / "uer" / file), vocabulary)
    assert (found.config.num_heads, found.config.num_parameters()) == (heads, parameters)
    assert (found.config.bos_token_id, found.config.eos_token_id, found.config.pad_token_id) == (101, 102, 0)
    assert found.notes == []
    assert config_of_uer(view).config.num_heads == heads  # from the width alone


def test_heads_of_published_sizes_follow_from_the_width(tmp_path):
    generator = torch.Generator().manual_seed(1)
    wide = {
        name: torch.randn([{H: 128}.get(size, size) for size in tensor.shape], generator=generator)
        for name, tensor in state(head="missing").items()
    }
    weights = open_weights(write_model(tmp_path, wide, None))
    assert weights.config.num_heads == 2 and weights.assumed == ("num_heads", "hidden_act")
    assert "2 heads are assumed, of 64 values" in weights.notes[0]


def test_a_run_takes_the_file_and_its_own_number_of_heads(tmp_path, unfused):
    file = write_model(tmp_path, state(), None, vocabulary=False)
    (tmp_path / "run.yaml").write_text("model: {model_config: {hidden_size: 12, num_layers: 2, num_heads: 3}}")
    sizes = {"ffn_hidden_size": 20, "vocab_size": V, "max_position_embeddings": P}
    values = {"run_mode": "predict", "load_checkpoint": str(file)}
    values |= {f"model.model_config.{key}": value for key, value in sizes.items()}
    model, config = build_model(load_config(tmp_path / "run.yaml", values)[0])
    assert (config.model.config.layer_norm, config.model.config.layernorm_epsilon) == ("uer", 1e-6)
    ours = model.set_train(False)(ms.Tensor(IDS.numpy(), ms.int32)).asnumpy()
    np.testing.assert_allclose(ours, logits(state(), IDS).numpy(), rtol=0, atol=2e-5)
