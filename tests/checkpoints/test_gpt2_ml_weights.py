"""Weights of GPT2_ML in and out, by the conversion program and `from_pretrained`.

The oracle is the network from its formulas.
"""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import mindspore as ms
import numpy as np
import pytest
import torch

from mindgpt import GPT2ForSequenceClassification, GPT2LMHeadModel
from mindgpt.checkpoints.crc32c import masked_crc32c
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.loading import load_tokenizer
from tests.checkpoints.gpt2_ml_files import (
    CONFIG,
    TOKENS,
    WEIGHTS,
    L,
    P,
    V,
    convert,
    refused,
    write_model,
    write_vocabulary,
)
from tests.checkpoints.tensorflow_files import CODES, Stored, entry, header, write_table
from tests.models.gpt2_ml_reference import reference_logits, under_our_names

OURS = under_our_names(WEIGHTS, L)
IDS = np.random.default_rng(1).integers(0, V, (2, P)).astype(np.int32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model in all its formats, each converted from the one before."""
    base = tmp_path_factory.mktemp("gpt2_ml")
    convert(write_model(base / "tf"), base / "a" / "x.ckpt")
    convert(base / "a" / "x.ckpt", base / "port", "--target_format", "gpt2_ml_torch")
    convert(base / "port", base / "b" / "x.ckpt")
    convert(base / "b" / "x.ckpt", base / "hf")
    convert(base / "hf", base / "c" / "x.ckpt", "--source_format", "gpt2_ml")
    return base


def test_from_tensorflow_through_all_formats_bit_for_bit(made):
    held = {name: value.asnumpy() for name, value in ms.load_checkpoint(str(made / "a" / "x.ckpt")).items()}
    assert held.keys() == OURS.keys()
    for name, array in OURS.items():
        assert held[name].dtype == np.float32 and held[name].tobytes() == array.tobytes(), name
    for folder in ("b", "c"):
        for name in ("config.json", "tokenizer_config.json", "vocab.txt", "x.ckpt"):
            assert (made / folder / name).read_bytes() == (made / "a" / name).read_bytes(), name
    assert (made / "a" / "vocab.txt").read_bytes() == (made / "tf" / "vocab.txt").read_bytes()


def test_what_lies_in_each_folder(made):
    beside = ["config.json", "tokenizer_config.json", "vocab.txt"]
    for folder, weights in (("a", "x.ckpt"), ("port", "pytorch_model.bin"), ("hf", "model.safetensors")):
        assert sorted(os.listdir(made / folder)) == sorted([*beside, weights])


def test_the_state_dict_of_the_port(made):
    """The names and buffers of its `GPT2Model`, as its converter writes them."""
    held = torch.load(made / "port" / "pytorch_model.bin", weights_only=True)
    norms = [f"ln_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    linears = [f"{name}.{part}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
               for part in ("weight", "bias")]  # fmt: skip
    names = ["wte.weight", "wpe.weight", "emb_norm.weight", "emb_norm.bias"]
    for i in range(L):
        names += [f"h.{i}.{name}" for name in (*norms, *linears, "attn.bias", "attn.masked_bias")]
    assert sorted(held) == sorted(names)
    mask = held[f"h.{L - 1}.attn.bias"]
    assert mask.dtype == torch.uint8 and torch.equal(mask, torch.ones(1, 1, P, P, dtype=torch.uint8).tril())
    assert held["h.0.attn.masked_bias"].shape == () and held["h.0.attn.masked_bias"] == -1e4
    columns = [WEIGHTS[f"newslm/layer01/{name}_layer/kernel"] for name in ("query", "key", "value")]
    assert np.array_equal(held["h.1.attn.c_attn.weight"].numpy(), np.concatenate(columns, axis=1))
    assert np.array_equal(held["h.0.ln_1.bias"].numpy(), WEIGHTS["newslm/layer00/LayerNorm_mlp_ln0/beta"])
    config = json.loads((made / "port" / "config.json").read_text())
    assert config == {
        "vocab_size": V, "n_positions": P, "n_ctx": P, "n_embd": 32, "n_layer": L, "n_head": 4, "model_type": "gpt2",
        "activation_function": "gelu", "resid_pdrop": 0.1, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.014142135623731,
    }  # fmt: skip


def test_every_format_is_the_same_model(made):
    """Opened as it is, whatever of it is named."""
    expected = open_weights(made / "a" / "x.ckpt")
    assert expected.config.variant == "gpt2_ml" and expected.config.prompt_special_tokens == "none"
    prefix = made / "tf" / "model.ckpt-100000"
    of_tensorflow = (made / "tf", prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001")
    for path in (*of_tensorflow, made / "port", made / "port" / "pytorch_model.bin", made / "hf"):
        weights = open_weights(path)
        assert weights.kind == "gpt2_ml" and weights.config == expected.config and weights.assumed == ()
        assert weights.source.entries == expected.source.entries
        for name, array in OURS.items():
            assert weights.source.read(name).tobytes() == array.tobytes(), name


def test_logits_are_those_of_the_formulas(made, unfused):
    logits = GPT2LMHeadModel.from_pretrained(made / "tf")(ms.Tensor(IDS)).asnumpy()
    np.testing.assert_allclose(logits, reference_logits(WEIGHTS, CONFIG, IDS), rtol=0, atol=1e-4)


def test_a_folder_of_shards_and_of_one_file_are_the_same(tmp_path, made):
    prefix = write_model(tmp_path / "tf", shards=3, snappy=False, per_block=40)
    convert(prefix, tmp_path / "x" / "x.ckpt")
    assert (tmp_path / "x" / "x.ckpt").read_bytes() == (made / "a" / "x.ckpt").read_bytes()


def test_what_was_skipped_is_counted(made, tmp_path, capsys):
    convert(made / "tf", tmp_path / "x.ckpt")
    printed = capsys.readouterr().out
    # 14 matrices have two slots each, 22 vectors one
    assert "skipped: 50 x optimizer state\nskipped: 1 x training counter\n" in printed
    assert "36 tensors, 28,160 parameters, 2 layers, float32\n" in printed
    convert(made / "port", tmp_path / "y.ckpt")
    assert f"skipped: {2 * L} x causal-mask buffer\n" in capsys.readouterr().out


def test_the_tokenizer_reads_as_bert4keras_does(made):
    settings = json.loads((made / "hf" / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is True and settings["rules"] == "bert4keras"
    for folder in ("a", "port", "hf"):
        assert load_tokenizer(made / folder)("T1 t2")["input_ids"] == [6, 7]


def test_a_vocabulary_that_is_named_for_weights_of_a_run(made, tmp_path, capsys):
    """A run's checkpoint has none beside it; the table has two rows more than the vocabulary has lines."""
    weights = tmp_path / "run" / "x.ckpt"
    weights.parent.mkdir()
    for name in ("x.ckpt", "config.json"):
        shutil.copy(made / "a" / name, weights.with_name(name))
    vocabulary = made / "tf" / "vocab.txt"
    for target, more in (("hf", ()), ("port", ("--target_format", "gpt2_ml_torch"))):
        convert(weights, tmp_path / target, "--vocab", vocabulary, *more)
        assert (tmp_path / target / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    only_mindgpt, only_port = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "only mindgpt opens this folder" in only_mindgpt and "the port's own classes" in only_port
    assert load_tokenizer(tmp_path / "hf").rules == "bert4keras"
    longer = write_vocabulary(tmp_path / "longer", [*TOKENS, "a", "b", "c"])
    message = refused(weights, tmp_path / "new", "--vocab", longer)
    assert f"has {len(TOKENS) + 3} tokens, and" in message


def test_settings_of_a_tokenizer_that_are_there_stay(made, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    convert(made / "tf", tmp_path / "x.ckpt")
    assert (tmp_path / "tokenizer_config.json").read_text() == '{"do_lower_case": false}'


def test_the_vocabulary_of_another_model_gets_no_rules(made, tmp_path, capsys):
    """A tokenizer_config.json would take the special tokens from a model whose vocab.txt lay there before."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nother\n")
    convert(made / "tf", tmp_path / "x.ckpt")
    assert "vocab.txt differs from" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["config.json", "vocab.txt", "x.ckpt"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_point_types(tmp_path, capsys, dtype):
    if dtype == "bfloat16":
        kept = {name: (array.view(np.uint32) >> 16 << 16).view(np.float32) for name, array in WEIGHTS.items()}
        stored = {
            name: Stored(CODES[dtype], array.shape, (array.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            for name, array in kept.items()
        }
    else:
        stored = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
        kept = {name: array.astype(np.float32) for name, array in stored.items()}
    convert(write_model(tmp_path / "tf", weights=stored), tmp_path / "x.ckpt")
    assert f"float32 (was {dtype})" in capsys.readouterr().out
    source = open_weights(tmp_path / "x.ckpt").source
    for name, array in under_our_names(kept, L).items():
        assert source.read(name).tobytes() == array.tobytes(), name


def test_half_precision_out(made, tmp_path):
    convert(made / "tf", tmp_path / "hf", "--dtype", "float16")
    source = open_weights(tmp_path / "hf").source
    for name, array in OURS.items():
        assert source.read(name).tobytes() == array.astype(np.float16).tobytes(), name


def test_a_number_too_large_is_named(tmp_path):
    large = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    large["newslm/layer01/output/bias"][3] = 1e300
    message = refused(write_model(tmp_path / "tf", weights=large), tmp_path / "x.ckpt")
    assert "backbone.blocks.1.output.projection.bias: 1 of its values are too large for float32" in message


def test_a_classifier_goes_to_a_folder_and_back(tmp_path, made):
    """Only mindgpt has one, so its folder has transformers' name for the head."""
    config = CONFIG.replaced({"num_labels": 3})
    values = {**OURS, "score.weight": np.random.default_rng(2).normal(size=(3, 32)).astype(np.float32)}
    model = GPT2ForSequenceClassification(config)
    ms.load_param_into_net(model, {name: ms.Parameter(ms.Tensor(array), name=name) for name, array in values.items()})
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf")
    source = open_weights(tmp_path / "hf").source
    assert {name: source.read(name).tobytes() for name in source.entries} == {
        name: array.tobytes() for name, array in values.items()
    }
    message = refused(tmp_path / "ours", tmp_path / "port", "--target_format", "gpt2_ml_torch")
    assert "is a classifier, and the PyTorch port of GPT2_ML has no classification head" in message


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 of the same sizes."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(CONFIG.replaced({"variant": "gpt2"})).save_pretrained(folder)
    return folder


def test_formats_without_such_a_network(made, gpt2, tmp_path):
    for folder in ("tf", "hf"):
        for name in ("uer", "tencentpretrain"):
            message = refused(made / folder, tmp_path / "x.bin", "--target_format", name)
            assert "holds the weights of a GPT2_ML, a network that neither UER-py nor TencentPretrain has" in message
    message = refused(gpt2, tmp_path / "port", "--target_format", "gpt2_ml_torch")
    assert "holds the weights of a GPT-2, and the PyTorch port of GPT2_ML has another network" in message
    for change, name in (({"layer_norm": "uer"}, "layer_norm 'uer'"), ({"hidden_act": "silu"}, "hidden_act silu")):
        CONFIG.replaced(change).save_pretrained(tmp_path / "other")
        more = ("--target_format", "gpt2_ml_torch", "--config", tmp_path / "other")
        assert f"computes no such model: {name}" in refused(made / "a", tmp_path / "port", *more)


def test_flags_that_make_no_sense(made, tmp_path):
    message = refused(made / "tf", tmp_path / "x.ckpt", "--layer_norm", "folded")
    assert "GPT2_ML's never were UER-py's" in message
    message = refused(made / "tf", tmp_path / "x.ckpt", "--source_format", "huggingface")
    assert "its weights have GPT2_ML's names" in message
    message = refused(made / "tf", tmp_path / "y.ckpt", "--target_format", "gpt2_ml_torch")
    assert "y.ckpt: is not the name of a file of the port. Name a folder, or a file that ends in .bin" in message
    assert "--layers 3" in refused(made / "tf", tmp_path / "x.ckpt", "--layers", 3)
    CONFIG.replaced({"num_labels": 4}).save_pretrained(tmp_path / "port")
    with pytest.raises(UserError, match=r"port/config.json: is the config of another model"):
        convert(made / "a", tmp_path / "port", "--target_format", "gpt2_ml_torch")


def test_an_output_head_of_its_own(tmp_path):
    GPT2LMHeadModel(CONFIG.replaced({"tie_word_embeddings": False})).save_pretrained(tmp_path / "untied")
    message = refused(tmp_path / "untied", tmp_path / "hf")
    assert "a GPT2_ML with an output head of its own (head.weight), for which its folders have no place" in message
    message = refused(tmp_path / "untied", tmp_path / "port", "--target_format", "gpt2_ml_torch")
    assert "computes no such model: tie_word_embeddings False" in message


def test_a_config_of_the_other_variant(made, gpt2, tmp_path):
    """Both are named, whichever is which."""
    for weights, config, held, said in (
        (gpt2 / "model.ckpt", made / "a", "a GPT-2 (variant gpt2)", "a GPT2_ML (variant gpt2_ml)"),
        (made / "a" / "x.ckpt", gpt2, "a GPT2_ML (variant gpt2_ml)", "a GPT-2 (variant gpt2)"),
    ):
        message = refused(weights, tmp_path / "hf", "--config", config)
        assert f"holds the weights of {held}, and {config} is the config of {said}" in message
        copied = tmp_path / weights.name
        copied.mkdir()
        (copied / "model.ckpt").write_bytes(weights.read_bytes())
        (copied / "config.json").write_bytes((config / "config.json").read_bytes())
        with pytest.raises(UserError) as raised:
            GPT2LMHeadModel.from_pretrained(copied)
        assert held in str(raised.value) and said in str(raised.value)


def write_zeros(folder, hidden: int, layers: int, vocabulary: int, positions: int) -> tuple[int, int]:
    """A GPT2_ML of zeros whose data takes no room on the disk. Returns the bytes of all tensors and of the largest."""
    folder.mkdir()
    shapes = {
        "embeddings/word_embed": (vocabulary, hidden),
        "embeddings/pos_embed": (positions, hidden),
        "embeddings/LayerNorm_embed_norm/gamma": (hidden,),
        "embeddings/LayerNorm_embed_norm/beta": (hidden,),
    }
    linears = dict.fromkeys(("query_layer", "key_layer", "value_layer", "context_projection_layer"), (hidden, hidden))
    linears |= {"intermediate": (hidden, 4 * hidden), "output": (4 * hidden, hidden)}
    for layer in range(layers):
        for norm in ("LayerNorm_mlp_ln0", "LayerNorm_mlp_ln1"):
            shapes |= {f"layer{layer:02d}/{norm}/{part}": (hidden,) for part in ("gamma", "beta")}
        for name, shape in linears.items():
            shapes |= {f"layer{layer:02d}/{name}/kernel": shape, f"layer{layer:02d}/{name}/bias": shape[1:]}
    pairs, offset, checksums = [header()], 0, {}
    for name, shape in sorted(shapes.items()):
        size = 4 * int(np.prod(shape))
        if size not in checksums:
            checksums[size] = masked_crc32c(np.zeros(size, np.uint8))
        zeros = Stored(CODES["float32"], shape, b"", checksum=checksums[size])
        pairs.append((f"newslm/{name}".encode(), entry(zeros, 0, offset, size)))
        offset += size
    write_table(folder / "model.ckpt.index", pairs)
    with open(folder / "model.ckpt.data-00000-of-00001", "wb") as file:
        file.truncate(offset)
    return offset, max(checksums)


@pytest.mark.parametrize("target", ["x.ckpt", "hf"])
def test_one_tensor_is_in_memory_at_a_time(tmp_path, target):
    total, largest = write_zeros(tmp_path / "tf", 256, 5, 3000, 64)
    tracemalloc.start()
    convert(tmp_path / "tf", tmp_path / target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest < peak < 2 * largest + (2 << 20) < total / 2, (peak, largest, total)


@pytest.mark.slow
def test_the_published_shape_takes_little_memory(repo, tmp_path):
    """1.39 billion parameters, 5.6 GB, with less than 1 GiB, interpreter included."""
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("needs 8 GB of disk")
    total, _ = write_zeros(tmp_path / "tf", 1536, 48, 21130, 1024)
    assert total == 4 * 1_393_944_576
    measured = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); exit(code)"
    )
    for target, file in (("x.ckpt", "x.ckpt"), ("hf", "hf/model.safetensors")):
        command = [sys.executable, "-c", measured, sys.executable, "mindgpt/models/gpt2/convert_weight.py"]
        words = ["--input_path", tmp_path / "tf", "--output_path", tmp_path / target]
        done = subprocess.run([*command, *words], cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) < 1 << 30
        assert total < (tmp_path / file).stat().st_size < total + (1 << 20)
        (tmp_path / file).unlink()
