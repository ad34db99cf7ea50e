"""Files of ModelScope's GPT-3 that are wrong: one message each, and nothing is written."""

import json

import pytest
import torch

from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from tests.checkpoints.megatron_models import (
    BASE,
    PARALLEL,
    H,
    P,
    convert,
    ranks_of,
    refused,
    state,
    write_base,
    write_ranks,
)

LAYER = "language_model.encoder.layers.0."


def refusal_of(path) -> str:
    """The message of weights that cannot be opened."""
    with pytest.raises(UserError) as raised:
        open_weights(path)
    return str(raised.value)


@pytest.mark.parametrize("lost", [(0,), (2,), (3,), (1, 2)])
def test_missing_ranks(tmp_path, lost):
    folder = write_ranks(tmp_path / "x", ranks_of(state(), 4))
    for rank in lost:
        (folder / "model" / f"mp_rank_{rank:02d}_model_states.pt").unlink()
    message = refused(tmp_path, folder, tmp_path / "x.ckpt")
    names = ", ".join(f"mp_rank_{rank:02d}_model_states.pt" for rank in lost)
    assert f"sharded over 4 tensor-parallel ranks, and {names} {'is' if len(lost) == 1 else 'are'} missing" in message


def test_ranks_of_two_sizes(tmp_path):
    folder = write_ranks(tmp_path / "x", ranks_of(state(), 4))
    write_ranks(folder, ranks_of(state(), 2))
    assert "different numbers of tensor-parallel ranks: ranks 0, 1 of 2; ranks 2, 3 of 4" in refusal_of(folder)
    again = write_ranks(tmp_path / "y", ranks_of(state(), 2))
    for rank in (2, 3):
        torch.save(ranks_of(state(), 2)[1], again / "model" / f"mp_rank_{rank:02d}_model_states.pt")
    message = refusal_of(again)
    assert "sharded over 2 tensor-parallel ranks, and there are 4 files: those of ranks 2, 3 are of another" in message


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "mp_rank_00_model_states.pt.1"])
def test_other_weights_in_the_folder_model(tmp_path, name):
    folder = write_ranks(tmp_path, ranks_of(state(), 2))
    (folder / "model" / name).write_bytes(b"x")
    message = refusal_of(folder)
    assert f"nothing else, mp_rank_00_model_states.pt, mp_rank_01_model_states.pt. Move {name} away" in message


def test_other_files_in_the_folder_model_are_named(tmp_path):
    folder = write_ranks(tmp_path, [state()])
    (folder / "model" / ".DS_Store").write_bytes(b"x")
    note = ".DS_Store left out; ModelScope counts every file there as a shard, and fails"
    assert any(note in said for said in open_weights(folder).notes)


def test_two_files_of_one_rank_and_weights_of_two_kinds(tmp_path):
    folder = write_ranks(tmp_path, [state()])
    torch.save(state("base"), folder / "pytorch_model.bin")
    assert "holds weights beside the folder model/, and nothing says which" in refusal_of(folder)
    assert open_weights(folder / "model").source.layout == "parallel"
    assert open_weights(write_base(tmp_path / "base", state("base"))).source.layout == "base"
    torch.save(state(), folder / "model" / "mp_rank_0_model_states.pt")
    assert "are of the same rank" in refusal_of(folder / "model")


@pytest.mark.parametrize(
    "name", ["language_model.embedding.position_embeddings.weight", f"{LAYER}mlp.dense_4h_to_h.bias"]
)
def test_ranks_that_disagree(tmp_path, name):
    ranks = ranks_of(state(), 4)
    ranks[2][name].view(-1)[-1] += 1e-6
    message = refusal_of(write_ranks(tmp_path, ranks))
    assert f"{name} is not the same in ranks 0 and 2, and every tensor-parallel rank must hold it whole" in message


def test_ranks_with_other_tensors_shapes_and_versions(tmp_path):
    ranks = ranks_of(state(), 2)
    del ranks[1][f"{LAYER}mlp.dense_4h_to_h.bias"]
    assert f"not all tensor-parallel ranks hold {LAYER}mlp.dense_4h_to_h.bias" in refusal_of(
        write_ranks(tmp_path, ranks)
    )
    ranks = ranks_of(state(), 2)
    ranks[1][f"{LAYER}self_attention.dense.weight"] = torch.zeros(H, 3)
    message = refusal_of(write_ranks(tmp_path, ranks))
    assert "dense.weight has other shapes in other tensor-parallel ranks: [32, 16], [32, 3]" in message
    held = state()
    held[f"{LAYER}mlp.dense_h_to_4h.weight"] = torch.zeros(95, H)
    held["language_model.extra"] = torch.zeros(3)
    del held["language_model.encoder.final_layernorm.bias"]
    folder = write_ranks(tmp_path / "one", [held])
    message = refused(tmp_path, folder, tmp_path / "x.ckpt")
    assert "not the weights of a GPT-3 of ModelScope" in message
    assert "wrong shape: " in message and f"{LAYER}mlp.dense_h_to_4h.weight is [95, 32], expected [96, 32]" in message
    assert "unknown: language_model.extra [3]" in message
    assert "missing: language_model.encoder.final_layernorm.bias" in message
    first, second = ranks_of(state(), 2)
    ranks = [{"module": first, "checkpoint_version": 3.0}, {"module": second, "checkpoint_version": 0}]
    assert "the ranks have different checkpoint_version" in refusal_of(write_ranks(tmp_path / "versions", ranks))
    assert "checkpoint_version is [3]. Known" in refusal_of(
        write_ranks(tmp_path / "list", [state()], key="module", checkpoint_version=[3])
    )
    assert "checkpoint_version is 0.5. Known are 0, 1.0 and 2 or more" in refusal_of(
        write_ranks(tmp_path / "version", [state()], key="module", checkpoint_version=0.5)
    )


def test_damaged_files(tmp_path):
    folder = write_ranks(tmp_path / "x", ranks_of(state(), 2))
    file = folder / "model/mp_rank_01_model_states.pt"
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], content[:20], b""):
        file.write_bytes(broken)
        message = refused(tmp_path, folder, tmp_path / "x.ckpt")
        assert str(file) in message
        assert "cut short" in message or "is empty" in message
    torch.save([1, 2], file)
    assert "holds a list, where a state dict is needed" in refusal_of(folder)
    torch.save({"module": {"a": 1, "b": "x"}}, file)
    assert "These entries are not tensors: a, b" in refusal_of(folder)


def test_checkpoints_of_other_models(tmp_path):
    bert = state() | {"language_model.embedding.tokentype_embeddings.weight": torch.zeros(2, H)}
    assert "a BERT of Megatron" in refusal_of(write_ranks(tmp_path / "bert", [bert]))
    experts = state() | {f"{LAYER}mlp.deepspeed_moe.gate.wg.weight": torch.zeros(2, H)}
    assert "mixture of experts" in refusal_of(write_ranks(tmp_path / "moe", [experts]))
    other = {"encoder.weight": torch.zeros(3, 3)}
    folder = write_ranks(tmp_path / "other", [other])
    assert "encoder.weight" in refusal_of(folder)


@pytest.mark.parametrize("layout", ["parallel", "base"])
def test_missing_keys_are_asked_for_in_one_message(tmp_path, layout):
    needed = ["vocab_size", "num_attention_heads", "layernorm_epsilon", *(["eod_id"] if layout == "parallel" else [])]

    def write(config):
        if layout == "parallel":
            return write_ranks(tmp_path / "x", [state()], config)
        return write_base(tmp_path / "x", state("base"), config)

    full = PARALLEL if layout == "parallel" else BASE
    message = refused(tmp_path, write({"num_hidden_layers": 2}), tmp_path / "x.ckpt")
    assert f"{', '.join(needed)} are not there. The result depends on each of them" in message
    for key in needed:
        left = {name: value for name, value in full.items() if name != key}
        message = refusal_of(write(left))
        assert f"  {key} is not there. The result depends on it" in message
        given = tmp_path / "given.json"
        given.write_text(json.dumps(full))
        convert(tmp_path / "x", tmp_path / f"{key}.ckpt", "--config", given)
    (tmp_path / "x/config.json").unlink()
    message = refusal_of(tmp_path / "x")
    assert f"no config.json lies with these weights, and they do not tell {', '.join(needed[1:])}" in message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads is 5, and must be a number that divides the hidden size, 32"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, and must"),
        ({"num_attention_heads": "8"}, "num_attention_heads is '8', and must"),
        ({"num_attention_heads": 1}, "num_attention_heads is 1, and the 2 ranks must have equally many"),
        ({"num_attention_heads": 4, "kv_channels": 4}, "kv_channels is 4, and must be hidden_size / num_attention_h"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ({"layernorm_epsilon": 0}, "layernorm_epsilon is 0, and must be a number above 0"),
        ({"layernorm_epsilon": "1e-5"}, "layernorm_epsilon is '1e-5', and must be a number above 0"),
        ({"eod_id": 64}, "eod_id is 64, and must be the id of one of 64 tokens"),
        ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5"),
        ({"vocab_size": 60}, "vocab_size is 60, the weights have 64"),
        ({"max_position_embeddings": 2 * P}, f"max_position_embeddings is {2 * P}, the weights have {P}"),
        ({"hidden_size": 16}, "hidden_size is 16, the weights have 32"),
        ({"ffn_hidden_size": None}, "ffn_hidden_size is not there, so 128, the weights have 96"),
        ({"bias_gelu_fusion": "false"}, "bias_gelu_fusion is 'false', and must be true (the tanh form of gelu) or"),
        ({"layernorm_epsilon": float("inf")}, "layernorm_epsilon is inf, and must be a number"),
        ({"num_experts": 8}, "num_experts is 8: mindgpt has no mixture of experts"),
    ],
)
def test_configs_that_are_wrong(tmp_path, given, expected):
    folder = write_ranks(tmp_path, ranks_of(state(), 2), PARALLEL | given)
    assert expected in refusal_of(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json" in refusal_of(folder)


def test_all_problems_of_a_config_at_once(tmp_path):
    wrong = PARALLEL | {"vocab_size": 1, "num_attention_heads": 5, "hidden_dropout": 2}
    del wrong["layernorm_epsilon"]
    message = refusal_of(write_ranks(tmp_path, [state()], wrong))
    assert message.count("\n  ") == 4


def test_deepspeed_is_still_deepspeed(tmp_path):
    """A tag called `model`, with other names inside, is none of ModelScope's folders."""
    folder = write_ranks(tmp_path, [{"wte.weight": torch.zeros(3, 3)}], key="module")
    assert "GPT-3" not in refusal_of(folder)
