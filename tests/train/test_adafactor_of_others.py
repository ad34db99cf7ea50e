"""The AdaFactors of bert4keras and of GPT2_ML as settings of ours, against float64 references of their arithmetic.

bert4keras: `optimizers.AdaFactor`; GPT2_ML: `train/optimization_adafactor.py`, and BERT's linear schedule with it.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.optimizers.grouped import groups_of
from mindgpt.train.schedules import LearningRateTable, learning_rates_of_run

pytestmark = pytest.mark.usefixtures("cpu")

STEPS = 6
SHAPES = {"table": (130, 128), "narrow": (129, 16), "layernorm.gamma": (16,), "bias": (5,)}


def rms(x):
    return np.sqrt(np.mean(x**2))


def bert4keras(weights, gradients, lr=1e-3, beta2=None, scaled=True, min_dim=128):
    """lr None: the relative step, times 0.05 where the step is not scaled to the parameter."""
    state = {}
    for t, of_step in enumerate(gradients, 1):
        rate = min(1 / np.sqrt(t), 0.01) * (1.0 if scaled else 0.05) if lr is None else lr
        decay = 1 - t**-0.8 if beta2 is None else beta2
        for name, g in of_step.items():
            w, square = weights[name], g**2 + 1e-30
            if w.ndim == 2 and min(w.shape) >= min_dim:
                row, column = state.get(name, (0.0, 0.0))
                row = decay * row + (1 - decay) * square.mean(1, keepdims=True)
                column = decay * column + (1 - decay) * square.mean(0, keepdims=True)
                state[name] = row, column
                v = row * column / row.mean()
            else:
                v = state[name] = decay * state.get(name, 0.0) + (1 - decay) * square
            u = g / np.sqrt(v + 1e-30)
            u = u / max(1.0, rms(u))
            weights[name] = w - rate * u * (max(rms(w), 1e-3) if scaled else 1.0)
        yield weights


def gpt2_ml(weights, gradients, rates):
    """Every matrix is factored, the decay constant; weight decay is part of the update, but for layer norms and
    biases."""
    state = {}
    for rate, of_step in zip(rates, gradients, strict=True):
        for name, g in of_step.items():
            w, square = weights[name], g**2 + 1e-30
            if w.ndim == 2:
                row, column = state.get(name, (0.0, 0.0))
                row = 0.999 * row + 0.001 * square.mean(1)
                column = 0.999 * column + 0.001 * square.mean(0)
                state[name] = row, column
                u = g / np.sqrt(row / row.mean())[:, None] / np.sqrt(column)[None, :]
            else:
                state[name] = 0.999 * state.get(name, 0.0) + 0.001 * square
                u = g / np.sqrt(state[name])
            u = u / max(1.0, rms(u))
            if not ("layernorm" in name or "bias" in name):
                u = u + 0.01 * w
            weights[name] = w - rate * u
        yield weights


def start_and_gradients():
    draw = np.random.default_rng(5)
    start = {name: draw.normal(0, 0.3, shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: draw.normal(0, 10.0 ** draw.integers(-4, 1), shape) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return start, gradients


def run_ours(start, gradients, settings, schedule=None):
    """Yields the weights after every step."""
    section = OptimizerSection(type="adafactor", **settings)
    rates = learning_rates_of_run(schedule, section, len(gradients))
    weights = [Parameter(Tensor(value, ms.float32), name=name) for name, value in start.items()]
    optimizer = build_optimizer(section, weights, LearningRateTable(rates))
    for of_step in gradients:
        optimizer(tuple(Tensor(value, ms.float32) for value in of_step.values()))
        yield {weight.name: weight.asnumpy() for weight in weights}


def assert_follows(ours, theirs):
    for mine, expected in zip(ours, theirs, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


CONSTANT = LRScheduleSection(type="constant", learning_rate=1e-2)


@pytest.mark.parametrize(
    ("settings", "schedule", "reference"),
    [
        ({}, CONSTANT, {"lr": 1e-2}),
        ({"beta2": 0.99, "scale_parameter": False}, CONSTANT, {"lr": 1e-2, "beta2": 0.99, "scaled": False}),
        ({"relative_step": True}, None, {"lr": None}),
        (
            {"relative_step": True, "relative_step_factor": 0.05, "scale_parameter": False},
            None,
            {"lr": None, "scaled": False},
        ),
    ],
    ids=str,
)
def test_follows_bert4keras(settings, schedule, reference):
    start, gradients = start_and_gradients()
    ours = run_ours(start, gradients, {"min_dim_size_to_factor": 128, **settings}, schedule)
    assert_follows(ours, bert4keras(dict(start), gradients, **reference))


def test_a_step_of_bert4keras_by_hand():
    (ours,) = run_ours(
        {"w": np.array([1.0, -2.0])}, [{"w": np.array([0.1, 0.2])}], {"min_dim_size_to_factor": 128},
        LRScheduleSection(type="constant", learning_rate=1e-3),
    )  # fmt: skip
    np.testing.assert_allclose(ours["w"], [0.99841886, -2.00158114], rtol=1e-7)


def test_follows_gpt2_ml():
    start, gradients = start_and_gradients()
    schedule = LRScheduleSection(type="linear", learning_rate=1e-2, warmup_steps=2)
    settings = {"beta2": 0.999, "scale_parameter": False, "weight_decay": 0.01}
    rates = [0.0, 0.5e-2, 1e-2, 0.75e-2, 0.5e-2, 0.25e-2]
    assert_follows(run_ours(start, gradients, settings, schedule), gpt2_ml(dict(start), gradients, rates))


def test_groups_of_weights():
    assert groups_of([5, 5, 1], 10) == ((0, 2), (2, 3))
    assert groups_of([50, 5, 50], 10) == ((0, 1), (1, 2), (2, 3))
    assert groups_of([3, 3], 10) == ((0, 2),)
    assert groups_of([]) == ()


@pytest.mark.parametrize(
    "settings", [{"type": "adafactor", "beta1": 0.5}, {}, {"type": "lion"}, {"type": "sgd"}], ids=str
)
def test_groups_change_no_number(settings, monkeypatch):
    """Of several groups: among them the one matrix that is a group of its own."""
    start, gradients = start_and_gradients()
    results = []
    for largest in (2**26, 3000):
        monkeypatch.setattr("mindgpt.train.optimizers.grouped._GROUP_VALUES", largest)
        weights = [Parameter(Tensor(value, ms.float32), name=name) for name, value in start.items()]
        optimizer = build_optimizer(OptimizerSection(**settings), weights, LearningRateTable(np.full(STEPS, 1e-2)))
        for of_step in gradients:
            optimizer(tuple(Tensor(value, ms.float32) for value in of_step.values()), Tensor(0.5, ms.float32))
        assert len(optimizer.groups) == (1 if largest > 3000 else 2)
        results.append({p.name: p.asnumpy() for p in optimizer.get_parameters()})
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value, err_msg=name)
