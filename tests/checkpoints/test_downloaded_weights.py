"""Weights from other tools: wrapped, with a missing tied name, sharded; opened if they are unambiguous."""

import json
import re

import numpy as np
import pytest

from mindgpt.checkpoints.gpt2_views import HuggingFaceView
from mindgpt.checkpoints.locations import find_weights
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.models.gpt2.convert_weight import main
from tests.checkpoints.tiny_gpt2 import CONFIG, POINTER, folder, ours, tensors, write, write_ours


def assert_is_the_model(weights, scratch) -> None:
    wanted = ours(scratch)
    assert weights.source.entries.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(weights.source.read(name), array, err_msg=name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "config.json", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path, name):
    source = folder(tmp_path / "hf")
    if name != "config.json":
        (source / "model.safetensors").unlink()
    (source / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{name}: is a Git LFS pointer.* git lfs pull"):
        open_weights(source)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_common_prefix_is_left_out(tmp_path, wrapper, prefix):
    held = {wrapper + name: array for name, array in tensors(prefix).items()}
    weights = open_weights(folder(tmp_path / "hf", held))
    assert_is_the_model(weights, tmp_path)
    assert [note.partition(": ")[2] for note in weights.notes] == [f"all names begin with {wrapper}, which is left out"]


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("net.gpt2.", "net."),
        ("base_model.model.transformer.", "base_model.model."),
        ("transformer.module.", ""),
        ("a.", "a."),
    ],
)
def test_the_output_head_may_have_a_shorter_prefix(tmp_path, body, head):
    held = tensors(body)
    held[f"{head}lm_head.weight"] = held[f"{body}wte.weight"].copy()
    weights = open_weights(folder(tmp_path / "hf", held))
    assert_is_the_model(weights, tmp_path)
    assert list(weights.source.skipped) == [f"{head}lm_head.weight"]


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
def test_wrappers_of_blocks_are_removed(tmp_path, wrapper):
    held = {re.sub(r"(h\.\d\.)", rf"\1{wrapper}", name): array for name, array in tensors().items()}
    weights = open_weights(folder(tmp_path / "hf", held))
    assert_is_the_model(weights, tmp_path)
    assert weights.notes[0].endswith(f"{wrapper} in names is left out")


def test_one_foreign_entry_is_named_alone(tmp_path):
    """Lightning saves the state of metrics with the network's."""
    held = {f"model.{name}": array for name, array in tensors().items()} | {"train_ppl.total": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=r"not the weights of a GPT-2:\n  unknown: train_ppl.total \[1\]$"):
        open_weights(folder(tmp_path / "hf", held))


def test_two_sets_of_weights_under_two_prefixes(tmp_path):
    held = {f"{prefix}.{name}": array for name, array in tensors().items() for prefix in ("model", "ema")}
    with pytest.raises(UserError, match=r"two sets of weights in one file, under (model|ema)\. and (model|ema)\.,"):
        open_weights(folder(tmp_path / "hf", held))


@pytest.mark.parametrize("prefix", ["network.", "_backbone.network.", "module."])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_prefix_before_mindformers_names_is_left_out(tmp_path, prefix, suffix):
    held = {prefix + name: array for name, array in ours(tmp_path).items()} | {"global_step": np.zeros(1, np.int32)}
    file = tmp_path / f"x{suffix}"
    if suffix == ".ckpt":
        write_checkpoint(file, held.items())
    else:
        write(file, held)
    weights = open_weights(file)
    assert (weights.kind, list(weights.source.skipped)) == ("checkpoint", ["global_step"])
    assert_is_the_model(weights, tmp_path)
    assert f"{prefix} before the names is left out" in weights.notes[0]


def test_hugging_face_names_behind_backbone(tmp_path):
    weights = open_weights(folder(tmp_path / "hf", tensors("backbone.")))
    assert weights.kind == "hugging_face"
    assert_is_the_model(weights, tmp_path)


def test_a_prefix_of_only_some_names_is_an_error(tmp_path):
    held = tensors()
    held["module.transformer.wpe.weight"] = held.pop("transformer.wpe.weight")
    with pytest.raises(UserError, match=r"missing: wpe\.weight\n.*unknown: module\.transformer\.wpe\.weight"):
        open_weights(folder(tmp_path / "hf", held))


def test_the_output_head_replaces_a_missing_embedding(tmp_path):
    """What `safetensors.torch.save_model` makes of tied weights: it keeps the alphabetically first name."""
    held = tensors()
    held["lm_head.weight"] = held.pop("transformer.wte.weight")
    weights = open_weights(folder(tmp_path / "hf", held))
    assert_is_the_model(weights, tmp_path)
    assert "wte.weight is missing; lm_head.weight is used instead" in weights.notes[0]
    assert weights.source.skipped == {}


def test_an_index_may_list_the_tied_head_that_no_shard_holds(tmp_path):
    source = folder(tmp_path / "hf")
    (source / "model.safetensors").rename(source / "part.safetensors")
    listed = dict.fromkeys([*tensors(), "lm_head.weight"], "part.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert_is_the_model(open_weights(source), tmp_path)
    held = tensors()
    held["lm_head.weight"] = held.pop("transformer.wte.weight")
    write(source / "part.safetensors", held)  # or the embedding is listed and only the head is there
    assert_is_the_model(open_weights(source), tmp_path)
    listed["transformer.h.0.attn.bias"] = "part.safetensors"  # a mask, which newer transformers do not save
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert_is_the_model(open_weights(source), tmp_path)
    listed["transformer.h.5.ln_1.weight"] = "part.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(UserError, match=r"Missing: transformer\.h\.5\.ln_1\.weight"):
        open_weights(source)


def test_matrices_of_torch_linear_are_named_as_such(tmp_path):
    held = {
        name: array.T.copy() if "attn.c_" in name or "mlp.c_" in name else array for name, array in tensors().items()
    }
    with pytest.raises(UserError, match=r"are \[out, in\], as torch.nn.Linear stores them; GPT-2's are \[in, out\]"):
        open_weights(folder(tmp_path / "hf", held))


@pytest.mark.parametrize("names", [{"v_head.summary.weight": (1, 8)}, {"pretrained_model.transformer.x.weight": (3,)}])
def test_a_value_head_gets_a_hint(tmp_path, names):
    held = tensors() | {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    with pytest.raises(UserError, match="trl's model with a value head"):
        open_weights(folder(tmp_path / "hf", held))


def test_safetensors_under_mindformers_names_are_a_checkpoint(tmp_path):
    """As `mindspore.ckpt_to_safetensors` writes them; and shards of them, with MindSpore's map of names."""
    counters = {"global_step": np.zeros(1, np.int32), "adam_m.backbone.layernorm.gamma": np.zeros(8, np.float32)}
    held = ours(tmp_path) | counters
    one = open_weights(write(tmp_path / "one" / "mf.safetensors", held))
    assert one.kind == "checkpoint" and set(one.source.skipped) == set(counters)
    assert_is_the_model(one, tmp_path)
    names = list(held)
    parts = {"part0.safetensors": names[:9], "part1.safetensors": names[9:]}
    for file, of_part in parts.items():
        write(tmp_path / "parts" / file, {name: held[name] for name in of_part})
    name_map = {name: file for file, of_part in parts.items() for name in of_part}
    for content in (name_map, {"metadata": {"total_size": 5}, "weight_map": name_map}):
        (tmp_path / "parts" / "param_name_map.json").write_text(json.dumps(content))
        assert_is_the_model(open_weights(tmp_path / "parts"), tmp_path)


COUNTERS = [
    "epoch_num",
    "step_num",
    "global_step",
    "global_batch_size",
    "loss_scale",
    "learning_rate",
    "remove_redundancy",
    "scale_window_up_count",
    "weight_decay_group_1",
    "fused_step",
    "cur_rank",
    "__exception_save__",
    "graceful_exit",
    "graceful_init",
]
STATES = ["adam_m", "adam_v", "moment1", "moments", "accum", "mean_square", "vhat", "lamb_m", "pma_weight"]


def test_mindformers_counters_are_skipped(tmp_path):
    more = {name: np.array(8) for name in COUNTERS}
    state = {f"{kind}.backbone.layernorm.gamma": np.zeros(8, np.float32) for kind in STATES}
    file = write_ours(tmp_path / "mf.ckpt", tmp_path, **more, **state)
    weights = open_weights(file)
    assert_is_the_model(weights, tmp_path)
    assert set(weights.source.skipped) == {*more, *state}
    assert weights.source.skipped["global_batch_size"] == "training counter"
    assert HuggingFaceView(weights.source).sizes["L"] == 2


@pytest.mark.parametrize("named", ["models--gpt2", "models--gpt2/snapshots", ".", "hub"])
def test_a_part_of_a_cache_names_the_snapshot(tmp_path, named):
    root = tmp_path / "cache" / "hub" if named == "hub" else tmp_path / "cache"
    for name in ("blobs", "refs", "snapshots/607a30d"):
        (root / "models--gpt2" / name).mkdir(parents=True)
    place = tmp_path / "cache" / (named if named != "hub" else "")
    with pytest.raises(UserError, match=r"is a Hugging Face model cache. Name a snapshot in it: .*snapshots/607a30d"):
        open_weights(place)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_state_dict_in_a_training_checkpoint_is_read(tmp_path, key):
    torch = pytest.importorskip("torch")
    inside = {name: torch.from_numpy(array) for name, array in tensors("").items()}
    inside = {f"_orig_mod.{name}": tensor for name, tensor in inside.items()}
    torch.save({key: inside, "optimizer": {"state": {}}, "iter_num": 5}, tmp_path / "ckpt.pt")
    weights = open_weights(tmp_path / "ckpt.pt")
    assert_is_the_model(weights, tmp_path)
    assert f"its {key!r} is read, and optimizer, iter_num left out" in weights.notes[0]
    torch.save({key: inside, "module": inside, "iter_num": 5}, tmp_path / "two.pt")
    with pytest.raises(UserError, match="not a plain state dict"):
        open_weights(tmp_path / "two.pt")
    torch.save({"state_dict": inside, "pytorch-lightning_version": "2"}, tmp_path / "epoch=0-step=9.ckpt")
    assert_is_the_model(open_weights(tmp_path / "epoch=0-step=9.ckpt"), tmp_path)
    torch.save(inside, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert_is_the_model(open_weights(tmp_path / "old.ckpt"), tmp_path)


def test_two_sets_of_weights_in_one_file_are_ambiguous(tmp_path):
    torch = pytest.importorskip("torch")
    inside = {name: torch.from_numpy(array) for name, array in tensors("").items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3, 4)}}}
    rest = {"optimizer": optimizer, "optimizer_states": [optimizer], "rng_state": torch.zeros(9, dtype=torch.uint8)}
    torch.save({"model": inside, **rest}, tmp_path / "one.pt")
    assert_is_the_model(open_weights(tmp_path / "one.pt"), tmp_path)
    for ema in (inside, {"decay": 0.9, "shadow_params": list(inside.values())}):
        torch.save({"model": inside, "ema": ema, **rest}, tmp_path / "two.pt")
        with pytest.raises(UserError, match=r"holds weights under 'model' and under 'ema', and nothing says which"):
            open_weights(tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("multiple_choice_head.summary.weight", "multiple_choice_head is a head that mindgpt does not have"),
        ("qa_outputs.weight", "qa_outputs is a head"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", "PEFT's factors, saved with the weights"),
    ],
)
def test_unsupported_weights_get_a_hint(tmp_path, name, hint):
    with pytest.raises(UserError, match=hint):
        open_weights(folder(tmp_path / "hf", tensors() | {name: np.zeros((1, 8), np.float32)}))


def test_the_safetensors_of_a_mindformers_run(tmp_path, capsys):
    """What `checkpoint_format: safetensors` leaves in a run's folder; the newest by step, of both kinds of files."""
    ranks = tmp_path / "checkpoint" / "rank_0"
    counters = {"global_step": np.zeros(1, np.int32)}
    write(ranks / "gpt2_rank_0-1_10.safetensors", ours(tmp_path) | counters)
    write_ours(ranks / "gpt2_rank_0-1_9.ckpt", tmp_path)
    found = find_weights(tmp_path / "checkpoint")
    assert found.name == "gpt2_rank_0-1_10.safetensors"
    assert_is_the_model(open_weights(found), tmp_path)
    network = tmp_path / "checkpoint_network" / "rank_0"
    write_ours(network / "gpt2_rank_0-network.ckpt", tmp_path)
    assert find_weights(tmp_path / "checkpoint_network") == network / "gpt2_rank_0-network.ckpt"
    write_ours(network / "other.ckpt", tmp_path)
    with pytest.raises(UserError, match=r"Found gpt2_rank_0-network.ckpt, other.ckpt: name the file you mean"):
        open_weights(find_weights(network))


def test_a_run_s_folder_goes_back_to_hugging_face(tmp_path, capsys):
    ranks = tmp_path / "output" / "checkpoint" / "rank_0"
    ranks.mkdir(parents=True)
    for step in (1, 2):
        write_ours(ranks / f"x_rank_0-1_{step}.ckpt", tmp_path, step_num=np.array(step))
    (ranks / "config.json").write_text(json.dumps(CONFIG))
    main(
        [
            "--reversed",
            "--mindspore_path",
            str(tmp_path / "output" / "checkpoint"),
            "--torch_path",
            str(tmp_path / "hf"),
        ]
    )
    assert "the newest in" in capsys.readouterr().out
    assert_is_the_model(open_weights(tmp_path / "hf"), tmp_path)
    with pytest.raises(UserError, match="holds Hugging Face's weights already"):
        main(["--reversed", "--mindspore_path", str(tmp_path / "hf"), "--torch_path", str(tmp_path / "again")])
