"""Learning-rate schedules against transformers' and against values computed by hand."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.config.optimizer_sections import LRScheduleSection, OptimizerSection
from mindgpt.train.schedules import learning_rates, learning_rates_of_run, schedule_line


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
        ({"type": "inverse_sqrt", "warmup_steps": 10}, "get_inverse_sqrt_schedule", {}),
        (
            {"type": "inverse_sqrt", "warmup_ratio": 0.1, "timescale": 40},
            "get_inverse_sqrt_schedule",
            {"timescale": 40},
        ),
        (
            {
                "type": "constant_with_cooldown",
                "warmup_steps": 10,
                "decay_start_ratio": 0.75,
                "lr_end": 2e-4,
                "warmup_lr_init": 2e-4,
            },
            "get_wsd_schedule",
            {"num_stable_steps": 65, "num_decay_steps": 25, "min_lr_ratio": 0.1, "decay_type": "linear"},
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


@pytest.mark.parametrize(
    ("rate", "warmup", "expected"),
    [
        (3e-4, 100, {1: 3.0e-7, 50: 1.5e-5, 100: 3.0e-5, 200: 2.12e-5}),
        (1e-4, 200, {1: 3.54e-8, 100: 3.54e-6, 200: 7.07e-6, 400: 5.0e-6}),
    ],
)
def test_noam_gives_the_rates_of_modelscopes_scripts(rate, warmup, expected):
    """The poetry and the DuReader script: the first step is s = 1."""
    values = learning_rates(LRScheduleSection(type="noam", learning_rate=rate, warmup_steps=warmup), 400)
    assert {s: values[s - 1] for s in expected} == pytest.approx(expected, rel=2e-3)


def test_noam_formula():
    """Vaswani et al. 2017, section 5.3; the peaks are those of GPT-3 fine-tuning in ModelScope."""
    values = learning_rates(LRScheduleSection(type="noam", learning_rate=3e-4, warmup_steps=100), 1000)
    expected = [3e-4 * min(n**-0.5, n * 100**-1.5) for n in range(1, 1001)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert values.max() == values[99] == pytest.approx(3e-5)
    values = learning_rates(LRScheduleSection(type="noam", learning_rate=1e-4, warmup_ratio=0.5), 400)
    assert values.max() == values[199] == pytest.approx(7.07e-6, rel=1e-3)


def test_inverse_sqrt_without_a_warm_up_falls_slowly():
    values = rates(steps=30_001, type="inverse_sqrt")
    np.testing.assert_allclose(values[[0, 30_000]], [2e-3, 1e-3], rtol=1e-6)


def test_cool_down():
    values = rates(type="constant_with_cooldown", warmup_steps=10, decay_start_steps=60, lr_end=1e-3, total_steps=80)
    np.testing.assert_allclose(values[[5, 10, 35, 60]], [1e-3, 2e-3, 2e-3, 2e-3], rtol=1e-6)
    np.testing.assert_allclose(values[[65, 70, 80, 99]], [1.75e-3, 1.5e-3, 1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(rates(type="constant_with_cooldown")[[79, 80, 90]], [2e-3, 2e-3, 1e-3], rtol=1e-3)


@pytest.mark.parametrize("start", [{"decay_start_steps": 120}, {"warmup_steps": 50, "decay_start_ratio": 0.4}])
def test_a_cool_down_outside_of_the_run_is_refused(start):
    with pytest.raises(UserError, match="cool-down would begin at step"):
        rates(type="constant_with_cooldown", **start)


def test_noam_without_a_step_of_warm_up_is_refused():
    with pytest.raises(UserError, match="noam needs a warm-up of at least 1 step"):
        rates(type="noam", warmup_ratio=0.001)


def test_relative_step_replaces_the_schedule():
    relative = OptimizerSection(type="adafactor", relative_step=True, warmup_init=True)
    expected = [1e-6 * t for t in range(1, 101)]
    np.testing.assert_allclose(learning_rates_of_run(None, relative, 100), expected, rtol=1e-12)
    schedule = LRScheduleSection(learning_rate=2e-3, type="linear")
    np.testing.assert_array_equal(learning_rates_of_run(schedule, OptimizerSection(), 100), rates(type="linear"))
    assert schedule_line(None, np.array([1e-6, 2e-6])) == (
        "learning rate: AdaFactor's relative step, highest 2e-06 at step 2, 2e-06 at the end"
    )
    assert schedule_line(schedule, np.array([2e-3, 1e-3])) == (
        "learning rate: linear, highest 0.002 at step 1, 0.001 at the end"
    )


def test_lr_end_is_where_linear_and_cosine_end():
    for kind in ("linear", "cosine"):
        values = rates(steps=101, type=kind, lr_end=5e-4, total_steps=100)
        assert values[0] == pytest.approx(2e-3)
        assert values[50] == pytest.approx((2e-3 + 5e-4) / 2), "half way down both are in the middle"
        assert values[100] == pytest.approx(5e-4)


def test_warm_up_starts_at_its_initial_rate():
    values = rates(type="linear", warmup_steps=4, warmup_lr_init=1e-3)
    np.testing.assert_allclose(values[:5], [1e-3, 1.25e-3, 1.5e-3, 1.75e-3, 2e-3])


def test_the_learning_rate_is_constant_after_total_steps():
    values = rates(type="polynomial", total_steps=20, lr_end=1e-4)
    np.testing.assert_allclose(values[20:], 1e-4)
    assert values[19] > 1e-4


@pytest.mark.parametrize("kind", ["cosine", "polynomial", "constant_with_cooldown"])
def test_a_warm_up_longer_than_the_run_is_reported(kind):
    schedule = LRScheduleSection(type=kind, learning_rate=2e-3, warmup_steps=50)
    values = learning_rates(schedule, 20)
    np.testing.assert_allclose(values, 2e-3 * np.arange(20) / 50, rtol=1e-12)
    line, warning = schedule_line(schedule, values).splitlines()
    assert line == f"learning rate: {kind}, highest 0.00076 at step 20, 0.00076 at the end"
    assert warning.startswith("warning: lr_schedule.warmup_steps is 50, and the run has 20 steps: the learning rate")
    assert "never reaches its top, 0.002." in warning
    assert "warning" not in schedule_line(schedule, learning_rates(schedule, 50))


def test_total_steps_shorter_than_the_warm_up_are_reported():
    schedule = LRScheduleSection(type="linear", learning_rate=2e-3, warmup_steps=11, total_steps=10)
    values = learning_rates(schedule, 30)
    np.testing.assert_allclose(values, 2e-3 * np.minimum(np.arange(30), 10) / 11, rtol=1e-12)
    assert "warmup_steps is 11, and lr_schedule.total_steps gives it 10 steps" in schedule_line(schedule, values)


def test_noam_that_never_peaks_reports_its_own_peak():
    schedule = LRScheduleSection(type="noam", learning_rate=1.0, warmup_steps=100)
    assert "never reaches its top, 0.1." in schedule_line(schedule, learning_rates(schedule, 20))
