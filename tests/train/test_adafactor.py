"""AdaFactor against transformers' and torch's, parameter by parameter and step by step."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs torch")
optimization = pytest.importorskip("transformers.optimization", reason="the oracle is transformers' Adafactor")

import mindspore as ms  # noqa: E402
from mindspore import Parameter, Tensor  # noqa: E402

from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection  # noqa: E402
from mindgpt.train.optimizers import build_optimizer  # noqa: E402
from mindgpt.train.optimizers.adafactor import AdaFactor  # noqa: E402
from mindgpt.train.schedules import LearningRateTable, learning_rates, learning_rates_of_run, relative_step_sizes  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu")

SHAPES = {"b.bias": (7,), "a.weight": (5, 7), "c.weight": (48, 16), "d.gamma": (4,)}
STEPS = 20
SCHEDULE = LRScheduleSection(type="linear", learning_rate=2e-2, warmup_steps=5)


def start_and_gradients(dtype=np.float32):
    """Weights of GPT-2's sizes, and gradients over some orders of magnitude, so that clipping acts now and then."""
    rng = np.random.default_rng(1)
    start = {name: rng.normal(0.0, 0.3, shape).astype(dtype) for name, shape in SHAPES.items()}
    gradients = [
        [(rng.normal(size=shape) * 10.0 ** rng.integers(-6, 2)).astype(np.float32) for shape in SHAPES.values()]
        for _ in range(STEPS)
    ]
    return start, gradients


def run_ours(start, gradients, dtype=ms.float32, **settings):
    """Yields the weights after every step, and the optimizer."""
    section = OptimizerSection(type="adafactor", **settings)
    rates = learning_rates_of_run(None if section.relative_step else SCHEDULE, section, STEPS)
    weights = [Parameter(Tensor(value, dtype), name=name) for name, value in start.items()]
    optimizer = build_optimizer(section, weights, LearningRateTable(rates))
    for gradient in gradients:
        np.testing.assert_allclose(optimizer.get_lr().asnumpy(), rates[optimizer.global_step.asnumpy()[0]], rtol=1e-6)
        optimizer(tuple(Tensor(value, dtype) for value in gradient))
        yield weights, optimizer


def run_torch(oracle, weights, gradients, rates=None):
    for step, gradient in enumerate(gradients):
        for group in oracle.param_groups:
            group["lr"] = None if rates is None else rates[step]
        for weight, value in zip(weights, gradient, strict=True):
            weight.grad = torch.tensor(value, dtype=weight.dtype)
        oracle.step()
        yield weights


def assert_close(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = mine.asnumpy().astype(np.float64), other.detach().numpy().astype(np.float64)
        assert np.linalg.norm(mine - other) <= tolerance * np.linalg.norm(other)
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"relative_step": True},
        {"relative_step": True, "warmup_init": True, "beta1": 0.5},
        {"scale_parameter": False, "weight_decay": 0.3},
        {"weight_decay": 0.1, "beta1": 0.9, "decay_rate": 0.5, "clip_threshold": 0.4},
        {"eps": [1e-6, 0.5]},
    ],
    ids=str,
)
def test_follows_transformers_step_for_step(settings):
    start, gradients = start_and_gradients()
    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    section = OptimizerSection(type="adafactor", **settings)
    decay = section.weight_decay
    groups = [
        {"params": [w for w in weights.values() if w.dim() > 1], "weight_decay": decay},
        {"params": [w for w in weights.values() if w.dim() < 2], "weight_decay": 0.0},
    ]
    oracle = optimization.Adafactor(
        groups,
        eps=(section.eps, section.min_parameter_scale),
        clip_threshold=section.clip_threshold,
        decay_rate=-section.decay_rate,
        beta1=section.beta1 or None,
        scale_parameter=section.scale_parameter,
        relative_step=section.relative_step,
        warmup_init=section.warmup_init,
        lr=None if section.relative_step else 1.0,
    )
    rates = None if section.relative_step else learning_rates(SCHEDULE, STEPS)
    theirs = run_torch(oracle, list(weights.values()), gradients, rates)
    for (ours, _), reference in zip(run_ours(start, gradients, **settings), theirs, strict=True):
        assert_close(ours, reference, 1e-6)
    moved = [np.abs(w.asnumpy() - start[w.name]).max() for w in ours]
    assert min(moved) > (1e-7 if section.warmup_init else 1e-3), "the weights must have moved, or it proves nothing"


def test_follows_torch_step_for_step():
    """torch's step size is min(lr, 1/sqrt(t)): a small, constant rate is the common ground."""
    start, gradients = start_and_gradients()
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in start.values()]
    oracle = torch.optim.Adafactor(theirs, lr=1e-2, beta2_decay=-0.8, eps=(1e-15, 1e-3), d=1.0)
    ours = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = AdaFactor(ours, LearningRateTable(np.full(STEPS, 1e-2)))
    for gradient, reference in zip(gradients, run_torch(oracle, theirs, gradients, [1e-2] * STEPS), strict=True):
        optimizer(tuple(Tensor(value) for value in gradient))
        assert_close(ours, reference, 1e-6)


def test_small_matrices_may_have_a_full_second_moment():
    """Unfactored it is RMSProp with the decay 1 - t^-0.8: worked out by hand for the small matrix."""
    start, gradients = start_and_gradients()
    *_, (ours, optimizer) = run_ours(start, gradients, min_dim_size_to_factor=16, scale_parameter=False)
    assert [p.name for p in optimizer.row] == ["exp_avg_sq_row_c.weight"]
    assert [p.name for p in optimizer.second_moment] == [f"adafactor_v.{n}" for n in ("b.bias", "a.weight", "d.gamma")]
    rates = learning_rates_of_run(
        LRScheduleSection(type="linear", learning_rate=2e-2, warmup_steps=5), OptimizerSection(), STEPS
    )
    weight, second = start["a.weight"].astype(np.float64), 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient[1].astype(np.float64)
        second = (1 - t**-0.8) * second + t**-0.8 * (g**2 + 1e-30)
        update = g / np.sqrt(second)
        weight = weight - rates[t - 1] * update / max(1.0, np.sqrt(np.mean(update**2)))
    np.testing.assert_allclose(ours[1].asnumpy(), weight, rtol=1e-6, atol=1e-6)


def test_half_precision_weights_have_float32_state():
    start, gradients = start_and_gradients()
    fine = {name: value.astype(np.float16).astype(np.float32) for name, value in start.items()}
    settings = {"beta1": 0.9, "weight_decay": 0.1}
    *_, (ours, optimizer) = run_ours(fine, gradients, ms.float16, **settings)
    *_, (reference, _) = run_ours(fine, gradients, **settings)
    state = (*optimizer.row, *optimizer.column, *optimizer.second_moment, *optimizer.first_moment)
    assert {p.dtype for p in state} == {ms.float32}
    assert {p.dtype for p in ours} == {ms.float16}
    for mine, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(mine.asnumpy(), other.asnumpy(), atol=2e-2)


def test_state_is_named_after_the_weights():
    start, gradients = start_and_gradients()
    *_, (_, optimizer) = run_ours(start, gradients[:2], beta1=0.9)
    shapes = {p.name: p.shape for p in optimizer.get_parameters() if p.name.startswith(("adafactor", "exp_avg"))}
    assert shapes == {
        "exp_avg_sq_row_a.weight": (5,),
        "exp_avg_sq_col_a.weight": (7,),
        "exp_avg_sq_row_c.weight": (48,),
        "exp_avg_sq_col_c.weight": (16,),
        "adafactor_v.b.bias": (7,),
        "adafactor_v.d.gamma": (4,),
        **{f"adafactor_m.{name}": shape for name, shape in SHAPES.items()},
    }
    assert optimizer.global_step.asnumpy() == 2
    assert [p.name for p in optimizer.parameters] == list(SHAPES)


def test_relative_step_sizes():
    np.testing.assert_allclose(relative_step_sizes(40_000, False)[[0, 9_999, 39_999]], [1e-2, 1e-2, 5e-3], rtol=1e-12)
    np.testing.assert_allclose(relative_step_sizes(40_000, True)[[0, 99, 39_999]], [1e-6, 1e-4, 5e-3], rtol=1e-12)
