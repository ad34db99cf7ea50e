"""The fused activations of Ascend against their formulas, where a CPU has a kernel for the same primitive."""

import numpy as np
import pytest
from mindspore import Tensor, value_and_grad

from mindgpt.models.gpt2.gpt2_modules import FUSED_ACTIVATIONS, Activation

pytestmark = pytest.mark.usefixtures("cpu")


def gelu(x):
    """Hendrycks & Gimpel 2016, the tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def fast_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


@pytest.mark.parametrize(("name", "formula"), [("gelu", gelu), ("fast_gelu", fast_gelu)])
def test_a_fused_activation_is_its_formula(name, formula):
    """To what a CPU's tanh is good for, 1e-4; the exact form of GELU is 4e-4 off, so this tells the two apart."""
    x = np.linspace(-6, 6, 997).astype(np.float32)
    step = 1e-5
    wide = x.astype(np.float64)
    slope = (formula(wide + step) - formula(wide - step)) / (2 * step)
    written_out, fused = Activation(name), Activation(name)
    assert written_out.fused is None  # so it stays on CPU
    fused.fused = FUSED_ACTIVATIONS[name]()
    for function in (written_out, fused):
        values, gradient = value_and_grad(function)(Tensor(x))
        np.testing.assert_allclose(values.asnumpy(), formula(wide), atol=1.5e-4)
        np.testing.assert_allclose(gradient.asnumpy(), slope, atol=4e-4)
