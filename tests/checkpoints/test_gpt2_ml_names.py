"""GPT2_ML's weights under TensorFlow's names, the PyTorch port's and ours, against tables written out by hand."""

from pathlib import Path

import numpy as np
import pytest

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_ml_views import GPT2MLView, ToGPT2MLView, is_gpt2_ml
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.config.errors import UserError
from tests.checkpoints.tensorflow_files import write_bundle

L, H, F, V, P = 11, 4, 6, 9, 5  # two digits of layers
RANDOM = np.random.default_rng(8)


class Arrays:
    """Arrays as a `TensorSource`."""

    path = Path("model")

    def __init__(self, arrays):
        self.arrays = arrays
        self.entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays.items()}

    def read(self, name):
        return np.array(self.arrays[name])


def our_weights() -> dict[str, np.ndarray]:
    shapes = {
        "backbone.embedding.word_embedding.embedding_table": (V, H),
        "backbone.embedding.position_embedding.embedding_table": (P, H),
        "backbone.embedding.layernorm.gamma": (H,),
        "backbone.embedding.layernorm.beta": (H,),
    }
    for i in range(L):
        shapes |= {
            f"backbone.blocks.{i}.layernorm1.gamma": (H,),
            f"backbone.blocks.{i}.layernorm1.beta": (H,),
            f"backbone.blocks.{i}.layernorm2.gamma": (H,),
            f"backbone.blocks.{i}.layernorm2.beta": (H,),
            f"backbone.blocks.{i}.attention.dense1.weight": (H, H),
            f"backbone.blocks.{i}.attention.dense1.bias": (H,),
            f"backbone.blocks.{i}.attention.dense2.weight": (H, H),
            f"backbone.blocks.{i}.attention.dense2.bias": (H,),
            f"backbone.blocks.{i}.attention.dense3.weight": (H, H),
            f"backbone.blocks.{i}.attention.dense3.bias": (H,),
            f"backbone.blocks.{i}.attention.projection.weight": (H, H),
            f"backbone.blocks.{i}.attention.projection.bias": (H,),
            f"backbone.blocks.{i}.output.mapping.weight": (H, F),
            f"backbone.blocks.{i}.output.mapping.bias": (F,),
            f"backbone.blocks.{i}.output.projection.weight": (F, H),
            f"backbone.blocks.{i}.output.projection.bias": (H,),
        }
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


OURS = our_weights()


def of_tensorflow() -> dict[str, np.ndarray]:
    made = {
        "newslm/embeddings/word_embed": OURS["backbone.embedding.word_embedding.embedding_table"],
        "newslm/embeddings/pos_embed": OURS["backbone.embedding.position_embedding.embedding_table"],
        "newslm/embeddings/LayerNorm_embed_norm/gamma": OURS["backbone.embedding.layernorm.gamma"],
        "newslm/embeddings/LayerNorm_embed_norm/beta": OURS["backbone.embedding.layernorm.beta"],
    }
    for i in range(L):
        theirs, ours = f"newslm/layer{i:02d}/", f"backbone.blocks.{i}."
        for part in ("gamma", "beta"):
            made[f"{theirs}LayerNorm_mlp_ln0/{part}"] = OURS[f"{ours}layernorm1.{part}"]
            made[f"{theirs}LayerNorm_mlp_ln1/{part}"] = OURS[f"{ours}layernorm2.{part}"]
        for number, linear in enumerate(("query", "key", "value"), start=1):
            made[f"{theirs}{linear}_layer/kernel"] = OURS[f"{ours}attention.dense{number}.weight"].T
            made[f"{theirs}{linear}_layer/bias"] = OURS[f"{ours}attention.dense{number}.bias"]
        made[f"{theirs}context_projection_layer/kernel"] = OURS[f"{ours}attention.projection.weight"]
        made[f"{theirs}context_projection_layer/bias"] = OURS[f"{ours}attention.projection.bias"]
        made[f"{theirs}intermediate/kernel"] = OURS[f"{ours}output.mapping.weight"]
        made[f"{theirs}intermediate/bias"] = OURS[f"{ours}output.mapping.bias"]
        made[f"{theirs}output/kernel"] = OURS[f"{ours}output.projection.weight"]
        made[f"{theirs}output/bias"] = OURS[f"{ours}output.projection.bias"]
    return made


def of_port(prefix: str = "") -> dict[str, np.ndarray]:
    made = {
        "wte.weight": OURS["backbone.embedding.word_embedding.embedding_table"],
        "wpe.weight": OURS["backbone.embedding.position_embedding.embedding_table"],
        "emb_norm.weight": OURS["backbone.embedding.layernorm.gamma"],
        "emb_norm.bias": OURS["backbone.embedding.layernorm.beta"],
    }
    for i in range(L):
        theirs, ours = f"h.{i}.", f"backbone.blocks.{i}."
        attention = [f"{ours}attention.dense{number}" for number in (1, 2, 3)]
        made |= {
            f"{theirs}ln_1.weight": OURS[f"{ours}layernorm1.gamma"],
            f"{theirs}ln_1.bias": OURS[f"{ours}layernorm1.beta"],
            f"{theirs}attn.c_attn.weight": np.concatenate([OURS[f"{name}.weight"].T for name in attention], axis=1),
            f"{theirs}attn.c_attn.bias": np.concatenate([OURS[f"{name}.bias"] for name in attention]),
            f"{theirs}attn.c_proj.weight": OURS[f"{ours}attention.projection.weight"],
            f"{theirs}attn.c_proj.bias": OURS[f"{ours}attention.projection.bias"],
            f"{theirs}ln_2.weight": OURS[f"{ours}layernorm2.gamma"],
            f"{theirs}ln_2.bias": OURS[f"{ours}layernorm2.beta"],
            f"{theirs}mlp.c_fc.weight": OURS[f"{ours}output.mapping.weight"],
            f"{theirs}mlp.c_fc.bias": OURS[f"{ours}output.mapping.bias"],
            f"{theirs}mlp.c_proj.weight": OURS[f"{ours}output.projection.weight"],
            f"{theirs}mlp.c_proj.bias": OURS[f"{ours}output.projection.bias"],
        }
    return {prefix + name: array for name, array in made.items()}


def assert_holds(view, wanted) -> None:
    assert {name: info.shape for name, info in view.entries.items()} == {name: x.shape for name, x in wanted.items()}
    for name, array in wanted.items():
        read = view.read(name)
        assert read.dtype == np.float32 and read.flags.c_contiguous and np.array_equal(read, array), name


def test_a_tensorflow_checkpoint_with_slots(tmp_path):
    weights = of_tensorflow()
    slots = {
        f"{name}/adafactor_{slot}": np.ones(size, np.float32)
        for name, array in weights.items()
        for slot, size in (zip(("vr", "vc"), array.shape, strict=True) if array.ndim == 2 else [("v", array.shape)])
    }
    more = slots | {"global_step": np.array(100000, np.int64)}
    source = open_source(write_bundle(tmp_path / "model.ckpt-100000", weights | more, snappy=True))
    assert is_gpt2_ml(source)
    view = GPT2MLView(source)
    assert view.sizes == {"L": L, "H": H, "F": F, "V": V, "P": P}
    assert view.skipped == dict.fromkeys(slots, "optimizer state") | {"global_step": "training counter"}
    assert list(view.entries) == list(GPT2MLView(Arrays(of_port())).entries)  # so that files made of both are equal
    assert_holds(view, OURS)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_pytorch_port(prefix):
    """As its converter writes them, and as its fine-tuning does: with a tied head."""
    buffers = {f"{prefix}h.{i}.attn.bias": np.ones((1, 1, P, P), np.uint8) for i in range(L)}
    buffers |= {f"{prefix}h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(L)}
    heads = {"lm_head.weight": of_port()["wte.weight"]} if prefix else {}
    source = Arrays(of_port(prefix) | buffers | heads)
    assert is_gpt2_ml(source)
    view = GPT2MLView(source)
    assert view.skipped.keys() == buffers.keys() | heads.keys()
    assert view.sizes == {"L": L, "H": H, "3H": 3 * H, "F": F, "V": V, "P": P}
    assert_holds(view, OURS)


@pytest.mark.parametrize(("naming", "wanted"), [("tensorflow", of_tensorflow()), ("torch_port", of_port())])
def test_our_weights_under_their_names(naming, wanted):
    view = ToGPT2MLView(Arrays(OURS), naming)
    assert view.sizes == {"L": L, "H": H, "F": F, "V": V, "P": P}
    assert_holds(view, wanted)
    assert not is_gpt2_ml(Arrays(OURS)) and is_gpt2_ml(view)


def test_tensorflow_to_port_and_back():
    port = ToGPT2MLView(GPT2MLView(Arrays(of_tensorflow())))
    assert list(port.entries) == list(of_port())
    assert_holds(port, of_port())
    assert_holds(ToGPT2MLView(GPT2MLView(port), "tensorflow"), of_tensorflow())


def test_an_array_that_was_read_may_be_changed():
    view = GPT2MLView(Arrays(of_port()))
    for name in OURS:
        view.read(name)[:] = 0
    assert_holds(view, OURS)


def test_all_problems_are_listed():
    weights = of_tensorflow() | {"newslm/layer03/extra": np.ones(2)}
    del weights["newslm/layer00/output/bias"]
    weights["newslm/layer10/key_layer/bias"] = np.ones(7, np.float32)
    with pytest.raises(UserError) as raised:
        GPT2MLView(Arrays(weights))
    assert str(raised.value).splitlines() == [
        "model: not the weights of a GPT2_ML:",
        "  missing: newslm/layer00/output/bias",
        "  unknown: newslm/layer03/extra [2]",
        "  wrong shape: newslm/layer10/key_layer/bias is [7], expected [4] from the other weights",
    ]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"lm_head.weight": np.ones((V, H), np.float32)}, r"unknown: lm_head.weight \[9, 4\]"),
        ({"ln_f.weight": np.ones(H, np.float32)}, r"unknown: ln_f.weight"),
        ({"transformer.wpe.weight": np.ones((P, H), np.float32)}, "holds both wpe.weight and transformer.wpe.weight"),
    ],
)
def test_what_a_gpt2_ml_does_not_have(more, says):
    with pytest.raises(UserError, match=says):
        GPT2MLView(Arrays(of_port() | more))


@pytest.mark.parametrize(
    ("step", "vocabulary", "parameters"), [(100000, 21130, 1_393_944_576), (220000, 8021, 1_373_809_152)]
)
def test_the_real_indexes(tmp_path, shared_data, step, vocabulary, parameters):
    name = f"model.ckpt-{step}"
    (tmp_path / f"{name}.index").write_bytes((shared_data / "gpt2_ml" / f"{name}.index").read_bytes())
    with open(tmp_path / f"{name}.data-00000-of-00001", "wb") as file:
        file.truncate(5_585_033_776)  # takes no room on the disk
    view = GPT2MLView(open_source(tmp_path / name))
    assert view.sizes == {"L": 48, "H": 1536, "F": 6144, "V": vocabulary, "P": 1024}
    assert (len(view.entries), len(view.skipped)) == (772, 1063)
    assert sum(info.nbytes for info in view.entries.values()) == 4 * parameters
    assert view.entries["backbone.blocks.47.output.projection.weight"].shape == (6144, 1536)
    assert view.entries["backbone.blocks.0.attention.dense1.weight"].shape == (1536, 1536)
