"""AdamW and SGD against torch.optim, Lion against its paper, UER-py's AdamW against its formula, and what all have in
common.

AdaFactor has a file of its own.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is torch.optim")

import mindspore as ms  # noqa: E402
from mindspore import Parameter, Tensor, nn  # noqa: E402

from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection  # noqa: E402
from mindgpt.config.training_sections import ScaleSenseSection  # noqa: E402
from mindgpt.train.optimizers import build_optimizer, decay_groups, state_line  # noqa: E402
from mindgpt.train.optimizers.state import is_decayed, state_bytes  # noqa: E402
from mindgpt.train.schedules import LearningRateTable, learning_rates  # noqa: E402
from mindgpt.train.step import AccumulatingTrainStep, TrainStep  # noqa: E402

pytestmark = pytest.mark.usefixtures("cpu")

SHAPES = {
    "b.bias": (7,),
    "a.weight": (5, 7),
    "c.weight": (3, 4),
    "d.gamma": (4,),
}  # a bias first: nothing may depend on it
STEPS = 20


def oracle_of(section, groups):
    if section.type == "sgd":
        return torch.optim.SGD(groups, momentum=section.momentum, nesterov=section.nesterov)
    return torch.optim.AdamW(groups, betas=(section.beta1, section.beta2), eps=section.eps)


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
    if section.decay_all:
        groups = [{"params": list(theirs.values()), "weight_decay": section.weight_decay}]
    reference = oracle_of(section, groups)
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
    [
        {},
        {"beta2": 0.999, "weight_decay": 0.3},
        {"weight_decay": 0.0, "eps": 1e-3},
        {"beta1": 0.0, "beta2": 0.9},
        {"weight_decay": 5.0, "decay_all": True},
        {"beta1": 0.0, "weight_decay": 5.0, "decay_all": True},
    ],
    ids=str,
)
def test_follows_torch_step_for_step(settings):
    for ours, theirs, _ in run_both(**settings):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.asnumpy(), other.detach().numpy(), rtol=2e-6, atol=2e-7, err_msg=mine.name)


def uer_adamw(weight, first, second, gradient, rate, decay):
    """One step of UER-py's AdamW (betas 0.9 and 0.999, eps 1e-6) in float64: no bias correction, the decay last."""
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    weight = weight - rate * first / (np.sqrt(second) + 1e-6)
    return weight - rate * decay * weight, first, second


UER = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "correct_bias": False}


@pytest.mark.parametrize(
    ("dtype", "decay", "tolerance"),
    [(ms.float32, 0.01, 1e-6), (ms.float32, 1000.0, 1e-6), (ms.float16, 0.01, 2e-2)],
    ids=["kernel", "formula", "half"],
)
def test_follows_uer_step_for_step(dtype, decay, tolerance):
    """20 steps, the first two of them warm-up: at learning rate 0 and at half of it. A decay of 1000 has one step that
    the fused kernel cannot express, rate * decay = 1."""
    rng = np.random.default_rng(3)
    rates = learning_rates(LRScheduleSection(type="linear", learning_rate=1e-3, warmup_ratio=0.1), STEPS)
    expected_rates = [1e-3 * (s / 2 if s < 2 else (STEPS - s) / (STEPS - 2)) for s in range(STEPS)]
    np.testing.assert_allclose(rates, expected_rates, rtol=1e-12)
    weights = {name: rng.normal(size=shape).astype(np.float16).astype(np.float64) for name, shape in SHAPES.items()}
    start = [value.copy() for value in weights.values()]
    ours = [Parameter(Tensor(value, dtype), name=name) for name, value in weights.items()]
    optimizer = build_optimizer(OptimizerSection(**UER, weight_decay=decay), ours, LearningRateTable(rates))
    assert (optimizer.kernel is None) == (decay == 1000.0)
    moments = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        gradients = {name: rng.normal(size=shape).astype(np.float16) for name, shape in SHAPES.items()}
        optimizer(tuple(Tensor(gradient, dtype) for gradient in gradients.values()))
        for mine, (name, gradient), before in zip(ours, gradients.items(), start, strict=True):
            own_decay = decay if gradient.ndim > 1 else 0.0
            gradient = gradient.astype(np.float64)
            weights[name], *moments[name] = uer_adamw(weights[name], *moments[name], gradient, rates[step], own_decay)
            np.testing.assert_allclose(mine.asnumpy(), weights[name], rtol=0, atol=tolerance, err_msg=name)
            assert step > 0 or (mine.asnumpy() == before).all(), "the first step is at learning rate 0"


def test_one_step_of_uer_from_known_values():
    weight = Parameter(Tensor([[1.0, -2.0]], ms.float32), name="w")
    section = OptimizerSection(**UER, weight_decay=0.01)
    build_optimizer(section, [weight], LearningRateTable(np.full(1, 1e-3)))((Tensor([[0.1, 0.2]], ms.float32),))
    np.testing.assert_allclose(weight.asnumpy(), [[0.99682875, -2.00314175]], rtol=0, atol=2e-7)


def test_what_is_decayed_is_what_uer_decays():
    """UER-py goes by names: all but those that hold bias, gamma or beta."""
    from mindgpt import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(num_layers=1, hidden_size=8, num_heads=2, vocab_size=11, seq_length=4))
    for parameter in model.trainable_params():
        exempt = any(part in parameter.name for part in ("bias", "gamma", "beta"))
        assert is_decayed(parameter) != exempt, parameter.name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_sgd_follows_torch_step_for_step(settings):
    for ours, theirs, _ in run_both(type="sgd", **settings):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.asnumpy(), other.detach().numpy(), rtol=1e-6, atol=1e-6, err_msg=mine.name)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16], ids=str)
def test_lion_follows_its_paper(dtype):
    """Chen et al. 2023, algorithm 2, in float64."""
    rng = np.random.default_rng(2)
    section = OptimizerSection(type="lion", beta1=0.85, beta2=0.97, weight_decay=0.4)
    rates = learning_rates(LRScheduleSection(type="linear", learning_rate=1e-2, warmup_steps=5), STEPS)
    weights = {name: rng.normal(size=shape).astype(np.float16).astype(np.float64) for name, shape in SHAPES.items()}
    ours = [Parameter(Tensor(value, dtype), name=name) for name, value in weights.items()]
    optimizer = build_optimizer(section, ours, LearningRateTable(rates))
    momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        gradients = {name: rng.normal(size=shape).astype(np.float16) for name, shape in SHAPES.items()}
        optimizer(tuple(Tensor(gradient, dtype) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            direction = np.sign(0.85 * momentum[name] + 0.15 * gradient)
            decay = 0.4 if weights[name].ndim > 1 else 0.0
            weights[name] = weights[name] - rates[step] * (direction + decay * weights[name])
            momentum[name] = 0.97 * momentum[name] + 0.03 * gradient
        for mine, expected in zip(ours, weights.values(), strict=True):
            tolerance = 1e-6 if dtype == ms.float32 else 2e-2
            np.testing.assert_allclose(mine.asnumpy(), expected, rtol=tolerance, atol=tolerance, err_msg=mine.name)
    assert {p.name: p.dtype for p in optimizer.momentum} == {f"lion_m.{name}": ms.float32 for name in SHAPES}


class Quadratic(nn.Cell):
    """(mean(w^2) + mean(b^2)) x: a loss whose finiteness the batch decides."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([[1.0, -2.0], [3.0, 0.5]], ms.float32), name="w")
        self.b = Parameter(Tensor([0.3], ms.float32), name="b")

    def construct(self, x):
        return ((self.w * self.w).mean() + (self.b * self.b).mean()) * x.mean()


def batch(value):
    return Tensor(np.full((2, 1), value, np.float32))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{"type": "adafactor", "beta1": 0.5}, {"type": "lion"}, {"type": "sgd"}, {"correct_bias": False}],
    ids=str,
)
def test_a_non_finite_step_changes_nothing_and_the_run_goes_on(settings, accumulation):
    model = Quadratic()
    optimizer = build_optimizer(
        OptimizerSection(**settings), model.trainable_params(), LearningRateTable(np.full(9, 0.05))
    )
    scale = ScaleSenseSection(type="dynamic", loss_scale_value=64.0)
    if accumulation == 1:
        step = TrainStep(model, optimizer, scale, 1.0)
    else:
        step = AccumulatingTrainStep(model, optimizer, scale, 1.0, accumulation)
    step.set_train()
    first = step(batch(1.0))[0].asnumpy()
    held = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    loss, skipped, _, rate, _ = (value.asnumpy().item() for value in step(batch(np.nan)))
    assert skipped
    assert np.isnan(loss)
    assert rate == pytest.approx(0.05)
    for p in optimizer.get_parameters():
        np.testing.assert_array_equal(p.asnumpy(), held[p.name], err_msg=p.name)
    losses = [step(batch(1.0))[0].asnumpy() for _ in range(4)]
    assert first > losses[0] > losses[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta1": 0.0},
        {"correct_bias": False},
        {"type": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        {"type": "lion"},
        {"type": "adafactor", "beta1": 0.5},
    ],
    ids=str,
)
def test_masters_follow_float32_weights_and_half_weights_are_these_rounded(settings, monkeypatch):
    """Beside the same optimizer on float32 weights, which follows torch or a paper in the other tests. On CPU MindSpore
    does not assign bfloat16."""
    dtype = ms.float16
    monkeypatch.setattr("mindgpt.train.optimizers.grouped._GROUP_VALUES", 30)
    rng = np.random.default_rng(4)
    start = {name: Tensor(rng.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}
    section, table = OptimizerSection(**settings), LearningRateTable(np.full(STEPS, 1e-4, np.float32))
    plain = [Parameter(value.copy(), name=name) for name, value in start.items()]
    half = [Parameter(value.astype(dtype), name=name) for name, value in start.items()]
    half[1] = Parameter(start["a.weight"].copy(), name="a.weight")  # as layer norms often are
    reference, optimizer = (build_optimizer(section, weights, table) for weights in (plain, half))
    assert len(optimizer.groups) > 1
    assert list(optimizer.masters) == ["b.bias", "c.weight", "d.gamma"]
    for weight in half:
        if weight.dtype == dtype:
            master = optimizer.masters[weight.name].asnumpy()
            np.testing.assert_array_equal(master, weight.astype(ms.float32).asnumpy(), err_msg="before set_masters")
    optimizer.set_masters({name: value.copy() for name, value in start.items()})
    for _ in range(STEPS):
        gradients = tuple(Tensor(rng.normal(size=shape), ms.float32).astype(dtype) for shape in SHAPES.values())
        reference(tuple(gradient.astype(ms.float32) for gradient in gradients))
        optimizer(gradients)
        for expected, weight, updated in zip(plain, half, optimizer.updated, strict=True):
            assert updated.dtype == ms.float32
            np.testing.assert_allclose(updated.asnumpy(), expected.asnumpy(), rtol=1e-6, atol=1e-9)
            rounded = updated.astype(weight.dtype).astype(ms.float32).asnumpy()
            np.testing.assert_array_equal(weight.astype(ms.float32).asnumpy(), rounded)
    names = {p.name for p in optimizer.get_parameters()}
    assert {"master.b.bias", "master.c.weight", "master.d.gamma"} <= names
    assert "master.a.weight" not in names


def test_masters_keep_what_a_half_precision_weight_would_lose():
    """200 updates of 1e-4 on a float16 weight of 1, whose neighbours are 1/2048 and 1/1024 away. Oracle: torch."""
    weight = Parameter(Tensor([[1.0]], ms.float16), name="w")
    section = OptimizerSection(weight_decay=0.0)
    optimizer = build_optimizer(section, [weight], LearningRateTable(np.full(200, 1e-4, np.float32)))
    oracle = torch.nn.Parameter(torch.ones(1, 1))
    theirs = torch.optim.AdamW([oracle], 1e-4, (section.beta1, section.beta2), section.eps, weight_decay=0.0)
    for _ in range(200):
        optimizer((Tensor([[0.5]], ms.float16),))
        oracle.grad = torch.full((1, 1), 0.5)
        theirs.step()
    np.testing.assert_allclose(optimizer.masters["w"].asnumpy(), oracle.detach().numpy(), rtol=1e-6)
    assert weight.asnumpy() == oracle.detach().numpy().astype(np.float16)
    assert weight.asnumpy() < 0.981


def test_small_float16_gradients_survive_unscaling():
    """1e-4 / 2^16 is below the smallest float16."""
    weight = Parameter(Tensor([1.0], ms.float16), name="w")
    optimizer = build_optimizer(OptimizerSection(type="sgd"), [weight], LearningRateTable(np.ones(1, np.float32)))
    optimizer((Tensor([1e-4], ms.float16),), Tensor(2.0**-16, ms.float32))
    expected = np.float32(1) - np.float32(np.float16(1e-4)) * np.float32(2.0**-16)
    momentum_free = optimizer.masters["w"].asnumpy()
    np.testing.assert_allclose(momentum_free, [expected], rtol=1e-7)


def test_half_precision_weights_have_float32_moments():
    for ours, theirs, optimizer in run_both(dtype=ms.float16):
        assert {state.dtype for state in (*optimizer.first_moment, *optimizer.second_moment)} == {ms.float32}
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == ms.float16
            np.testing.assert_array_equal(optimizer.masters[mine.name].astype(ms.float16).asnumpy(), mine.asnumpy())
            np.testing.assert_allclose(
                optimizer.masters[mine.name].asnumpy(), other.detach().numpy(), rtol=2e-6, atol=2e-7
            )


def test_states_are_named_as_mindformers_names_them():
    *_, (_, _, optimizer) = run_both()
    names = {p.name for p in optimizer.get_parameters()}
    assert {"adam_m.a.weight", "adam_v.a.weight", "global_step"} <= names
    assert optimizer.global_step.asnumpy() == STEPS


def test_decay_groups_line():
    parameters = [Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in SHAPES.items()]
    line = decay_groups(parameters, 0.1)
    assert line == "weight decay 0.1 on 2 matrices (47 values), none on 2 biases and layer norms (11 values)"
    assert decay_groups(parameters, 0.0) == "no weight decay (58 values)"
    assert decay_groups(parameters, 0.1, decay_all=True) == "weight decay 0.1 on all 58 values"


@pytest.mark.parametrize(
    ("settings", "state", "line"),
    [
        ({}, 8 * 2010, "optimizer: AdamW, 8.00 state bytes a parameter"),
        (
            {"type": "adafactor"},
            4 * (40 + 50 + 10),
            "optimizer: AdaFactor, 0.20 state bytes a parameter (AdamW would hold 8.00)",
        ),
        (
            {"type": "adafactor", "beta1": 0.9},
            4 * (40 + 50 + 10 + 2010),
            "optimizer: AdaFactor, 4.20 state bytes a parameter (AdamW would hold 8.00)",
        ),
        ({"type": "lion"}, 4 * 2010, "optimizer: Lion, 4.00 state bytes a parameter (AdamW would hold 8.00)"),
        ({"type": "sgd"}, 0, "optimizer: SGD, 0.00 state bytes a parameter (AdamW would hold 8.00)"),
    ],
    ids=str,
)
def test_state_bytes_line(settings, state, line):
    weights = [Parameter(Tensor(np.zeros(shape, np.float32)), name=str(shape)) for shape in ((40, 50), (10,))]
    optimizer = build_optimizer(OptimizerSection(**settings), weights, LearningRateTable(np.ones(1)))
    counter_of_steps = 4
    assert state_bytes(optimizer) == state + counter_of_steps
    assert state_line(optimizer) == line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "optimizer: AdamW, 11.98 state bytes a parameter"),
        ({"type": "sgd"}, "optimizer: SGD, 3.98 state bytes a parameter (AdamW would hold 11.98)"),
    ],
    ids=str,
)
def test_state_bytes_line_counts_masters(settings, line):
    """4 bytes for each half-precision weight, 2000 of 2010: 3.98 a parameter."""
    weights = [
        Parameter(Tensor(np.zeros(shape, np.float32), dtype), name=str(shape))
        for shape, dtype in (((40, 50), ms.float16), ((10,), ms.float32))
    ]
    optimizer = build_optimizer(OptimizerSection(**settings), weights, LearningRateTable(np.ones(1)))
    of_moments, counter_of_steps = 8 * 2010 if not settings else 0, 4
    assert state_bytes(optimizer) == 4 * 2000 + of_moments + counter_of_steps
    assert state_line(optimizer) == line
