"""Merging LoRA: each update is added to its weight, so that a plain model computes the same."""

import numpy as np

from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.config.errors import UserError
from mindgpt.pet.names import FACTOR_A, FACTOR_B, SCORE, is_factor, stored_out_in


class MergedWeights:
    """The merged weights of a plain model, as a `TensorSource`; each is merged when it is read.

    W + scaling * B A for a weight stored [out, in], and the transpose of the update for one stored [in, out]; computed
    in float32, returned in the dtype of W. Biases and a classification head that were trained come from the adapter.

    Args:
        base: the frozen weights; may also hold the factors.
        adapter: the factors and whatever else was trained; `base` itself for a whole LoRA checkpoint.
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA.

    Raises:
        UserError: a factor does not fit its weight, or there is no such weight.
    """

    def __init__(self, base: TensorSource, adapter: TensorSource, scaling: float):
        self.path = base.path
        self._base, self._adapter, self._scaling = base, adapter, scaling
        self.skipped = dict(getattr(base, "skipped", {}))
        own = {name: info for name, info in base.entries.items() if not is_factor(name)}
        trained = {name: info for name, info in adapter.entries.items() if not is_factor(name)}
        self.entries = own | trained
        strange = [name for name in trained if name not in own and name != SCORE]  # a head may be new
        problems = [f"{name} is not among the weights of {base.path}" for name in strange]
        self.merged: list[str] = []
        for name in adapter.entries:
            if name.endswith(f".{FACTOR_A}"):
                linear = name.removesuffix(f".{FACTOR_A}")
                problems += self._problems(linear)
                self.merged.append(linear)
        if problems:
            raise UserError(f"{adapter.path}: does not fit {base.path}:\n  " + "\n  ".join(problems))

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        linear, _, leaf = name.rpartition(".")
        if leaf == "weight" and f"{linear}.{FACTOR_A}" in self._adapter.entries:
            return self._merge(linear)
        return (self._adapter if name in self._adapter.entries else self._base).read(name)

    def _merge(self, linear: str) -> np.ndarray:
        weight = self._base.read(f"{linear}.weight")
        a = self._adapter.read(f"{linear}.{FACTOR_A}").astype(np.float32)
        b = self._adapter.read(f"{linear}.{FACTOR_B}").astype(np.float32)
        update = b @ a if stored_out_in(linear) else a.T @ b.T
        update *= self._scaling
        update += weight
        return update.astype(weight.dtype)

    def _problems(self, linear: str) -> list[str]:
        shapes = [self._adapter.entries[f"{linear}.{factor}"].shape for factor in (FACTOR_A, FACTOR_B)]
        weight = self._base.entries.get(f"{linear}.weight")
        if weight is None:
            return [f"{linear}.weight is not among the weights of {self.path}"]
        out_in = (shapes[1][0], shapes[0][1])
        expected = out_in if stored_out_in(linear) else out_in[::-1]
        if weight.shape != expected:
            return [f"{linear}: the factors are of a {list(expected)} matrix, the weight is {list(weight.shape)}"]
        return []
