import numpy as np
import pytest

from webssl_fast.schedules import (
    cosine,
    linear,
    one_cycle_momentum,
    polynomial,
    scaled_lr,
    warmup_cosine,
    warmup_factor,
)


def test_linear_is_a_straight_line_and_then_constant():
    expected = np.concatenate([np.linspace(0.04, 0.07, 11), [0.07, 0.07]])
    np.testing.assert_allclose([linear(s, 0.04, 0.07, 10) for s in range(13)], expected, rtol=1e-14)


def test_linear_over_no_steps_is_its_end():
    assert linear(0, 0.04, 0.07, 0) == 0.07


def test_cosine_matches_its_formula():
    steps = np.arange(0, 101)
    expected = 1.0 - (1.0 - 0.994) * (np.cos(np.pi * steps / 100) + 1) / 2
    np.testing.assert_allclose([cosine(int(s), 0.994, 1.0, 100) for s in steps], expected, rtol=1e-14)
    assert cosine(10**6, 0.994, 1.0, 100) == 1.0


def test_warmup_cosine_rises_peaks_and_falls():
    values = [warmup_cosine(s, peak=1e-3, end=1e-6, warmup_steps=10, num_steps=110) for s in range(111)]
    np.testing.assert_allclose(values[:11], np.linspace(0, 1e-3, 11), rtol=1e-14)
    assert values[60] == pytest.approx((1e-3 + 1e-6) / 2)
    assert values[110] == 1e-6
    assert np.argmax(values) == 10


def test_run_shorter_than_its_warmup_ends_on_the_way_up():
    assert warmup_cosine(5, peak=1.0, end=0.0, warmup_steps=100, num_steps=5) == pytest.approx(0.05)


def test_scaled_lr_follows_the_square_root():
    assert scaled_lr(2e-4, 3072) == pytest.approx(2e-4 * 3**0.5)
    assert scaled_lr(2e-4, 256) == pytest.approx(1e-4)


def test_scaled_lr_follows_mae_s_linear_rule():
    assert scaled_lr(1.5e-4, 4096, "linear") == pytest.approx(2.4e-3)  # MAE's own
    assert scaled_lr(1.5e-4, 256, "linear") == 1.5e-4


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step must be at least 0"):
        linear(-1, 0, 1, 10)


# The dense protocols' schedules, written from MMCV's rules: a hook multiplies the regular rate while it warms up.


def test_segmentation_rate_is_poly_times_a_linear_warmup():
    peak, warmup, steps, ratio = 1e-3, 1500, 40_000, 1e-6
    found = [polynomial(s, peak, 0.0, 1.0, steps) * warmup_factor(s, ratio, warmup) for s in range(steps)]
    i = np.arange(steps)
    regular = peak * (1 - i / steps)
    expected = np.where(i < warmup, regular * (1 - (1 - i / warmup) * (1 - ratio)), regular)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[0] == pytest.approx(1e-9) and found[-1] == pytest.approx(peak / steps)


def test_polynomial_of_another_power_and_end():
    np.testing.assert_allclose(
        [polynomial(s, 2.0, 0.5, 0.9, 10) for s in range(12)],
        [0.5 + 1.5 * (1 - min(s, 10) / 10) ** 0.9 for s in range(12)],
        rtol=1e-14,
    )


@pytest.mark.parametrize("steps", [38_400, 100, 7])
def test_one_cycle_momentum_falls_to_its_low_and_rises_again(steps: int):
    i = np.arange(steps)
    turn, last = 0.3 * steps - 1, steps - 1
    falling = 0.85 + 0.05 * (1 + np.cos(np.pi * i / turn))
    rising = 0.95 - 0.05 * (1 + np.cos(np.pi * (i - turn) / (last - turn)))
    found = [one_cycle_momentum(int(s), steps) for s in i]
    np.testing.assert_allclose(found, np.where(i <= turn, falling, rising), rtol=1e-12)
    assert found[0] == 0.95 and found[-1] == pytest.approx(0.95)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_momentum_of_the_shortest_runs_stays_in_its_range(steps: int):
    assert all(0.85 <= one_cycle_momentum(s, steps) <= 0.95 for s in range(steps))
