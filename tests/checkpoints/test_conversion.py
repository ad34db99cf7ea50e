"""Hugging Face <-> .ckpt through the real command; the oracle is transformers' own model and state dict."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import mindspore as ms
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from mindgpt.config.errors import run_program
from mindgpt.models.gpt2 import convert_weight
from tests import programs

H, L, F, V, P = 12, 2, 20, 61, 16
COMMAND = "mindgpt/models/gpt2/convert_weight.py"


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, so that no two tensors can be exchanged without a test noticing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tiny(**changes) -> transformers.GPT2Config:
    sizes = {"n_embd": H, "n_layer": L, "n_head": 3, "n_inner": F, "vocab_size": V, "n_positions": P}
    return transformers.GPT2Config(**sizes, bos_token_id=60, eos_token_id=60, **changes)


@pytest.fixture(scope="module")
def model() -> transformers.GPT2LMHeadModel:
    return randomised(transformers.GPT2LMHeadModel(tiny()))


@pytest.fixture
def hf_folder(model, tmp_path):
    """What `save_pretrained` makes of the tiny model, with a tokenizer file beside it."""
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def state(model) -> dict[str, torch.Tensor]:
    """The weights under the names of the hub's gpt2: without prefix, head and buffers."""
    held = {name.removeprefix("transformer."): tensor.clone() for name, tensor in model.state_dict().items()}
    del held["lm_head.weight"]
    return held


def expected(model) -> dict[str, np.ndarray]:
    """What the .ckpt must hold, written out by hand."""
    hf = {name: tensor.numpy() for name, tensor in state(model).items()}
    ours = {
        "backbone.embedding.word_embedding.embedding_table": hf["wte.weight"],
        "backbone.embedding.position_embedding.embedding_table": hf["wpe.weight"],
        "backbone.layernorm.gamma": hf["ln_f.weight"],
        "backbone.layernorm.beta": hf["ln_f.bias"],
    }
    for i in range(L):
        layer, block = f"h.{i}.", f"backbone.blocks.{i}."
        for n, columns in ((1, slice(0, H)), (2, slice(H, 2 * H)), (3, slice(2 * H, 3 * H))):
            ours[f"{block}attention.dense{n}.weight"] = hf[f"{layer}attn.c_attn.weight"][:, columns].T
            ours[f"{block}attention.dense{n}.bias"] = hf[f"{layer}attn.c_attn.bias"][columns]
        for n in (1, 2):
            ours[f"{block}layernorm{n}.gamma"] = hf[f"{layer}ln_{n}.weight"]
            ours[f"{block}layernorm{n}.beta"] = hf[f"{layer}ln_{n}.bias"]
        for part in ("weight", "bias"):
            ours[f"{block}attention.projection.{part}"] = hf[f"{layer}attn.c_proj.{part}"]
            ours[f"{block}output.mapping.{part}"] = hf[f"{layer}mlp.c_fc.{part}"]
            ours[f"{block}output.projection.{part}"] = hf[f"{layer}mlp.c_proj.{part}"]
    return ours


def assert_holds(ckpt, wanted: dict[str, np.ndarray], dtype="float32") -> None:
    held = {name: parameter.asnumpy() for name, parameter in ms.load_checkpoint(str(ckpt)).items()}
    assert held.keys() == wanted.keys()
    for name, array in wanted.items():
        assert held[name].dtype == dtype
        np.testing.assert_array_equal(held[name], array, err_msg=name)


def run(repo, *arguments, cwd=None) -> subprocess.CompletedProcess:
    """The command as a user types it."""
    return programs.run([sys.executable, *arguments], cwd or repo)


def convert(source, ckpt, *more) -> int:
    """The same command inside this process, for the many cases."""
    words = ["--torch_path", str(source), "--mindspore_path", str(ckpt), *map(str, more)]
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: convert_weight.main(words))
    return ended.value.code


def refused(capsys, *arguments) -> str:
    """Run a conversion that must fail; the message."""
    capsys.readouterr()
    assert convert(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_round_trip_from_another_folder(repo, model, hf_folder, tmp_path):
    done = run(
        repo, repo / COMMAND, "--layers", L, "--torch_path", "hf", "--mindspore_path", "out/x.ckpt", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"36 tensors, {count:,} parameters, 2 layers, float32" in done.stdout
    assert "100%" in done.stderr
    assert_holds(tmp_path / "out/x.ckpt", expected(model))
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "merges.txt", "x.ckpt"]

    back = run(repo, "-m", "mindgpt.models.gpt2.convert_weight", "--reversed", "--layers", L,
               "--mindspore_path", tmp_path / "out/x.ckpt", "--torch_path", tmp_path / "back")  # fmt: skip
    assert back.returncode == 0, back.stderr
    assert sorted(os.listdir(tmp_path / "back")) == ["config.json", "merges.txt", "model.safetensors"]
    again, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.randint(V, (2, P), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)


def save_plain_bin(model, folder):
    torch.save(state(model), folder / "w.bin")
    return folder / "w.bin"


def save_bin_from_before_torch_1_6(model, folder):
    """As the hub's gpt2 is: no zip archive, no prefix, mask buffers inside."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, P, P).tril() for i in range(L)}
    torch.save(masks | state(model), folder / "w.bin", _use_new_zipfile_serialization=False)
    return folder / "w.bin"


def save_with_prefix_head_and_buffers(model, folder):
    held = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    for i in range(L):
        held[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, P, P, dtype=torch.uint8)
        held[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(held, folder / "w.safetensors")
    return folder / "w.safetensors"


def save_safetensors_shards(model, folder):
    model.save_pretrained(folder / "shards", max_shard_size="3KB")
    assert (folder / "shards/model.safetensors.index.json").exists()
    return folder / "shards"


def save_bin_shards(model, folder):
    target = folder / "gpt_tiny.bin"  # MindFormers' documents make a folder of such a name
    target.mkdir()
    shards = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        shards[list(shards)[number % 2]][name] = tensor
    for file, held in shards.items():
        torch.save(held, target / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


SAVERS = (
    save_plain_bin,
    save_bin_from_before_torch_1_6,
    save_with_prefix_head_and_buffers,
    save_safetensors_shards,
    save_bin_shards,
)


@pytest.mark.parametrize("save", SAVERS)
def test_every_form_of_source_gives_the_same_checkpoint(model, tmp_path, save, capsys):
    ckpt = tmp_path / "x.ckpt"
    assert convert(save(model, tmp_path), ckpt) == 0, capsys.readouterr().err
    assert_holds(ckpt, expected(model))
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    by_saver = {
        save_plain_bin: [],
        save_bin_from_before_torch_1_6: ["skipped: 2 x causal-mask buffer"],
        save_with_prefix_head_and_buffers: [
            "skipped: 4 x causal-mask buffer",
            "skipped: 1 x output head, tied to the token embedding",
        ],
        save_safetensors_shards: [],
        save_bin_shards: ["skipped: 1 x output head, tied to the token embedding"],
    }
    assert skipped == by_saver[save]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_reversed_to_a_single_file_needs_no_config(model, tmp_path, suffix):
    ckpt, out = tmp_path / "x.ckpt", tmp_path / f"y{suffix}"
    assert convert(save_plain_bin(model, tmp_path), ckpt) == 0
    assert not (tmp_path / "config.json").exists()
    assert convert(out, ckpt, "--reversed") == 0
    held = torch.load(out) if suffix == ".bin" else safetensors.torch.load_file(out)
    assert {name.removeprefix("transformer.") for name in held} == state(model).keys()
    assert all(torch.equal(held["transformer." + name], tensor) for name, tensor in state(model).items())


def test_classification_head_is_converted(tmp_path):
    classifier = randomised(transformers.GPT2ForSequenceClassification(tiny(num_labels=5)))
    classifier.save_pretrained(tmp_path / "hf")
    assert convert(tmp_path / "hf", tmp_path / "x.ckpt") == 0
    score = ms.load_checkpoint(str(tmp_path / "x.ckpt"))["score.weight"].asnumpy()
    np.testing.assert_array_equal(score, classifier.score.weight.detach().numpy())
    assert convert(tmp_path / "back", tmp_path / "x.ckpt", "--reversed") == 0
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values())
    assert type(again) is type(classifier)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("save", [save_plain_bin, save_with_prefix_head_and_buffers])
def test_other_types_become_float32(model, tmp_path, dtype, save):
    narrow = transformers.GPT2LMHeadModel(tiny()).to(dtype)
    narrow.load_state_dict(model.state_dict())
    assert convert(save(narrow, tmp_path), tmp_path / "x.ckpt") == 0
    narrow.float()  # exact for the two narrow types, and float64 holds float32 numbers here
    assert_holds(tmp_path / "x.ckpt", expected(narrow))


def test_dtype_float16_rounds_as_torch_does_and_comes_back(model, hf_folder, tmp_path, capsys):
    assert convert(hf_folder, tmp_path / "x.ckpt", "--dtype", "float16") == 0
    assert "float16 (was float32)" in capsys.readouterr().out
    half = transformers.GPT2LMHeadModel(tiny()).half()
    half.load_state_dict(model.state_dict())
    assert_holds(tmp_path / "x.ckpt", expected(half), "float16")
    assert convert(tmp_path / "back", tmp_path / "x.ckpt", "--reversed") == 0
    back = safetensors.torch.load_file(tmp_path / "back/model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in back.values())
    assert torch.equal(back["transformer.h.1.attn.c_attn.weight"], half.transformer.h[1].attn.c_attn.weight.float())


def test_training_extras_are_skipped_on_the_way_back(model, hf_folder, tmp_path):
    ckpt = tmp_path / "x.ckpt"
    assert convert(hf_folder, ckpt) == 0
    held = ms.load_checkpoint(str(ckpt))
    table = "backbone.embedding.word_embedding.embedding_table"
    extras = {f"{moment}.{table}": held[table] for moment in ("adam_m", "adam_v", "moments")}
    extras["backbone.blocks.0.key_past"] = extras["backbone.blocks.1.attention.value_past"] = held[table]
    extras["backbone.blocks.1.attention.masked_beta"] = held[table]
    items = [{"name": name, "data": parameter} for name, parameter in (held | extras).items()]
    counters = {"epoch_num": 1, "step_num": 7, "global_step": 7, "loss_scale": 1024.0, "scale_sense": 1.0}
    ms.save_checkpoint(items, str(ckpt), append_dict=counters)
    assert convert(tmp_path / "back", ckpt, "--reversed") == 0
    assert safetensors.torch.load_file(tmp_path / "back/model.safetensors").keys() == {
        name for name in model.state_dict() if name != "lm_head.weight"
    }


def test_all_problems_of_names_and_shapes_are_listed_at_once(model, tmp_path, capsys):
    held = state(model)
    del held["h.0.ln_1.bias"], held["ln_f.weight"]
    held["h.1.mlp.c_fc.weight"] = held["h.1.mlp.c_fc.weight"].T.contiguous()
    held["wte.weight"] = held["wte.weight"][:, :-1].contiguous()
    held["h.0.attn.rotary.inv_freq"] = torch.ones(3)
    held["h.0.ln_2.bias"] = torch.ones(H, dtype=torch.int32)
    safetensors.torch.save_file(held, tmp_path / "w.safetensors")
    message = refused(capsys, tmp_path / "w.safetensors", tmp_path / "x.ckpt")
    assert sorted(message.splitlines()[1:]) == [
        "  missing: h.0.ln_1.bias",
        "  missing: ln_f.weight",
        "  unknown: h.0.attn.rotary.inv_freq [3]",
        "  wrong dtype: h.0.ln_2.bias is int32; weights are float16, bfloat16, float32, float64",
        "  wrong shape: h.1.mlp.c_fc.weight is [20, 12], expected [12, 20] from the other weights",
        "  wrong shape: wte.weight is [61, 11], expected [61, 12] from the other weights",
    ]
    assert os.listdir(tmp_path) == ["w.safetensors"]


def without_layer_0(held):
    for name in [name for name in held if name.startswith("h.0.")]:
        del held[name]


def with_head_of_another_vocabulary(held):
    held["lm_head.weight"] = torch.ones(V + 1, H)


def with_cross_attention(held):
    held["h.0.crossattention.c_attn.weight"] = torch.ones(H, 2 * H)


def with_both_spellings(held):
    held["transformer.wte.weight"] = held["wte.weight"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_layer_0, "missing: h.0.mlp.c_proj.weight"),
        (with_head_of_another_vocabulary, "wrong shape: lm_head.weight is [62, 12], expected [61, 12]"),
        (with_cross_attention, "Cross-attention"),
        (with_both_spellings, "both"),
        (lambda held: held.clear(), "state dict"),
        (lambda held: held.update(step=3), "step"),
        (lambda held: held["h.1.ln_2.bias"].fill_(1e6), None),
    ],
)
def test_weights_that_are_not_a_gpt2_are_refused(model, tmp_path, capsys, change, says):
    held = state(model)
    change(held)
    torch.save(held, tmp_path / "w.bin")
    (tmp_path / "x.ckpt").write_bytes(b"the earlier file")
    more = () if says else ("--dtype", "float16")
    assert (says or "layernorm2.beta: 12 of its values are too large for float16") in refused(
        capsys, tmp_path / "w.bin", tmp_path / "x.ckpt", *more
    )
    assert (tmp_path / "x.ckpt").read_bytes() == b"the earlier file"
    assert sorted(os.listdir(tmp_path)) == ["w.bin", "x.ckpt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_files_that_are_not_weights_are_refused(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = tmp_path / "out/x.ckpt"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.md").touch()
    assert "no weights in this folder" in refused(capsys, tmp_path / "empty", ckpt)
    assert "no such file" in refused(capsys, tmp_path / "absent.bin", ckpt)
    (tmp_path / "notes.md").write_text("weights")
    assert "not a file of weights, by its name" in refused(capsys, "notes.md", ckpt)

    torch.save({"a": Evil()}, "evil.bin")
    assert "Python objects" in refused(capsys, "evil.bin", ckpt)
    assert not os.path.exists("hacked")

    content = save_plain_bin(model, tmp_path).read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.bin").write_bytes(content[:length])
        assert "cut.bin" in refused(capsys, "cut.bin", ckpt)

    shards = save_safetensors_shards(model, tmp_path)
    gone = sorted(shards.glob("model-*.safetensors"))[1]
    gone.rename(tmp_path / "gone.safetensors")
    assert f"its shard {gone.name} is missing" in refused(capsys, shards, ckpt)
    shutil.copy(sorted(shards.glob("model-*.safetensors"))[0], gone)
    assert "two shards" in refused(capsys, shards, ckpt)
    safetensors.torch.save_file({"other": torch.ones(1)}, gone)
    assert "do not hold all that it lists" in refused(capsys, shards, ckpt)
    index = shards / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../gone.safetensors"}}')
    assert "same folder" in refused(capsys, shards, ckpt)
    index.write_text("{")
    assert "not an index" in refused(capsys, shards, ckpt)
    assert not ckpt.exists()


def test_wrong_layers_config_and_names_are_refused_and_nothing_is_written(model, repo, hf_folder, tmp_path, capsys):
    out = tmp_path / "out"
    wrong = run(repo, COMMAND, "--layers", 12, "--torch_path", hf_folder, "--mindspore_path", out / "x.ckpt")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --layers 12: ") and "has 2 layers" in wrong.stderr and wrong.stdout == ""
    assert "ends in .ckpt" in refused(capsys, hf_folder, out / "x.bin")
    assert "num_layers is 12, the weights have 2" in refused(capsys, hf_folder, out / "x.ckpt", "--config", "gpt2")
    assert "gpt3" in refused(capsys, hf_folder, out / "x.ckpt", "--config", "gpt3")
    config = json.loads((hf_folder / "config.json").read_text())
    (hf_folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "model_type" in refused(capsys, hf_folder, out / "x.ckpt")
    (hf_folder / "config.json").write_text(json.dumps(config | {"n_positions": 8}))
    assert "max_position_embeddings is 8, the weights have 16" in refused(capsys, hf_folder, out / "x.ckpt")
    assert not out.exists()


def test_reversed_refusals(model, hf_folder, tmp_path, capsys):
    ckpt = tmp_path / "x.ckpt"
    back = tmp_path / "back"
    assert convert(save_plain_bin(model, tmp_path), ckpt) == 0
    assert "Pass --config" in refused(capsys, back, ckpt, "--reversed")
    assert "there is no file or folder" in refused(capsys, back, tmp_path / "absent.ckpt", "--reversed")
    (tmp_path / "cut.ckpt").write_bytes(ckpt.read_bytes()[:-5])
    assert "cut.ckpt: not a whole" in refused(capsys, back, tmp_path / "cut.ckpt", "--reversed")

    held = list(ms.load_checkpoint(str(ckpt)).values())
    lora = ms.Parameter(
        ms.Tensor(np.ones((4, H), np.float32)), name="backbone.blocks.0.attention.dense1.mindpet_delta_lora_a"
    )
    ms.save_checkpoint([{"name": p.name, "data": p} for p in [*held, lora]], str(tmp_path / "lora.ckpt"))
    assert "merge them" in refused(capsys, back, tmp_path / "lora.ckpt", "--reversed", "--config", hf_folder)
    assert not back.exists()

    assert convert(back, ckpt, "--reversed", "--config", hf_folder) == 0
    before = (back / "model.safetensors").read_bytes()
    config = json.loads((back / "config.json").read_text())
    (back / "config.json").write_text(json.dumps(config | {"n_head": 4}))
    assert "config of another model" in refused(capsys, back, ckpt, "--reversed", "--config", hf_folder)
    assert (back / "model.safetensors").read_bytes() == before


def test_a_second_model_in_a_folder_gets_a_config_of_its_own(hf_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(hf_folder, out / "a.ckpt") == 0
    first = (out / "config.json").read_bytes()
    config = json.loads((hf_folder / "config.json").read_text())
    (hf_folder / "config.json").write_text(json.dumps(config | {"n_head": 4}))
    (hf_folder / "merges.txt").write_text("#version: 0.2\na b\n")
    capsys.readouterr()
    assert convert(hf_folder, out / "b.ckpt") == 0
    assert "merges.txt differs" in capsys.readouterr().out
    assert (out / "config.json").read_bytes() == first
    assert sorted(os.listdir(out)) == ["a.ckpt", "b.ckpt", "b.config.json", "config.json", "merges.txt"]
    for name, heads in (("a", 3), ("b", 4)):
        assert convert(tmp_path / name, out / f"{name}.ckpt", "--reversed") == 0
        assert transformers.GPT2Config.from_pretrained(tmp_path / name).n_head == heads


def test_without_torch_safetensors_work_and_bin_says_what_to_install(model, hf_folder, tmp_path, capsys, monkeypatch):
    binary = save_plain_bin(model, tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'mindgpt[convert]'" in refused(capsys, binary, tmp_path / "x.ckpt")
    assert convert(hf_folder, tmp_path / "x.ckpt") == 0
    assert "pip install 'mindgpt[convert]'" in refused(capsys, tmp_path / "y.bin", tmp_path / "x.ckpt", "--reversed")


def test_kill_during_the_write_leaves_the_earlier_checkpoint(repo, hf_folder, tmp_path):
    """Killed as soon as its temporary file shows up, the command has not touched the checkpoint."""
    big = tmp_path / "big"
    config = tiny()
    config.n_embd, config.n_inner = 768, 3072  # 57 MB, so that there is time to be killed in
    transformers.GPT2LMHeadModel(config).save_pretrained(big)
    ckpt = tmp_path / "x.ckpt"
    assert convert(hf_folder, ckpt) == 0
    before = ckpt.read_bytes()
    command = [sys.executable, COMMAND, "--torch_path", big, "--mindspore_path", ckpt]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".x.ckpt*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert ckpt.read_bytes() == before
    assert convert(big, ckpt, "--config", big) == 0  # and the next run is not hindered by what was left
    assert ms.load_checkpoint(str(ckpt))["backbone.layernorm.gamma"].shape == (768,)


def test_conversion_starts_without_mindspore_and_torch(repo):
    check = "import sys, mindgpt.models.gpt2.convert_weight; print({'mindspore', 'torch'} & set(sys.modules))"
    assert run(repo, "-c", check).stdout == "set()\n"


@pytest.mark.slow
def test_gpt2_small_takes_little_time_and_memory(repo, tmp_path):
    """At most 20 s and 3 x the file's size each way, interpreter included."""
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(tmp_path / "hf")
    size = (tmp_path / "hf/model.safetensors").stat().st_size
    measured = (
        "import resource, subprocess, sys, time; start = time.time(); code = subprocess.call(sys.argv[1:]); "
        "print('cost', time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); exit(code)"
    )
    command = [sys.executable, "-c", measured, sys.executable, COMMAND, "--mindspore_path", tmp_path / "x.ckpt"]
    for more in (["--torch_path", tmp_path / "hf"], ["--torch_path", tmp_path / "back", "--reversed"]):
        done = subprocess.run([*command, *more], cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds, peak = map(float, done.stdout.split()[-2:])
        assert seconds < 20 and peak < 3 * size, (seconds, peak / size)
