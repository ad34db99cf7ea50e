"""Every shipped YAML loads, says only what differs from the defaults, and builds a network that computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindgpt.config import load_config

REPO = Path(__file__).resolve().parent.parent
FOLDERS = [REPO / "configs" / name for name in ("gpt2", "gpt2_chinese", "gpt2_ml", "gpt3")]
CONFIGS = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
NO_PART_OF_THE_NETWORK = (
    "checkpoint_name_or_path", "param_init_type", "max_new_tokens", "min_new_tokens", "end_token", "do_sample", "top_k",
    "pet_config", "num_labels",
)  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_without_ignored_keys(path):
    _, ignored = load_config(path)
    assert not ignored, "a shipped file has no key without effect"


def networks():
    """One file of each network that the files hold, by the names of all that hold it. Those of gpt3 from 13B on, of
    which a layer takes up to 8 GB, are compiled without values instead, in tests/tasks/test_shipped_layouts.py."""
    same = {}
    for path in CONFIGS:
        network = load_config(path)[0].model.config.model_dump(exclude=set(NO_PART_OF_THE_NETWORK))
        if path.parent.name == "gpt3" and network["hidden_size"] > 4096:
            continue
        same.setdefault(str(sorted(network.items())), []).append(path)
    return {", ".join(path.stem for path in paths): paths[0] for paths in same.values()}


@pytest.fixture
def repeated_weights(monkeypatch):
    """Weights that repeat the same random values: the widest network has over a billion of them."""
    from mindgpt.models.random_weights import PIECE, NormalWeights

    drawn = np.random.default_rng(0).standard_normal(PIECE, np.float32)

    def fill(self, _, values):
        np.multiply(drawn[: values.size], np.float32(self.std), out=values)

    monkeypatch.setattr(NormalWeights, "_fill", fill)


@pytest.mark.parametrize("path", networks().values(), ids=networks())
def test_builds_and_computes_at_its_width(path, cpu, repeated_weights):
    from mindspore import Tensor

    from mindgpt import GPT2Config, GPT2LMHeadModel

    config, _ = load_config(path)
    model_config = GPT2Config.from_section(config.model.config)
    shallow = GPT2Config(**{**model_config.model_dump(), "num_layers": 1})
    model = GPT2LMHeadModel(shallow).set_train(False)
    logits = model(Tensor(np.zeros((1, 4), np.int32))).asnumpy()
    assert logits.shape == (1, 4, model_config.vocab_size)
    assert np.isfinite(logits).all()
    layers = sum(p.size for name, p in model.parameters_dict().items() if ".blocks.0." in name)
    rest = sum(p.size for p in model.get_parameters()) - layers
    assert rest + model_config.num_layers * layers == model_config.num_parameters()


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda folder: folder.name)
def test_parts_are_all_used(folder):
    """Its `shared` holds what several files are based on."""
    used = {folder / name for path in folder.glob("*.yaml") for name in yaml.safe_load(path.read_text())["base_config"]}
    assert used == set((folder / "shared").iterdir())


@pytest.mark.parametrize("size", ["distil", "base", "medium", "large", "xlarge"])
def test_stages_of_chinese_pretraining_have_one_network(size):
    """All but the rows' length is equal, and the position table has its full length from stage 1 on."""
    stages = [
        load_config(FOLDERS[1] / f"pretrain_gpt2_chinese_{size}_seq{length}_fp16.yaml")[0] for length in (128, 1024)
    ]
    first, second = (stage.model.config.model_dump() for stage in stages)
    assert (first.pop("seq_length"), second.pop("seq_length")) == (128, 1024)
    assert first == second
    assert (first["max_position_embeddings"], first["vocab_size"]) == (1024, 21128)
    rows = [stage.runner_config.batch_size * 8 for stage in stages]
    assert rows == [512, 128]
    assert [stage.lr_schedule.learning_rate for stage in stages] == [2e-5 if size == "xlarge" else 1e-4, 5e-5]


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("distil", 59_541_504),
        ("base", 102_068_736),
        ("medium", 324_995_072),
        ("large", 736_744_960),
        ("xlarge", 1_511_004_800),
    ],
)
def test_sizes_of_the_published_chinese_models(size, parameters):
    from mindgpt import GPT2Config

    config, _ = load_config(FOLDERS[1] / f"predict_gpt2_chinese_{size}_fp16.yaml")
    assert GPT2Config.from_section(config.model.config).num_parameters() == parameters


@pytest.mark.parametrize(
    ("size", "vocab_size", "parameters"),
    [
        ("base", 8021, 92_002_560),
        ("large", 8021, 311_573_504),
        ("mega", 21130, 1_393_944_576),  # that of 15 GB of text
        ("mega", 8021, 1_373_809_152),  # that of 30 GB
    ],
)
def test_networks_of_gpt2_ml(size, vocab_size, parameters, shared_data):
    """The files of a size have one network, that of GPT2_ML's own config but for its vocabulary and its dropout."""
    from mindgpt import GPT2Config

    theirs = json.loads((shared_data / "gpt2_ml" / f"{size}.json").read_text())
    theirs |= {"vocab_size": vocab_size, "attention_probs_dropout_prob": 0.0, "embd_pdrop": 0.0}
    theirs |= {"hidden_act": "gelu_erf", "n_inner": theirs.pop("intermediate_size")}
    expected = GPT2Config(variant="gpt2_ml", **theirs)
    for path in FOLDERS[2].glob(f"*_{size}_*.yaml"):
        network = load_config(path, {"model.model_config.vocab_size": vocab_size})[0].model.config
        config = GPT2Config.from_section(network)
        assert config.num_parameters() == parameters
        for name in (
            "variant", "vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size", "hidden_act",
            "max_position_embeddings", "seq_length", "initializer_range", "embedding_dropout_rate",
            "hidden_dropout_rate", "attention_dropout_rate", "layernorm_epsilon", "tie_word_embeddings",
        ):  # fmt: skip
            assert getattr(config, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("size", "layers", "heads", "width", "learning_rate", "millions_of_tokens"),
    [
        ("base", 12, 12, 768, 6.0e-4, 0.5),
        ("large", 24, 16, 1024, 3.0e-4, 0.5),
        ("1.3b", 24, 32, 2048, 2.0e-4, 2),
        ("2.7b", 32, 32, 2560, 1.6e-4, 2),
        ("13b", 40, 40, 5120, 1.0e-4, 6),
        ("30b", 48, 56, 7168, 1.0e-4, 6),
        ("175b", 96, 96, 12288, 1.2e-4, 6),
    ],
)
def test_chinese_gpt3_is_that_of_modelscopes_table(size, layers, heads, width, learning_rate, millions_of_tokens):
    from mindgpt import GPT2Config
    from mindgpt.config.layout import rows_of_step

    for file in (REPO / "configs" / "gpt3").glob(f"*_gpt3_{size}_*fp16.yaml"):
        network = load_config(file)[0].model.config
        assert (network.num_layers, network.num_heads, network.hidden_size) == (layers, heads, width), file
        assert (network.seq_length, network.vocab_size) == (2048, 25600), file
    config, _ = load_config(REPO / "configs" / "gpt3" / f"pretrain_gpt3_{size}_fp16.yaml")
    assert config.lr_schedule.learning_rate == learning_rate
    assert rows_of_step(config) * 2048 == millions_of_tokens * 2**20
    products = 12 * layers * width**2 + 13 * layers * width  # of the blocks, with their biases and layer norms
    expected = products + (25600 + 2048) * width + 2 * width
    assert GPT2Config.from_section(config.model.config).num_parameters() == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_short(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) < 60
    assert isinstance(yaml.safe_load(path.read_text()), dict)
