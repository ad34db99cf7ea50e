"""Weights of ModelScope's GPT-3 in; the oracle is the network as the tensor-parallel ranks compute it from their own
files, which are never merged there."""

import shutil

import mindspore as ms
import numpy as np
import pytest
import torch

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.checkpoints import modelscope_format
from mindgpt.checkpoints.weights import load_weights, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.generation.settings import GenerationSettings
from mindgpt.tasks.model_setup import build_model
from tests.checkpoints.megatron_models import (
    BASE,
    EPS,
    HEADS,
    PARALLEL,
    F,
    H,
    L,
    P,
    V,
    logits,
    ranks_of,
    state,
    write_base,
    write_ranks,
)

IDS = torch.randint(V, (2, P), generator=torch.Generator().manual_seed(1))
UNTIED = "language_model.output_layer.weight"


@pytest.fixture(scope="module")
def model(unfused):
    """One network for all weights of a parallel model, so that it is compiled once."""
    sizes = {"vocab_size": V, "max_position_embeddings": P, "hidden_size": H, "num_layers": L, "num_heads": HEADS}
    network = GPT2LMHeadModel(GPT2Config(**sizes, ffn_hidden_size=F, layernorm_epsilon=EPS))
    network.set_train(False)
    return network


def of_mindgpt(model) -> np.ndarray:
    return model(ms.Tensor(IDS.numpy().astype(np.int32))).asnumpy()


def arrays(path) -> dict[str, np.ndarray]:
    source = open_weights(path).source
    return {name: source.read(name) for name in source.entries}


def assert_equal(held: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert held.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(held[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("count", "version"),
    [(1, None), (2, None), (4, None), (8, None), (2, 3.0), (1, 2), (1, 1.0), (4, 1.0), (1, 0), (8, 0)],
)
def test_logits_of_every_tensor_parallel_size(tmp_path, model, count, version):
    ranks = ranks_of(state(), count)
    more = {} if version is None else {"key": "module", "checkpoint_version": version}
    weights = open_weights(write_ranks(tmp_path, ranks, **more))
    load_weights(model, weights)
    np.testing.assert_allclose(of_mindgpt(model), logits(ranks, IDS, version).numpy(), atol=1e-4, rtol=0)


def test_ranks_merge_bit_for_bit(tmp_path):
    """The tensors of 8 ranks are those of one, in each half precision too."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        held = state(dtype=dtype)
        whole = arrays(write_ranks(tmp_path / f"1{dtype}", [held]))
        for count in (2, 4, 8):
            path = write_ranks(tmp_path / f"{count}{dtype}", ranks_of(held, count))
            assert_equal(arrays(path), whole)
            assert {info.dtype for info in open_weights(path).source.entries.values()} == {str(dtype)[6:]}


def test_base_and_large(tmp_path, unfused):
    held = state("base")
    folder = write_base(tmp_path / "base", held)
    prefixed = {f"model.{name}": tensor for name, tensor in held.items()}
    for number, content in enumerate(({"state_dict": held, "meta": {}}, prefixed, {"state_dict": prefixed})):
        assert_equal(arrays(write_base(tmp_path / str(number), content)), arrays(folder))
    network = GPT2LMHeadModel.from_pretrained(folder)
    wanted = logits([held], IDS, gelu="none").numpy()
    np.testing.assert_allclose(of_mindgpt(network), wanted, atol=1e-4, rtol=0)
    assert np.abs(wanted - logits([held], IDS, gelu="tanh").numpy()).max() > 3e-4  # the test can tell them apart
    assert (network.config.prompt_special_tokens, network.config.eos_token_id) == ("bos", None)


def test_python_loads_the_folder_and_generates_as_its_config_says(tmp_path, unfused):
    held = ranks_of(state(), 4)
    network = GPT2LMHeadModel.from_pretrained(write_ranks(tmp_path, held, PARALLEL | {"bias_gelu_fusion": False}))
    np.testing.assert_allclose(of_mindgpt(network), logits(held, IDS, gelu="none").numpy(), atol=1e-4, rtol=0)
    settings = GenerationSettings.from_config(network.config)
    assert (settings.do_sample, settings.top_p, settings.top_k, settings.temperature) == (True, 0.9, None, 1.0)
    assert (settings.max_new_tokens, settings.eos_token_id) == (100, 7)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "model.module."])
@pytest.mark.parametrize("key", [None, "module", "model"])
def test_prefixes_and_outer_keys(tmp_path, prefix, key):
    held = state()
    whole = arrays(write_ranks(tmp_path / "plain", [held]))
    ranks = ranks_of({prefix + name: tensor for name, tensor in held.items()}, 2)
    assert_equal(arrays(write_ranks(tmp_path / "prefixed", ranks, key=key)), whole)


def in_model_folder(folder):
    return folder / "model"


def a_file_of_many(folder):
    return folder / "model" / "mp_rank_01_model_states.pt"


def output_of_training(folder):
    run = folder.with_name(f"{folder.name}-run")
    shutil.move(folder, run / "output")
    return run


def saves_of_training(folder, kinds=("epoch_3_",)):
    """`output/` and the files of earlier and the same epochs, which differ from it here."""
    run = output_of_training(folder)
    for kind in kinds:
        for file in (run / "output/model").iterdir():
            shutil.copy(file, run / f"{kind}{file.name}")
    return run


def a_save_of_training(folder, kind="epoch_3_"):
    return saves_of_training(folder, (kind, "epoch_12_")) / f"{kind}mp_rank_00_model_states.pt"


def saves_alone(folder):
    run = saves_of_training(folder, ("iter_300_",))
    shutil.move(run / "output/config.json", run / "config.json")
    shutil.rmtree(run / "output")
    return run


def output_best(folder):
    run = output_of_training(folder)
    (run / "output").rename(run / "output_best")
    return run


@pytest.mark.parametrize(
    "place",
    [
        in_model_folder,
        a_file_of_many,
        output_of_training,
        saves_of_training,
        a_save_of_training,
        lambda folder: a_save_of_training(folder, "iter_20_"),
        lambda folder: a_save_of_training(folder, "best_epoch3_ppl12.5_"),
        lambda folder: a_save_of_training(folder, "best_iter20_rouge-l0.25_"),
        saves_alone,
        output_best,
    ],
)
def test_places_of_the_files(tmp_path, place):
    whole = arrays(write_ranks(tmp_path / "whole", [state()]))
    path = place(write_ranks(tmp_path / "x", ranks_of(state(), 2)))
    assert_equal(arrays(path), whole)
    assert open_weights(path).config.eos_token_id == 7


def test_a_training_with_several_saves_asks_which(tmp_path):
    run = output_best(write_ranks(tmp_path / "a", [state()]))
    shutil.copytree(run / "output_best", run / "output")
    with pytest.raises(UserError, match=r"output/, the last weights, and output_best/, the best. Name one"):
        open_weights(run)
    run = saves_of_training(write_ranks(tmp_path / "b", [state()]), ("epoch_1_", "epoch_2_"))
    assert any("the weights in output/ are taken; name a file" in note for note in open_weights(run).notes)
    shutil.rmtree(run / "output")
    with pytest.raises(UserError, match=r"several checkpoints.*epoch_1_mp_rank_00_model_states.pt, epoch_2_"):
        open_weights(run)


@pytest.mark.parametrize("name", [UNTIED, "word_embeddings_for_head.weight", "lm_head.weight"])
@pytest.mark.parametrize("count", [1, 2])
def test_output_heads(tmp_path, name, count):
    held = state()
    table = held["language_model.embedding.word_embeddings.weight"]
    shards = [rank | {name: part.clone()} for rank, part in zip(ranks_of(held, count), table.chunk(count), strict=True)]
    weights = open_weights(write_ranks(tmp_path / "tied", shards))
    assert weights.config.tie_word_embeddings
    assert list(weights.source.skipped) == [name]
    own = [rank | {name: rank[name] * 2 + 1} for rank in shards]
    weights = open_weights(write_ranks(tmp_path / "untied", own))
    assert not weights.config.tie_word_embeddings
    assert any("kept as a weight of its own" in note for note in weights.notes)
    np.testing.assert_array_equal(weights.source.read("head.weight"), (table * 2 + 1).numpy())
    network = GPT2LMHeadModel.from_pretrained(tmp_path / "untied") if (count, name) == (2, UNTIED) else None
    if network is not None:
        np.testing.assert_allclose(of_mindgpt(network), logits(own, IDS, head=name).numpy(), atol=1e-4, rtol=0)


def test_a_file_of_another_name_obeys_checkpoint_version(tmp_path):
    """What is no mp_rank file is read by the general reader of state dicts."""
    for version in (0, 1.0, 3.0):
        content = {"key": "module", "checkpoint_version": version}
        wanted = arrays(write_ranks(tmp_path / f"ranks{version}", [state()], **content))
        write_base(tmp_path / f"x{version}", {"module": state(), "checkpoint_version": version}, PARALLEL)
        assert_equal(arrays(tmp_path / f"x{version}"), wanted)


def test_config_of_1_3b_and_up(tmp_path):
    given = PARALLEL | {
        "hidden_act": "relu", "hidden_dropout_prob": 0.3, "hidden_dropout": 0.2, "attention_dropout": 0.05,
        "init_method_std": 0.01, "initializer_range": 0.5, "tokens_to_generate": 9, "top_k": 5, "temperature": 0.7,
        "kv_channels": 4, "fp16": True, "apply_query_key_layer_scaling": False,
    }  # fmt: skip
    weights = open_weights(write_ranks(tmp_path, [state()], given))
    expected = {
        "vocab_size": V, "hidden_size": H, "num_layers": L, "num_heads": HEADS, "ffn_hidden_size": F,
        "max_position_embeddings": P, "seq_length": P, "layernorm_epsilon": EPS, "layer_norm": "standard",
        "hidden_act": "gelu", "embedding_dropout_rate": 0.2, "hidden_dropout_rate": 0.2,
        "attention_dropout_rate": 0.05, "initializer_range": 0.01, "eos_token_id": 7, "max_new_tokens": 9,
        "do_sample": True, "top_k": 5, "top_p": 1.0, "temperature": 0.7, "prompt_special_tokens": "none",
        "layernorm_compute_type": "float32", "tie_word_embeddings": True,
    }  # fmt: skip
    assert {key: getattr(weights.config, key) for key in expected} == expected
    assert any("hidden_act 'relu' is ignored" in note for note in weights.notes)
    assert GPT2Config(**weights.config.model_dump()) == weights.config


def test_config_of_base_and_large(tmp_path):
    given = BASE | {
        "ffn_hidden_size": 5, "bias_gelu_fusion": True, "hidden_dropout": 0.3, "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.05, "initializer_range": 0.03, "tokens_to_generate": 9, "eod_id": 5,
    }  # fmt: skip
    config = open_weights(write_base(tmp_path / "x", state("base"), given)).config
    expected = {
        "hidden_act": "gelu_erf", "ffn_hidden_size": 4 * H, "hidden_dropout_rate": 0.2, "attention_dropout_rate": 0.05,
        "initializer_range": 0.03, "max_new_tokens": 100, "do_sample": True, "top_p": 0.9, "eos_token_id": 5,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("given", "expected", "note"),
    [
        ({"top_k": 1, "top_p": 0.0}, {"do_sample": True, "top_k": 1, "top_p": 1.0}, ""),
        ({"top_k": 5, "top_p": 0.9}, {"do_sample": True, "top_k": 5, "top_p": 1.0}, "one of the two; top_k is taken"),
        ({"top_k": 0, "top_p": 0.0}, {"do_sample": True, "top_k": None, "top_p": 1.0}, ""),
        ({"temperature": 0}, {"do_sample": True, "temperature": 1.0, "top_p": 0.9}, "temperature 0 is not allowed"),
        ({"top_k": float("inf")}, {"top_k": None, "top_p": 0.9}, "top_k inf is not allowed"),
        ({"tokens_to_generate": "many"}, {"max_new_tokens": 100}, "tokens_to_generate 'many' is not allowed"),
    ],
)
def test_generation_settings(tmp_path, given, expected, note):
    weights = open_weights(write_ranks(tmp_path, [state()], PARALLEL | given))
    assert {key: getattr(weights.config, key) for key in expected} == expected
    assert note in " ".join(weights.notes)


def test_config_in_our_form_and_one_that_is_not_the_weights(tmp_path):
    folder = write_ranks(tmp_path, ranks_of(state(), 2))
    config = open_weights(folder).config
    config.save_pretrained(folder)
    assert open_weights(folder).config == config
    config.replaced({"vocab_size": V + 1}).save_pretrained(folder)
    with pytest.raises(UserError, match=r"vocab_size is 65, the weights have 64"):
        open_weights(folder)


def test_what_was_read_is_dropped_from_memory_and_read_again(tmp_path, monkeypatch):
    """With no bytes that may stay mapped, the file is mapped anew after each tensor."""
    whole = arrays(write_ranks(tmp_path / "one", [state()]))
    folder = write_ranks(tmp_path / "x", ranks_of(state(), 2))
    monkeypatch.setattr(modelscope_format, "_MOST_MAPPED", 0)
    opened = []
    loading = modelscope_format.load_without_code
    monkeypatch.setattr(modelscope_format, "load_without_code", lambda file: opened.append(file) or loading(file))
    assert_equal(arrays(folder), whole)
    assert len(opened) > 2 * len(state())


def test_a_run_takes_the_folder(tmp_path, unfused):
    folder = write_ranks(tmp_path / "x", ranks_of(state(), 2))
    (tmp_path / "run.yaml").write_text(
        f"model: {{model_config: {{hidden_size: {H}, num_layers: {L}, num_heads: {HEADS}, ffn_hidden_size: {F}}}}}"
    )
    sizes = {"vocab_size": V, "max_position_embeddings": P, "layernorm_epsilon": EPS}
    values = {"run_mode": "predict", "load_checkpoint": str(folder)}
    values |= {f"model.model_config.{key}": value for key, value in sizes.items()}
    network, _ = build_model(load_config(tmp_path / "run.yaml", values)[0])
    np.testing.assert_allclose(of_mindgpt(network.set_train(False)), logits([state()], IDS).numpy(), atol=1e-4, rtol=0)
    values["model.model_config.num_heads"] = 4
    with pytest.raises(UserError, match="num_heads is 8 there and 4 in the YAML"):
        build_model(load_config(tmp_path / "run.yaml", values)[0])


def test_config_of_modelscope_is_none_of_other_weights(tmp_path):
    folder = write_ranks(tmp_path, [state()])
    with pytest.raises(UserError, match="config of ModelScope's GPT-3, .* it is read with these alone"):
        GPT2Config.from_pretrained(folder)
