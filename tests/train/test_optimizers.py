"""AdamW against torch.optim.AdamW, parameter by parameter and step by step."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is torch.optim")

import mindspore as ms  # noqa: E402
from mindspore import Parameter, Tensor  # noqa: E402

from mindgpt.config.training import LRScheduleSection, OptimizerSection  # noqa: E402
from mindgpt.train.optimizers import build_optimizer, decay_groups  # noqa: E402
from mindgpt.train.schedules import LearningRateTable, learning_rates  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu")

SHAPES = {
    "b.bias": (7,),
    "a.weight": (5, 7),
    "c.weight": (3, 4),
    "d.gamma": (4,),
}  # a bias first: nothing may depend on it
STEPS = 20


def run_both(dtype=ms.float32, **settings):
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    section = OptimizerSection(**settings)
    rates = learning_rates(LRScheduleSection(type="cosine", learning_rate=1e-2, warmup_steps=5), STEPS)
    ours = [Parameter(Tensor(value, dtype), name=name) for name, value in start.items()]
    optimizer = build_optimizer(section, ours, LearningRateTable(rates))
    theirs = {
        name: torch.nn.Parameter(torch.tensor(p.asnumpy().astype(np.float32)))
        for name, p in zip(start, ours, strict=True)
    }
    groups = [
        {"params": [p for p in theirs.values() if p.dim() > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(section.beta1, section.beta2), eps=section.eps)
    for step in range(STEPS):
        gradients = [
            rng.normal(size=shape).astype(np.float32) * 10.0 ** rng.integers(-6, 2) for shape in SHAPES.values()
        ]
        optimizer(tuple(Tensor(gradient) for gradient in gradients))
        for group in reference.param_groups:
            group["lr"] = rates[step]
        for parameter, gradient in zip(theirs.values(), gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        reference.step()
        yield ours, list(theirs.values()), optimizer


@pytest.mark.parametrize(
    "settings",
    [{}, {"beta2": 0.999, "weight_decay": 0.3}, {"weight_decay": 0.0, "eps": 1e-3}, {"beta1": 0.0, "beta2": 0.9}],
    ids=str,
)
def test_follows_torch_step_for_step(settings):
    for ours, theirs, _ in run_both(**settings):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.asnumpy(), other.detach().numpy(), rtol=2e-6, atol=2e-7, err_msg=mine.name)


def test_half_precision_weights_have_float32_moments():
    for ours, theirs, optimizer in run_both(dtype=ms.float16):
        assert {state.dtype for state in (*optimizer.first_moment, *optimizer.second_moment)} == {ms.float32}
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == ms.float16
            np.testing.assert_allclose(mine.asnumpy(), other.detach().numpy(), atol=2e-2)


def test_states_are_named_as_mindformers_names_them():
    *_, (_, _, optimizer) = run_both()
    names = {p.name for p in optimizer.get_parameters()}
    assert {"adam_m.a.weight", "adam_v.a.weight", "global_step"} <= names
    assert optimizer.global_step.asnumpy() == STEPS


def test_decay_groups_are_told():
    parameters = [Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in SHAPES.items()]
    line = decay_groups(parameters, 0.1)
    assert line == "weight decay 0.1 on 2 matrices (47 values), none on 2 biases and layer norms (11 values)"
