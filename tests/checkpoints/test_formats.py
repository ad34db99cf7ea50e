"""The registry of weight formats: a new format and a new naming are one entry each."""

import numpy as np

from mindgpt.checkpoints.formats import FORMATS, WeightFormat
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.weights import NAMINGS, CheckpointWeights, Naming, open_weights


class ToyFile:
    """A source whose weights have names of their own."""

    def __init__(self, path):
        self.path = path
        self.entries = {"toy/bias": TensorInfo((2,), "float32")}

    def read(self, name):
        return np.array([1.0, 2.0], np.float32)


class ToyView(ToyFile):
    """The same under our names."""

    def __init__(self, source):
        super().__init__(source.path)
        self.entries = {"backbone.layernorm.beta": source.entries["toy/bias"]}


def test_a_new_format_and_naming_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", WeightFormat(lambda path: path.suffix == ".toy", ToyFile))
    named = Naming(lambda source: "toy/bias" in source.entries, ToyView)
    monkeypatch.setattr("mindgpt.checkpoints.weights.NAMINGS", {"toy": named} | NAMINGS)
    (tmp_path / "x.toy").write_bytes(b"toy")
    weights = open_weights(tmp_path / "x.toy")
    assert weights.kind == "toy" and list(weights.source.entries) == ["backbone.layernorm.beta"]
    assert weights.source.read("backbone.layernorm.beta").tolist() == [1.0, 2.0]


def test_our_names_are_recognised_in_any_format(tmp_path):
    source = ToyView(ToyFile(tmp_path))
    assert NAMINGS["checkpoint"].matches(source) and NAMINGS["checkpoint"].view is CheckpointWeights
