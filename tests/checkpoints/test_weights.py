"""Strict loading, opening of folders and files, and saving; the oracle is MindSpore's own save and load."""

import json
import pickle

import mindspore as ms
import numpy as np
import pytest
import torch
import transformers
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.weights import CheckpointWeights, LoadReport, load_weights, open_weights, save_checkpoint
from mindgpt.config.errors import UserError
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.models.gpt2 import convert_weight
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable

pytestmark = pytest.mark.usefixtures("cpu")


def load(model, path, **options) -> LoadReport:
    """Load a `.ckpt` into a cell or parameters."""
    return load_weights(model, CheckpointWeights(CheckpointFile(path)), **options)


class Net(nn.Cell):
    """Two parameters, one of which has no memory until it is needed."""

    def __init__(self, weight="float32", bias="float32"):
        super().__init__()
        self.weight = Parameter(initializer("zeros", (2, 3), getattr(ms, weight)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(3), getattr(ms, bias)), name="bias")


WEIGHT = np.array([[1.5, -2.25, 0.1], [3.0, 1e-7, -0.0]], np.float32)
BIAS = np.array([0.5, 1.0, 2.0], np.float32)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "x.ckpt")


def write(path, **held) -> None:
    """A file that MindSpore wrote."""
    ms.save_checkpoint([{"name": name, "data": Tensor(array)} for name, array in held.items()], path)


def test_values_are_loaded_bit_for_bit(path):
    write(path, weight=WEIGHT, bias=BIAS)
    net = Net()
    report = load(net, path)
    assert net.weight.asnumpy().tobytes() == WEIGHT.tobytes()
    assert net.bias.asnumpy().tobytes() == BIAS.tobytes()
    assert sorted(report.loaded) == ["bias", "weight"]
    assert (report.skipped, report.casts, report.not_in_file) == ({}, {}, [])
    assert str(report) == f"{path}: 2 parameters loaded"


def test_casts_are_done_and_reported(path):
    write(path, weight=WEIGHT.astype(np.float16), bias=BIAS)
    net = Net(bias="bfloat16")
    report = load({"weight": net.weight, "bias": net.bias}, path)
    np.testing.assert_array_equal(net.weight.asnumpy(), WEIGHT.astype(np.float16).astype(np.float32))
    assert net.weight.dtype == ms.float32 and net.bias.dtype == ms.bfloat16
    np.testing.assert_array_equal(net.bias.float().asnumpy(), BIAS)
    assert report.casts == {"weight": ("float16", "float32"), "bias": ("float32", "bfloat16")}
    assert "1 cast from float16 to float32" in str(report)


def test_values_that_overflow_in_the_model_are_refused(path):
    write(path, weight=WEIGHT * 1e6, bias=BIAS)
    with pytest.raises(UserError, match="weight: 4 of its values are too large for float16"):
        load(Net(weight="float16"), path)


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(path):
    write(path, weight=WEIGHT.T.copy(), biass=BIAS)
    net = Net()
    with pytest.raises(UserError) as error:
        load(net, path)
    assert str(error.value).splitlines() == [
        f"{path}: does not fit the model, and nothing was loaded:",
        "  missing in the file: bias [3]",
        "  left over in the file: biass [3]",
        "  wrong shape: weight is [3, 2] in the file and [2, 3] in the model",
    ]
    assert not net.weight.asnumpy().any()


OPTIMIZERS = ({}, {"type": "adafactor", "beta1": 0.9}, {"type": "lion"}, {"type": "sgd", "momentum": 0.9})


def test_training_state_is_skipped_by_named_rules(path):
    rates = LearningRateTable(np.ones(1))
    theirs = (nn.Momentum([Net().weight], 0.1, 0.9), nn.SGD([Net().weight], 0.1), nn.AdamWeightDecay([Net().weight]))
    ours = [build_optimizer(OptimizerSection(**settings), [*Net().get_parameters()], rates) for settings in OPTIMIZERS]
    names = {p.name for optimizer in (*theirs, *ours) for p in optimizer.get_parameters()} - {"weight", "bias"}
    names |= {"exp_avg.weight", "exp_avg_sq_row_weight", "exp_avg_insta_col_weight", "afactor_step"}  # AdaFactor, Came
    names |= {"master.weight"}  # of a weight in half precision
    assert {"moments.weight", "accum.weight", "adam_m.weight", "exp_avg_sq_row_weight", "lion_m.weight"} <= names
    assert all(skip_rule(name) for name in names), names
    write(path, weight=WEIGHT, bias=BIAS, **dict.fromkeys(names, BIAS))
    report = load(Net(), path)
    assert set(report.skipped) == names
    assert report.skipped["adam_m.weight"] == report.skipped["master.weight"] == "optimizer state"
    assert report.skipped["global_step"] == "training counter"
    assert "skipped (optimizer state)" in str(report)


@pytest.mark.parametrize(
    "name", ["weight", "backbone.blocks.0.attention.dense1.bias", "score.weight", "my_adam_m.x", "masters.x"]
)
def test_no_rule_skips_a_weight(name):
    assert skip_rule(name) is None


def test_lora_factors_are_named_and_may_be_missing_if_allowed(path):
    lora = "dense1.mindpet_delta_lora_a"
    write(path, weight=WEIGHT, bias=BIAS, **{lora: BIAS})
    with pytest.raises(UserError, match="LoRA weights: merge"):
        load(Net(), path)

    write(path, weight=WEIGHT, bias=BIAS)
    net = Net()
    parameters = net.parameters_dict() | {lora: Parameter(Tensor(BIAS * 3), name=lora)}
    with pytest.raises(UserError, match="missing in the file: dense1"):
        load(parameters, path)
    report = load(parameters, path, may_be_missing=["mindpet_delta_lora"])
    assert report.not_in_file == [lora]
    np.testing.assert_array_equal(parameters[lora].asnumpy(), BIAS * 3)
    np.testing.assert_array_equal(net.weight.asnumpy(), WEIGHT)


def test_broken_files_name_themselves_and_log_nothing(path, tmp_path, capfd):
    write(path, weight=WEIGHT, bias=BIAS)
    whole = (tmp_path / "x.ckpt").read_bytes()
    capfd.readouterr()
    for name, content in (("cut", whole[:-3]), ("garbage", b"\x00garbage" * 9), ("empty", b"")):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.ckpt: "):
            load(Net(), tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="no such file"):
        load(Net(), tmp_path / "absent.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        load(Net(), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_text_entries_are_refused(path):
    ms.save_checkpoint([{"name": "weight", "data": Tensor(WEIGHT)}], path, append_dict={"note": "hello"})
    with pytest.raises(UserError, match="text, not weights, .* note"):
        load(Net(), path)


def test_mindspore_reads_what_save_checkpoint_writes(path):
    net = Net(bias="bfloat16")
    save_checkpoint(path, net)  # before any memory was given to net.weight
    net.weight.set_data(Tensor(WEIGHT))
    net.bias.set_data(Tensor(BIAS, ms.bfloat16))
    save_checkpoint(path, net)
    other = Net(bias="bfloat16")
    assert ms.load_param_into_net(other, ms.load_checkpoint(path), strict_load=True) == ([], [])
    np.testing.assert_array_equal(other.weight.asnumpy(), WEIGHT)
    np.testing.assert_array_equal(other.bias.float().asnumpy(), BIAS)

    extras = {"epoch_num": 3, "loss_scale": 1024.0, "done": True, "note": "é", "table": BIAS, "tensor": Tensor(BIAS)}
    save_checkpoint(path, net.parameters_dict() | extras)
    held = ms.load_checkpoint(path)
    assert list(held) == ["weight", "bias", *extras]
    assert (held["epoch_num"].dtype, held["loss_scale"].dtype, held["done"].dtype) == (ms.int64, ms.float32, ms.bool_)
    assert held["epoch_num"] == 3 and held["loss_scale"] == 1024.0 and held["note"] == "é"
    np.testing.assert_array_equal(held["table"].asnumpy(), BIAS)
    np.testing.assert_array_equal(held["tensor"].asnumpy(), BIAS)


@pytest.fixture
def hf_folder(tmp_path):
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def contents(weights) -> dict[str, np.ndarray]:
    return {name: weights.source.read(name) for name in weights.source.entries}


def test_every_path_to_a_model_opens_the_same_weights(hf_folder, tmp_path):
    ours = tmp_path / "ours/model.ckpt"
    convert_weight.main(["--torch_path", str(hf_folder), "--mindspore_path", str(ours)])
    reference = {name: p.asnumpy() for name, p in ms.load_checkpoint(str(ours)).items()}
    for path in (hf_folder, hf_folder / "model.safetensors", ours, ours.parent):
        weights = open_weights(path)
        assert weights.kind == ("hugging_face" if hf_folder in (path, path.parent) else "checkpoint")
        assert (weights.config.num_layers, weights.config.num_heads, weights.config.hidden_size) == (1, 2, 8)
        held = contents(weights)
        assert held.keys() == reference.keys()
        assert all(np.array_equal(held[name], array) for name, array in reference.items())
        parameters = {name: Parameter(Tensor(np.zeros_like(array)), name=name) for name, array in reference.items()}
        load_weights(parameters, weights)
        assert all(np.array_equal(parameters[name].asnumpy(), array) for name, array in reference.items())


def test_a_checkpoints_own_config_takes_precedence(hf_folder, tmp_path):
    ours = tmp_path / "ours/model.ckpt"
    convert_weight.main(["--torch_path", str(hf_folder), "--mindspore_path", str(ours)])
    shared = ours.with_name("config.json")
    (ours.parent / "model.config.json").write_text(json.dumps(json.loads(shared.read_text()) | {"n_head": 4}))
    assert open_weights(ours).config.num_heads == 4
    (ours.parent / "model.config.json").unlink()
    assert open_weights(ours).config.num_heads == 2
    shared.unlink()
    assert open_weights(ours).config is None


def test_ambiguous_folders_are_refused(hf_folder, tmp_path):
    with pytest.raises(UserError, match=r"no weights .*model\.safetensors, .*model\.ckpt"):
        open_weights(tmp_path)
    (tmp_path / "gpt2-3_100.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"Found gpt2-3_100\.ckpt: name the file"):
        open_weights(tmp_path)
    (hf_folder / "model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"both model\.safetensors and model\.ckpt"):
        open_weights(hf_folder)
    with pytest.raises(UserError, match="no such file"):
        open_weights(tmp_path / "absent")


def test_a_tensor_read_twice_is_not_shared(hf_folder):
    """MindSpore tensors lie on the arrays they are made from, so two models must not get the same one."""
    source = open_weights(hf_folder).source
    for name in source.entries:
        first, second = source.read(name), source.read(name)
        assert not np.shares_memory(first, second), name


def test_bfloat16_files_open_exactly(hf_folder):
    model = transformers.GPT2LMHeadModel.from_pretrained(hf_folder).bfloat16()
    model.save_pretrained(hf_folder)
    held = contents(open_weights(hf_folder))
    wte = model.transformer.wte.weight.float().detach()
    assert torch.equal(torch.from_numpy(held["backbone.embedding.word_embedding.embedding_table"]), wte)


@pytest.mark.filterwarnings("error")
def test_a_file_that_pytorch_refuses(tmp_path):
    """One message; PyTorch's own advises to load the file in the way that runs what is in it."""
    for name, content in (
        ("data.pt", pickle.dumps((([101, 6821, 102], 0), [3]), protocol=4)),  # a data set of UER-py
        ("cut.bin", b"PK\x03\x04" + bytes(200)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: PyTorch cannot read it as a file of tensors \(") as raised:
            open_weights(tmp_path / name)
        assert "weights_only" not in str(raised.value) and str(raised.value).count("\n") == 0
