"""Layer norm and output head of a run: of the YAML if it names them, and of the weights, never silently another."""

import json
import shutil

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config import UserError, load_config
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_modules import UnbiasedLayerNorm
from mindgpt.tasks.model_setup import build_model, plan_model

pytestmark = pytest.mark.usefixtures("cpu")

KEY = "model.model_config."


@pytest.fixture(scope="module")
def weights(cpu, tmp_path_factory):
    """Folders of toy weights, by their layer norm and whether the head is tied."""
    folder = tmp_path_factory.mktemp("weights")
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "vocab_size": 300, "seq_length": 32}
    for layer_norm, conversion, tied in (("uer", "uer", False), ("standard", "copy", True)):
        network = {"layer_norm": layer_norm, "layer_norm_conversion": conversion, "tie_word_embeddings": tied}
        GPT2LMHeadModel(GPT2Config(**sizes, **network)).save_pretrained(folder / layer_norm)
    return folder


@pytest.fixture
def build(weights, toy):
    """Build the model of a run from weights, with values of the YAML's section `model_config`."""

    def build(named, mode="eval", more=None, **values):
        overrides = {KEY + key: value for key, value in values.items()} | (more or {})
        return build_model(
            load_config(toy.yaml, {"run_mode": mode, "load_checkpoint": str(weights / named), **overrides})[0]
        )

    return build


def test_a_yaml_that_names_neither_takes_those_of_the_weights(build, weights, capsys):
    model, config = build("uer")
    said = capsys.readouterr().out
    assert "layer_norm: uer, as the config of" in said
    assert "has an output head of its own (head.weight)" in said
    section = config.model.config
    assert (section.layer_norm, section.layer_norm_conversion, section.layernorm_epsilon) == ("uer", "uer", 1e-6)
    assert section.tie_word_embeddings is False
    assert isinstance(model.backbone.layernorm.layer_norm, UnbiasedLayerNorm) and model.head.weight is not None
    ids = Tensor(np.arange(12, dtype=np.int32)[None])
    expected = GPT2LMHeadModel.from_pretrained(weights / "uer")(ids).asnumpy()
    np.testing.assert_array_equal(model.set_train(False)(ids).asnumpy(), expected)

    _, config = build("standard")
    assert "layer_norm" not in capsys.readouterr().out
    assert (config.model.config.layer_norm, config.model.config.layer_norm_conversion) == ("standard", "copy")


@pytest.mark.parametrize(
    ("named", "values", "words"),
    [
        ("uer", {"layer_norm": "standard"}, "says layer_norm 'uer', the YAML 'standard'"),
        ("uer", {"layer_norm_conversion": "copy"}, "says layer_norm 'uer', the YAML 'standard'"),
        ("standard", {"layer_norm": "uer"}, "says layer_norm 'standard', the YAML 'uer'"),
        ("standard", {"layer_norm_conversion": "folded"}, "says layer_norm_conversion 'copy', the YAML 'folded'"),
        ("uer", {"tie_word_embeddings": True}, r"output head of its own \(head.weight\), and the YAML says"),
        ("standard", {"tie_word_embeddings": False}, "token embedding as its output head, and the YAML says"),
    ],
)
def test_a_yaml_that_names_another_is_refused(build, named, values, words):
    with pytest.raises(UserError, match=words):
        build(named, **values)


@pytest.mark.parametrize(
    ("layer_norm", "conversion", "eps", "named", "expected"),
    [
        ("standard", "folded", 1e-7, {}, 1e-7),
        ("standard", "folded", 1e-7, {"layernorm_epsilon": 1e-5}, 1e-5),
        ("uer", "uer", 1e-4, {"layer_norm": "uer"}, 1e-4),  # TencentPretrain's layernorm_eps
        ("standard", None, 1e-4, {}, 1e-4),
        ("standard", None, 1e-4, {"layernorm_epsilon": 1e-5}, 1e-5),  # the YAML is obeyed, and the difference said
    ],
)
def test_the_eps_of_converted_weights_goes_with_them(
    build, weights, capsys, layer_norm, conversion, eps, named, expected
):
    folder = weights / f"{layer_norm}-{conversion}-{eps}"
    shutil.copytree(weights / "standard", folder, dirs_exist_ok=True)
    content = json.loads((folder / "config.json").read_text()) | {"layer_norm_epsilon": eps}
    content["mindgpt"] |= {"layer_norm": layer_norm, "layer_norm_conversion": conversion}
    (folder / "config.json").write_text(json.dumps(content))
    _, config = build(folder.name, **named)
    assert config.model.config.layernorm_epsilon == expected
    said = capsys.readouterr().out
    assert (f"layernorm_epsilon: {eps}, as the config of" in said) == (expected == eps)
    assert ("The YAML is obeyed" in said) == (expected != eps)


def test_a_resumed_model_of_shards_is_that_of_its_checkpoint(weights, toy, capsys):
    """It is built before the weights are there."""
    model, config, _ = plan_model(load_config(toy.yaml)[0], weights_follow=weights / "uer" / "model.ckpt")
    assert "layer_norm: uer, as the config of" in capsys.readouterr().out
    assert isinstance(model.backbone.layernorm.layer_norm, UnbiasedLayerNorm)
    assert model.head.weight is not None and config.model.config.layernorm_epsilon == 1e-6
    with pytest.raises(UserError, match="the YAML 'standard'"):
        plan_model(load_config(toy.yaml, {KEY + "layer_norm": "standard"})[0], weights / "uer" / "model.ckpt")


def test_a_classifier_starts_from_either(build, capsys):
    kinds = {"trainer.type": "TextClassificationTrainer", "model.arch.type": "GPT2ForSequenceClassification"}
    for named in ("uer", "standard"):
        model, config = build(named, "finetune", kinds)
        said = capsys.readouterr().out
        assert "score.weight (new, and random)" in said
        assert ("1 skipped (output head of a language model)" in said) == (named == "uer")
        assert model.config.layer_norm == config.model.config.layer_norm == named
