"""Views that rename GPT2_ML's weights between TensorFlow's names or the PyTorch port's and ours, and check them."""

from collections.abc import Mapping

import numpy as np

from mindgpt.checkpoints.gpt2_ml_names import (
    ML_LAYER,
    MLRow,
    are_ports,
    are_tensorflows,
    port_table,
    tensorflow_table,
)
from mindgpt.checkpoints.gpt2_names import (
    HF_EMBEDDING,
    HF_HEAD,
    HF_LAYER,
    HF_MASK_BUFFER,
    HF_PREFIX,
    MF_LAYER,
    SCORE,
    TIED_HEAD,
)
from mindgpt.checkpoints.gpt2_views import check_entries, concrete_shape, count_layers
from mindgpt.checkpoints.skip_rules import skip_rule
from mindgpt.checkpoints.tensor_source import Box, TensorInfo, TensorSource, box_of_part, equal_bits, read_box
from mindgpt.config.errors import UserError

MODEL = "a GPT2_ML"
NAMINGS = ("tensorflow", "torch_port")
PORT_WEIGHTS = "pytorch_model.bin"


_NOTHING = np.empty(0)


class GPT2MLView:
    """The weights of a GPT2_ML under our names, as a `TensorSource`.

    They have TensorFlow's names, or the PyTorch port's with or without `transformer.`. Optimizer slots, counters, mask
    buffers, and an output head that equals the token embedding are skipped.

    Attributes:
        path, entries: as in `TensorSource`.
        naming: one of `NAMINGS`.
        skipped: stored name -> the rule it was skipped by.
        notes: sentences for the user about what was unexpected.
        sizes: shape letter of `gpt2_ml_names` -> int.

    Raises:
        UserError: names or shapes do not fit; all are listed.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        self.notes: list[str] = list(getattr(source, "notes", ()))
        self.skipped: dict[str, str] = {}
        self.naming = "tensorflow" if are_tensorflows(source.entries) else "torch_port"
        self._stored = self._weights()
        held = {name: source.entries[stored] for name, stored in self._stored.items()}
        layer = ML_LAYER if self.naming == "tensorflow" else HF_LAYER
        rows = _table(self.naming, count_layers(held, layer), SCORE.hf_name in held)
        self.sizes = check_entries(held, {row.name: row.shape for row in rows}, self.path, layer, MODEL)
        self._place = {ours: (row, part) for row in rows for part, ours in enumerate(row.ours)}
        in_our_order = [ours for row in port_table(self.sizes["L"], SCORE.hf_name in held) for ours in row.ours]
        self.entries = {}
        for ours in in_our_order:
            row, _ = self._place[ours]
            self.entries[ours] = TensorInfo(concrete_shape(row.our_shape, self.sizes), held[row.name].dtype)
        self._last = ("", _NOTHING)  # the name and the values of the tensor that was read last

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row, part = self._place[name]
        if len(row.ours) == 1:
            return row.split(self._source.read(self._stored[row.name]), 0)
        if self._last[0] != row.name:  # query, key and value are one tensor, read once
            self._last = (row.name, self._source.read(self._stored[row.name]))
        return row.split(self._last[1], part)

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`. Of query, key and value, one is read without the others."""
        row, part = self._place[name]
        if not box:
            return self.read(name)
        place = box_of_part(box, self.entries[name].shape, part, row.transposed)
        array = read_box(self._source, self._stored[row.name], place)
        return np.array(array.T, order="C") if row.transposed else array

    def _weights(self) -> dict[str, str]:
        """Name in the table -> stored name; all others go to `skipped`."""
        weights: dict[str, str] = {}
        for stored in self._source.entries:
            name = stored if self.naming == "tensorflow" else stored.removeprefix(HF_PREFIX)
            if HF_MASK_BUFFER.fullmatch(name):
                self.skipped[stored] = "causal-mask buffer"
            elif rule := skip_rule(name):
                self.skipped[stored] = rule
            elif name in weights:
                raise UserError(f"{self.path}: holds both {weights[name]} and {stored}, which name the same weight.")
            else:
                weights[name] = stored
        if {HF_HEAD, HF_EMBEDDING} <= weights.keys() and equal_bits(
            self._source, weights[HF_HEAD], weights[HF_EMBEDDING]
        ):  # any other head is reported as an unknown name
            self.skipped[weights.pop(HF_HEAD)] = TIED_HEAD
        return weights


class ToGPT2MLView:
    """Our weights of a GPT2_ML under TensorFlow's names or the PyTorch port's, as a `TensorSource`.

    Args:
        source: weights only.
        naming: one of `NAMINGS`.

    Attributes:
        path, entries, sizes: as in `GPT2MLView`.

    Raises:
        UserError: as `GPT2MLView`.
    """

    def __init__(self, source: TensorSource, naming: str = "torch_port"):
        self.path = source.path
        self._source = source
        classifies = SCORE.mf_names[0] in source.entries
        rows = _table(naming, count_layers(source.entries, MF_LAYER), classifies)
        shapes = {ours: row.our_shape for row in rows for ours in row.ours}
        self.sizes = check_entries(source.entries, shapes, self.path, MF_LAYER, MODEL)
        self._rows: dict[str, MLRow] = {row.name: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete_shape(row.shape, self.sizes), source.entries[row.ours[0]].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        return row.fuse([self._source.read(part) for part in row.ours])


def mask_buffers(sizes: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The buffers that the port's state dict has besides weights, constants of the causal mask: those of the first
    layer, and the names in the other layers -> the name in the first.

    `sizes`: "L" layers, "P" positions.
    """
    positions = sizes["P"]
    buffers: dict[str, np.ndarray] = {
        "h.0.attn.bias": np.tril(np.ones((1, 1, positions, positions), np.uint8)),
        "h.0.attn.masked_bias": np.array(-1e4, np.float32),
    }
    same = {name.replace("0", str(layer), 1): name for layer in range(1, sizes["L"]) for name in buffers}
    return buffers, same


def _table(naming: str, num_layers: int, classifies: bool) -> list[MLRow]:
    return tensorflow_table(num_layers) if naming == "tensorflow" else port_table(num_layers, classifies)


def is_gpt2_ml(source: TensorSource) -> bool:
    """Whether weights are a GPT2_ML's, under TensorFlow's names or the PyTorch port's."""
    return are_tensorflows(source.entries) or are_ports(source.entries)
