"""Which layers get LoRA, what is trained and what is frozen, and merging."""

import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel, UserError
from mindgpt.checkpoints.weights import open_weights, save_checkpoint
from mindgpt.config.model_sections import PetSection
from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.generation import GenerationSettings, Generator
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.models.gpt2.gpt2_modules import Linear
from mindgpt.pet.lora import LoRALinear, add_lora, find_targets, trained_values
from mindgpt.pet.merge import MergedWeights
from mindgpt.pet.names import FACTOR_A, FACTOR_B, pattern_of, shown_paths, stored_out_in
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable, learning_rates
from mindgpt.train.step import TrainStep

pytestmark = pytest.mark.usefixtures("unfused")

ATTENTION = ["attention.dense1", "attention.dense2", "attention.dense3", "attention.projection"]
LAYERS = [*ATTENTION, "output.mapping", "output.projection"]
SIZES = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 50, "seq_length": 32}


@pytest.fixture(scope="module")
def plain(unfused):
    return GPT2LMHeadModel(GPT2Config(**SIZES))


@pytest.mark.parametrize(
    ("pattern", "layers", "blocks"),
    [
        (".*dense1.*|.*dense3.*", ["attention.dense1", "attention.dense3"], (0, 1)),  # MindFormers' own
        ("dense1|dense3", ["attention.dense1", "attention.dense3"], (0, 1)),  # the layer's name alone
        ("dense", ["attention.dense1", "attention.dense2", "attention.dense3"], (0, 1)),  # from its start
        ("projection", ["attention.projection", "output.projection"], (0, 1)),
        (r"backbone\.blocks\.1\.output\.mapping", ["output.mapping"], (1,)),
        (r"(?!.*blocks\.0\.).*dense1", ["attention.dense1"], (1,)),
        (".*attention.*", ATTENTION, (0, 1)),
        (".*(dense[123]|projection|mapping)", LAYERS, (0, 1)),
    ],
)
def test_target_modules_match_whole_paths_or_else_names(plain, pattern, layers, blocks):
    expected = {f"backbone.blocks.{block}.{layer}" for block in blocks for layer in layers}
    found = find_targets(plain, pattern)
    assert set(found) == expected
    assert set(find_targets(plain, pattern_of(found))) == expected


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("c_attn", r"'c_attn' matches no layer\. The layers that can: backbone\.blocks\.0-1\.attention\.dense1, "),
        (".*", r"matches backbone\.embedding\.word_embedding, .*blocks\.0-1\.layernorm2, which cannot take LoRA"),
        (".*dense1|.*layernorm1", r"matches backbone\.blocks\.0-1\.layernorm1, which cannot take LoRA"),
        ("word_embedding", r"matches backbone\.embedding\.word_embedding, which cannot"),
    ],
)
def test_invalid_target_modules_list_the_valid_layers(plain, pattern, said):
    with pytest.raises(UserError, match=said):
        add_lora(plain, PetSection(target_modules=pattern))
    assert not any(isinstance(cell, LoRALinear) for _, cell in plain.cells_and_names())


def test_paths_are_shown_on_one_line():
    paths = [f"backbone.blocks.{block}.attention.dense1" for block in (0, 1, 2, 5)] + ["score"]
    assert shown_paths(paths) == "backbone.blocks.0-2,5.attention.dense1, score"


def test_orientation_by_name_equals_the_networks(plain):
    linears = {path: cell for path, cell in plain.cells_and_names() if isinstance(cell, Linear)}
    assert len(linears) == 12
    assert all(stored_out_in(path) == bool(cell.matmul.transpose_b) for path, cell in linears.items())


def test_a_new_lora_changes_nothing_and_has_mindformers_names(base, ids):
    model = GPT2LMHeadModel.from_pretrained(base)
    before = model.parameters_dict()
    logits = GPT2LMHeadModel.from_pretrained(base)(Tensor(ids)).asnumpy()
    add_lora(model, PetSection(lora_rank=4, target_modules=".*mapping"))
    after = model.parameters_dict()
    assert list(before) == [name for name in after if "lora" not in name]
    assert {name: after[name].shape for name in set(after) - set(before)} == {
        f"backbone.blocks.{block}.output.mapping.mindpet_delta_lora_{factor}": shape
        for block in (0, 1)
        for factor, shape in (("a", (4, 32)), ("b", (1024, 4)))
    }
    assert all(before[name] is after[name] for name in before)
    a = after[f"backbone.blocks.0.output.mapping.{FACTOR_A}"].asnumpy()
    assert 0.5 / 32**0.5 < np.abs(a).max() <= 1 / 32**0.5  # uniform, Kaiming with slope sqrt(5)
    assert np.array_equal(model.set_train(False)(Tensor(ids)).asnumpy(), logits)


def test_lora_is_added_once_and_before_the_first_call(base, ids):
    model = GPT2LMHeadModel.from_pretrained(base)
    add_lora(model, PetSection())
    with pytest.raises(UserError, match="has LoRA already"):
        add_lora(model, PetSection())
    model(Tensor(ids))
    with pytest.raises(UserError, match="before its first call"):
        add_lora(model, PetSection())


def train(model, rows, steps=3):
    rates = LearningRateTable(learning_rates(LRScheduleSection(learning_rate=0.01), steps))
    optimizer = build_optimizer(OptimizerSection(weight_decay=0.1), model.trainable_params(), rates)
    step = TrainStep(model, optimizer, ScaleSenseSection(), 1.0).set_train()
    return optimizer, [float(step(*rows)[0].asnumpy()) for _ in range(steps)]


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_only_the_factors_are_trained_and_have_optimizer_state(bias):
    model = GPT2LMHeadModel(GPT2Config(**SIZES, hidden_dropout_rate=0.0))
    paths = add_lora(model, PetSection(lora_rank=2, lora_dropout=0.1, target_modules=".*dense1|.*mapping", bias=bias))
    values = ("mindpet_delta_lora_a", "mindpet_delta_lora_b") + (("bias",) if bias == "lora_only" else ())
    trained = {f"{path}.{value}" for path in paths for value in values}
    before = {name: parameter.asnumpy().copy() for name, parameter in model.parameters_dict().items()}
    rows = Tensor(np.random.default_rng(0).integers(0, 50, (4, 32)).astype(np.int32))
    optimizer, losses = train(model, [rows])
    assert losses[-1] < losses[0]
    assert {parameter.name for parameter in optimizer.parameters} == trained
    states = {p.name.split(".", 1)[1] for p in optimizer.get_parameters() if p.name.startswith("adam_")}
    assert states == trained
    after = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == trained


def test_a_classification_head_is_trained_in_full():
    model = GPT2ForSequenceClassification(GPT2Config(**SIZES, num_labels=3))
    paths = add_lora(model, PetSection(lora_rank=2))
    factors = {f"{path}.{factor}" for path in paths for factor in (FACTOR_A, FACTOR_B)}
    assert {parameter.name for parameter in model.trainable_params()} == factors | {"score.weight"}
    count = 4 * (2 * 16 + 16 * 2) + 3 * 16
    total = sum(parameter.size for parameter in model.get_parameters())
    share = f"{100 * count / total:.3g} %"
    assert trained_values(model.get_parameters()) == f"trained: {count:,} of {total:,} values ({share})"
    with pytest.raises(UserError, match="matches score, which cannot take LoRA"):
        find_targets(GPT2ForSequenceClassification(GPT2Config(**SIZES)), "score")


@pytest.mark.parametrize("layer", LAYERS)
def test_merged_equals_unmerged(base, ids, tmp_path, with_lora, layer):
    model = with_lora(base, lora_rank=4, lora_alpha=6.0, target_modules=f".*{layer}")
    save_checkpoint(tmp_path / "lora.ckpt", model)
    weights = open_weights(tmp_path / "lora.ckpt")
    merged = MergedWeights(weights.source, weights.source, scaling=1.5)
    assert merged.merged == [f"backbone.blocks.{block}.{layer}" for block in (0, 1)]
    plain_model = GPT2LMHeadModel.from_pretrained(base)
    before = plain_model(Tensor(ids)).asnumpy()
    for name, parameter in plain_model.parameters_dict().items():
        parameter.set_data(Tensor(merged.read(name)))
    assert set(plain_model.parameters_dict()) == set(merged.entries)
    logits = model(Tensor(ids)).asnumpy()  # 132 rows: the products with the large matrices are turned round
    assert np.abs(plain_model(Tensor(ids)).asnumpy() - logits).max() < 1e-5
    if layer == "output.mapping":  # and here they are not
        few = Tensor(ids[:1, :9])
        assert np.abs(plain_model(few).asnumpy() - model(few).asnumpy()).max() < 1e-5
    assert np.abs(before - logits).max() > 0.01


def test_half_precision_weights_keep_their_type_when_merged(tmp_path):
    name = "backbone.blocks.0.attention.projection"
    weight = np.arange(6, dtype=np.float16).reshape(2, 3)
    a, b = np.ones((1, 2), np.float32), np.array([[1], [2], [3]], np.float32)
    save_checkpoint(tmp_path / "x.ckpt", {f"{name}.weight": weight, f"{name}.{FACTOR_A}": a, f"{name}.{FACTOR_B}": b})
    source = open_weights(tmp_path / "x.ckpt").source
    merged = MergedWeights(source, source, 0.5).read(f"{name}.weight")
    assert merged.dtype == np.float16
    assert np.array_equal(merged, weight + np.array([[0.5, 1, 1.5]] * 2, np.float16))


def test_factors_of_another_matrix_are_refused(tmp_path):
    name = "backbone.blocks.0.output.mapping"
    factors = {f"{name}.{FACTOR_A}": np.ones((1, 2), np.float32), f"{name}.{FACTOR_B}": np.ones((3, 1), np.float32)}
    save_checkpoint(tmp_path / "x.ckpt", factors | {f"{name}.weight": np.ones((3, 2), np.float32)})
    source = open_weights(tmp_path / "x.ckpt").source
    with pytest.raises(UserError, match=r"the factors are of a \[2, 3\] matrix, the weight is \[3, 2\]"):
        MergedWeights(source, source, 1.0)


def test_generation_uses_the_factors(base, with_lora, ids):
    model = with_lora(base, lora_rank=4, lora_alpha=8.0, target_modules=".*(dense[123]|projection|mapping)")
    prompt, count = ids[0, :5].tolist(), 6
    row, tokens = np.zeros((1, 16), np.int32), list(prompt)
    for _ in range(count):  # the same without a cache, by the whole forward pass
        row[0, : len(tokens)] = tokens
        tokens.append(int(model(Tensor(row)).asnumpy()[0, len(tokens) - 1].argmax()))
    settings = GenerationSettings(max_new_tokens=count, eos_token_id=None)
    assert Generator(model).generate([prompt], settings)[0] == tokens[5:]
    plain_model = GPT2LMHeadModel.from_pretrained(base)
    assert Generator(plain_model).generate([prompt], settings)[0] != tokens[5:]
