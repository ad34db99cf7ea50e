"""Learning-rate schedules against transformers' and against values worked out by hand."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.training import LRScheduleSection
from mindgpt.train.schedules import learning_rates


def rates(steps=100, **settings):
    return learning_rates(LRScheduleSection(learning_rate=2e-3, **settings), steps)


@pytest.mark.parametrize(
    ("settings", "name", "arguments"),
    [
        ({"type": "constant", "warmup_steps": 10}, "get_constant_schedule_with_warmup", {}),
        ({"type": "linear", "warmup_steps": 10}, "get_linear_schedule_with_warmup", {"num_training_steps": 100}),
        ({"type": "cosine", "warmup_ratio": 0.1}, "get_cosine_schedule_with_warmup", {"num_training_steps": 100}),
        (
            {"type": "cosine", "warmup_steps": 10, "num_cycles": 1.5},
            "get_cosine_schedule_with_warmup",
            {"num_training_steps": 100, "num_cycles": 1.5},
        ),
        (
            {"type": "cosine_with_restarts", "warmup_steps": 10, "num_cycles": 3},
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            {"num_training_steps": 100, "num_cycles": 3},
        ),
        (
            {"type": "polynomial", "warmup_steps": 10, "lr_end": 1e-5, "power": 2.0},
            "get_polynomial_decay_schedule_with_warmup",
            {"num_training_steps": 100, "lr_end": 1e-5, "power": 2.0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_to_transformers(settings, name, arguments):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    optimization = pytest.importorskip("transformers.optimization", reason="the oracle needs transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = getattr(optimization, name)(optimizer, num_warmup_steps=10, **arguments)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates(**settings), expected, rtol=1e-9, atol=1e-15)


def test_lr_end_is_where_linear_and_cosine_end():
    for kind in ("linear", "cosine"):
        values = rates(steps=101, type=kind, lr_end=5e-4, total_steps=100)
        assert values[0] == pytest.approx(2e-3)
        assert values[50] == pytest.approx((2e-3 + 5e-4) / 2), "half way down both are in the middle"
        assert values[100] == pytest.approx(5e-4)


def test_warm_up_starts_at_its_initial_rate():
    values = rates(type="linear", warmup_steps=4, warmup_lr_init=1e-3)
    np.testing.assert_allclose(values[:5], [1e-3, 1.25e-3, 1.5e-3, 1.75e-3, 2e-3])


def test_the_rate_stays_after_total_steps():
    values = rates(type="polynomial", total_steps=20, lr_end=1e-4)
    np.testing.assert_allclose(values[20:], 1e-4)
    assert values[19] > 1e-4


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps is 50, but the run has only 20 steps"):
        rates(steps=20, type="cosine", warmup_steps=50)
