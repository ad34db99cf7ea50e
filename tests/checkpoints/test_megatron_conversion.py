"""Conversion from and to ModelScope's GPT-3 by the real program; every round trip is bit for bit."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import transformers

from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_archive import StateDictWriter
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.generation import GenerationSettings
from mindgpt.io.commented_json import read_commented_json
from tests import programs
from tests.checkpoints import uer_models
from tests.checkpoints.megatron_models import (
    BASE,
    CONFIGURATION,
    EPS,
    PARALLEL,
    H,
    P,
    V,
    convert,
    logits,
    ranks_of,
    refused,
    state,
    write_base,
    write_ranks,
)

MODELSCOPE = ("--target_format", "modelscope")
COMMAND = "mindgpt/models/gpt2/convert_weight.py"
GENERATION = {"top_k": 0, "top_p": 0.9, "temperature": 1.0, "tokens_to_generate": 100}  # ModelScope's defaults


def assert_ranks(folder, wanted: list[dict[str, torch.Tensor]]) -> None:
    """The files of a folder `model` are these, bit for bit, and there is nothing else."""
    names = [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(len(wanted))]
    assert sorted(os.listdir(folder)) == names
    for name, shards in zip(names, wanted, strict=True):
        assert_state(folder / name, shards)


def assert_state(file, wanted) -> None:
    for mapped in (False, True):
        held = torch.load(file, weights_only=True, mmap=mapped)
        assert list(held) == list(wanted)
        for name, tensor in wanted.items():
            assert held[name].dtype == tensor.dtype
            assert torch.equal(held[name], tensor), name


def in_order(held: dict[str, torch.Tensor], layout="parallel") -> dict[str, torch.Tensor]:
    """The weights in the order of ModelScope's modules, which the file has."""
    return {name: held[name] for name in sorted(held, key=_place)}


def _place(name: str) -> tuple[int, int, str]:
    parts = ("word_emb", "position_emb", "input_layernorm", "query_key_value", "attention.dense", "post_attention",
             "h_to_4h", "4h_to_h", "final_layernorm")  # fmt: skip
    layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else 99 * ("final" in name) - 1
    return (
        layer,
        next(i for i, part in enumerate(parts) if part in name),
        {"weight": "a", "bias": "b"}[name.split(".")[-1]],
    )


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_merge_and_split_bit_for_bit(tmp_path, count):
    """One rank to `count`, and these to a .ckpt and back to one."""
    held = in_order(state())
    one = write_ranks(tmp_path / "one", [held])
    convert(one, tmp_path / "split", *MODELSCOPE, "--tensor_parallel", count)
    assert_ranks(tmp_path / "split/model", ranks_of(held, count))
    convert(tmp_path / "split", tmp_path / "ours/x.ckpt")
    convert(tmp_path / "ours/x.ckpt", tmp_path / "merged", *MODELSCOPE)
    assert_ranks(tmp_path / "merged/model", [held])
    assert open_weights(tmp_path / "split").config == open_weights(one).config
    assert open_weights(tmp_path / "merged").config == open_weights(one).config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_kept_unless_another_is_asked_for(tmp_path, dtype):
    held = in_order(state(dtype=dtype))
    folder = write_ranks(tmp_path / "x", ranks_of(held, 2))
    convert(folder, tmp_path / "four", *MODELSCOPE, "--tensor_parallel", 4)
    assert_ranks(tmp_path / "four/model", ranks_of(held, 4))
    convert(folder, tmp_path / "half", *MODELSCOPE, "--dtype", "float16")
    assert_ranks(tmp_path / "half/model", [{name: tensor.half() for name, tensor in held.items()}])
    convert(folder, tmp_path / "x.ckpt")
    assert {info.dtype for info in open_weights(tmp_path / "x.ckpt").source.entries.values()} == {"float32"}


def test_hugging_face_folder_and_back(tmp_path, capsys):
    held = in_order(state())
    ranks = ranks_of(held, 2)
    folder = write_ranks(tmp_path / "x", ranks)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    convert(folder, tmp_path / "hf")
    assert "merged from 2 tensor-parallel ranks" in capsys.readouterr().out
    assert (tmp_path / "hf/tokenizer.json").read_text() == '{"version": "1.0"}'
    model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(V, (2, P), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        computed = model.eval()(ids).logits
    np.testing.assert_allclose(computed.numpy(), logits(ranks, ids).numpy(), atol=2e-5, rtol=0)
    assert (model.config.eos_token_id, model.config.layer_norm_epsilon) == (7, EPS)
    convert(tmp_path / "hf", tmp_path / "back", *MODELSCOPE, "--tensor_parallel", 2)
    assert_ranks(tmp_path / "back/model", ranks)
    assert open_weights(tmp_path / "back").config == open_weights(folder).config


def test_base_and_large(tmp_path):
    held = in_order(state("base"))
    folder = write_base(tmp_path / "x", {"state_dict": {f"model.{name}": held[name] for name in held}}, BASE)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", *(f"t{n}" for n in range(V - 1))]) + "\n")
    convert(folder, tmp_path / "ours/x.ckpt")
    convert(tmp_path / "ours/x.ckpt", tmp_path / "back", *MODELSCOPE)
    assert_state(tmp_path / "back/pytorch_model.bin", held)
    files = ["config.json", "configuration.json", "pytorch_model.bin", "vocab.txt"]
    assert sorted(os.listdir(tmp_path / "back")) == files
    assert open_weights(tmp_path / "back").config == open_weights(folder).config
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["intermediate_size"] == 4 * H and "ffn_hidden_size" not in written
    configuration = json.loads((tmp_path / "back/configuration.json").read_text())
    assert "megatron" not in configuration and configuration["model"] == {"type": "gpt3"}
    # and in shards, with the exact gelu, if ranks are asked for
    assert "no eos_token_id" in refused(tmp_path, folder, tmp_path / "z", *MODELSCOPE, "--tensor_parallel", 2)
    (folder / "config.json").write_text(json.dumps(BASE | {"eod_id": 5}))
    convert(folder, tmp_path / "shards", *MODELSCOPE, "--tensor_parallel", 2)
    assert json.loads((tmp_path / "shards/config.json").read_text())["bias_gelu_fusion"] is False
    assert len(os.listdir(tmp_path / "shards/model")) == 2


def test_the_files_beside_the_shards(tmp_path, capsys):
    """Keys that mean nothing to us stay; the number of ranks is the new one."""
    config = PARALLEL | {"fp16": True, "hidden_act": "gelu", "top_k": 3, "top_p": 0.0, "pad": [1, {"a": None}]}
    folder = write_ranks(tmp_path / "x", [state()], config)
    convert(folder, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", 2)
    written = json.loads((tmp_path / "y/config.json").read_text())
    defaults = {"bias_gelu_fusion": True, "hidden_dropout": 0.1, "attention_dropout": 0.1, "init_method_std": 0.02}
    assert written == {"model_type": "gpt3", **defaults, **GENERATION, **config}
    sizes = dict.fromkeys(("checkpoint_tensor_model_parallel_size", "world_size", "tensor_model_parallel_size"), 2)
    assert json.loads((tmp_path / "y/configuration.json").read_text()) == {
        "framework": "pytorch",
        "task": "text-generation",
        "preprocessor": {"type": "text-gen-jieba-tokenizer", "sequence_length": 512},
        "model": {"type": "gpt3"},
        "pipeline": {"type": "gpt3-generation"},
        "megatron": {**sizes, "seed": 42},
    }
    assert "was left alone" not in capsys.readouterr().out


def test_comments_in_configuration_json(tmp_path):
    file = tmp_path / "configuration.json"
    file.write_text('{"a": "x # no comment, \\" # none", # one, }\n "b": [1, 2,], # two\n}')
    assert read_commented_json(file) == {"a": 'x # no comment, " # none', "b": [1, 2]}
    file.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(UserError, match=r"configuration.json:2:6: not valid JSON"):
        read_commented_json(file)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, "does not divide num_heads 8, hidden_size 32, vocab_size 64. Allowed for this model: 1, 2, 4, 8."),
        (16, "does not divide num_heads 8. Allowed for this model: 1, 2, 4, 8."),
        (0, "must be a number of ranks. Allowed for this model: 1, 2, 4, 8."),
        (-2, "must be a number of ranks."),
    ],
)
def test_numbers_of_ranks_that_do_not_fit(tmp_path, count, expected):
    folder = write_ranks(tmp_path / "x", [state()])
    assert expected in refused(tmp_path, folder, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", count)


def test_models_that_modelscope_does_not_have(tmp_path, capsys):
    def hugging_face(**changes):
        config = transformers.GPT2Config(
            n_embd=16, n_layer=1, n_head=2, vocab_size=V, n_positions=P, bos_token_id=3, **{"eos_token_id": 3} | changes
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
        return tmp_path / "hf"

    def message(*more, **changes):
        return refused(tmp_path, hugging_face(**changes), tmp_path / "y", *MODELSCOPE, *more)

    assert "hidden_act relu, which must be gelu or gelu_erf" in message(activation_function="relu")
    assert "no eos_token_id, which ModelScope needs as eod_id" in message(eos_token_id=None)
    text = message(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)
    assert "scale_attn_weights False; scale_attn_by_inverse_layer_idx True" in text
    assert "uses the token embedding as its head" in message(tie_word_embeddings=False)
    assert "(--target_format modelscope)" in refused(
        tmp_path, hugging_face(), tmp_path / "x.ckpt", "--tensor_parallel", 2
    )
    assert "--source_format modelscope: its weights have Hugging Face's" in message("--source_format", "modelscope")
    (hugging_face() / "merges.txt").write_text("")
    (tmp_path / "hf" / "vocab.json").write_text("{}")
    capsys.readouterr()
    convert(tmp_path / "hf", tmp_path / "gpt2", *MODELSCOPE)
    assert "is byte-level BPE, and ModelScope opens a GPT-3 of this form with jieba" in capsys.readouterr().out
    written = json.loads((tmp_path / "gpt2/config.json").read_text())
    assert (written["eod_id"], written["ffn_hidden_size"], written["layernorm_epsilon"]) == (3, 64, 1e-5)
    assert (written["top_k"], written["top_p"]) == (1, 0.0)  # a GPT-2 of Hugging Face is greedy by default
    wanted = open_weights(tmp_path / "hf").config
    found = open_weights(tmp_path / "gpt2").config
    assert not GenerationSettings.from_config(found).samples  # nor is this
    of_generation = ("prompt_special_tokens", "max_new_tokens", "do_sample", "top_k", "exclusive_filters")
    assert found == wanted.replaced({name: getattr(found, name) for name in (*of_generation, "bos_token_id")})


def test_weights_of_uer_need_the_standard_layer_norm(tmp_path):
    file = uer_models.write_model(tmp_path / "uer", uer_models.state())
    assert "layer_norm 'uer': pass --layer_norm copy or folded" in refused(tmp_path, file, tmp_path / "y", *MODELSCOPE)
    convert(file, tmp_path / "y", *MODELSCOPE, "--layer_norm", "copy")
    convert(file, tmp_path / "z", "--layer_norm", "copy")
    ours, theirs = open_weights(tmp_path / "z").source, open_weights(tmp_path / "y").source
    for name in ours.entries:
        np.testing.assert_array_equal(theirs.read(name), ours.read(name), err_msg=name)


def test_a_vocabulary_that_is_named_may_be_shorter_than_the_table(tmp_path):
    folder = write_base(tmp_path / "x", state("base"))
    for count in (V - 5, V + 1):
        (tmp_path / f"{count}.txt").write_text("\n".join(f"t{n}" for n in range(count)) + "\n")
    convert(folder, tmp_path / "y", *MODELSCOPE, "--vocab", tmp_path / f"{V - 5}.txt")
    assert (tmp_path / "y/vocab.txt").read_text() == (tmp_path / f"{V - 5}.txt").read_text()
    message = refused(tmp_path, folder, tmp_path / "z", *MODELSCOPE, "--vocab", tmp_path / f"{V + 1}.txt")
    assert f"has {V + 1} tokens, and" in message
    assert "--num_heads is for weights of UER-py" in refused(
        tmp_path, folder, tmp_path / "z", *MODELSCOPE, "--num_heads", 8
    )


def test_folders_that_cannot_be_written(tmp_path):
    folder = write_ranks(tmp_path / "x", [state()])
    convert(folder, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", 4)
    shutil.copytree(tmp_path / "y", tmp_path / "z")
    convert(folder, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", 4)  # the same again
    message = refused(tmp_path, folder, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", 2)
    assert "holds mp_rank_02_model_states.pt, mp_rank_03_model_states.pt, and ModelScope counts every file" in message
    other = write_ranks(tmp_path / "other", [state()], PARALLEL | {"eod_id": 8})
    message = refused(tmp_path, other, tmp_path / "y", *MODELSCOPE, "--tensor_parallel", 4)
    assert "config.json: is the config of another model" in message
    (tmp_path / "file").write_text("x")
    assert "is a file, and ModelScope's weights are a folder" in refused(
        tmp_path, folder, tmp_path / "file", *MODELSCOPE
    )
    message = refused(tmp_path, folder, tmp_path / "new.ckpt", *MODELSCOPE)
    assert "new.ckpt: is the name of a file, and ModelScope's weights are a folder" in message
    (tmp_path / "z/pytorch_model.bin").write_bytes(b"x")
    assert "holds other weights" in refused(tmp_path, folder, tmp_path / "z", *MODELSCOPE, "--tensor_parallel", 4)


def test_archives_are_those_of_torch(tmp_path):
    """Names, dtypes and bytes as `torch.save` writes them, data at multiples of 64 bytes, and a sound zip file."""
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(4, 2, 3).bfloat16(),
        "double": torch.randn(7).double(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
    }
    entries = {name: TensorInfo(tuple(tensor.shape), str(tensor.dtype)[6:]) for name, tensor in tensors.items()}
    with open(tmp_path / "x.pt", "wb") as file, StateDictWriter(file, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    assert_state(tmp_path / "x.pt", tensors)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            header = (tmp_path / "x.pt").read_bytes()[entry.header_offset :][:30]
            name, extra = (int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_the_command_from_another_folder(repo, tmp_path):
    write_ranks(tmp_path / "x", ranks_of(state(), 2))
    words = ["--input_path", "x", "--output_path", "y", *MODELSCOPE, "--tensor_parallel", "4"]
    done = programs.run([sys.executable, repo / COMMAND, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote y/model, 4 files: 28 tensors, 23,744 parameters, 2 layers, float32" in done.stdout
    assert sorted(os.listdir(tmp_path / "y")) == ["config.json", "configuration.json", "model"]
    assert (tmp_path / "x/configuration.json").read_text() == CONFIGURATION


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x.ckpt", "hf", "shards"])
def test_memory_is_for_one_tensor(repo, tmp_path, target):
    """From 4 ranks, 0.5 GB in all: twice the largest tensor at most, beyond what the same takes for a tiny model."""
    size, vocabulary = 1024, 65536

    def write(folder, hidden, rows, layers):
        config = PARALLEL | {"vocab_size": rows, "hidden_size": hidden, "num_hidden_layers": layers}
        held = {
            "language_model.embedding.word_embeddings.weight": torch.randn(rows, hidden),
            "language_model.embedding.position_embeddings.weight": torch.randn(P, hidden),
        }
        one = {name: tensor for name, tensor in state().items() if ".layers.0." in name or "final" in name}
        for i in range(layers):
            for name, tensor in one.items():
                shape = [
                    dict(zip((H, 3 * H, 96), (hidden, 3 * hidden, 3 * hidden), strict=True))[n] for n in tensor.shape
                ]
                held[name.replace(".layers.0.", f".layers.{i}.")] = torch.randn(shape)
        return write_ranks(folder, ranks_of(held, 4), config | {"ffn_hidden_size": 3 * hidden})

    measured = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); exit(code)"
    )
    more = [*MODELSCOPE, "--tensor_parallel", "8"] if target == "shards" else []
    peaks = []
    for folder in (write(tmp_path / "tiny", 32, 64, 1), write(tmp_path / "big", size, vocabulary, 6)):
        command = [sys.executable, COMMAND, "--input_path", folder, "--output_path", folder / "to" / target, *more]
        done = subprocess.run([sys.executable, "-c", measured, *command], cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    largest = vocabulary * size * 4
    print(f"interpreter {peaks[0] >> 20} MiB, peak {peaks[1] >> 20} MiB, largest tensor {largest >> 20} MiB")
    assert peaks[1] - peaks[0] < 2 * largest
