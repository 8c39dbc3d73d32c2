"""Log-linear fits against numpy.polyfit, hand-derived formulas, printed t tables and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from webssl_fast.report.fits import fit_log_linear, student_t_quantile

X = (1.1e9, 2.1e9, 2.9e9, 4.9e9, 6.5e9)
Y = (49.0, 50.8, 51.7, 52.8, 53.9)

# Percentage points of the t distribution as tables print them, two-sided 95% and 99%.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032)}
TABLE |= {10: (2.228, 3.169), 30: (2.042, 2.750), 120: (1.980, 2.617)}


def test_line_and_covariance_are_those_of_polyfit():
    fit = fit_log_linear(X, Y)
    coefficients, covariance = np.polyfit(np.log10(X), Y, 1, cov=True)
    assert (fit.slope, fit.intercept) == pytest.approx(tuple(coefficients), rel=1e-9)
    t = 3.182446305284263  # 95%, 3 degrees of freedom
    assert fit.slope_half_interval() == pytest.approx(t * math.sqrt(covariance[0, 0]), rel=1e-6)
    for x in (1e9, 3e9, 2e10):
        gradient = np.array([math.log10(x), 1])
        assert fit.at(x) == pytest.approx(float(gradient @ coefficients))
        assert fit.half_band(x) == pytest.approx(t * math.sqrt(gradient @ covariance @ gradient), rel=1e-5)


def test_r_squared_is_the_squared_correlation():
    assert fit_log_linear(X, Y).r_squared == pytest.approx(np.corrcoef(np.log10(X), Y)[0, 1] ** 2)


def test_three_points_by_hand():
    # log10(x) 0, 1, 2 and y 1, 2, 6: slope 5/2, mean 3, residuals 1/2, -1, 1/2: s^2 = 3/2, one degree of freedom.
    fit = fit_log_linear([1, 10, 100], [1, 2, 6])
    assert (fit.slope, fit.intercept, fit.num_points) == pytest.approx((2.5, 0.5, 3))
    assert fit.r_squared == pytest.approx(1 - 1.5 / 14)
    assert fit.slope_per_doubling == pytest.approx(2.5 * math.log10(2))
    t = math.tan(0.95 * math.pi / 2)  # one degree of freedom is Cauchy's distribution
    assert fit.slope_half_interval() == pytest.approx(t * math.sqrt(1.5 / 2))
    assert fit.half_band(10) == pytest.approx(t * math.sqrt(1.5 / 3))
    assert fit.half_band(100) == pytest.approx(t * math.sqrt(1.5 * (1 / 3 + 1 / 2)))


def test_two_points_have_no_band():
    fit = fit_log_linear([1e9, 2e9], [50.0, 52.0])
    assert fit.slope_per_doubling == pytest.approx(2) and fit.r_squared == pytest.approx(1)
    assert fit.half_band(1e9) is None and fit.slope_half_interval() is None


def test_one_size_has_no_line():
    assert fit_log_linear([1e9, 1e9], [50.0, 52.0]) is None and fit_log_linear([], []) is None


def test_constant_scores_fit_exactly():
    fit = fit_log_linear(X, [5.0] * 5)
    assert fit.slope == pytest.approx(0) and fit.r_squared == 1 and fit.half_band(1e9) == pytest.approx(0)


def test_crossing():
    rising = fit_log_linear([1e9, 1e10], [40.0, 60.0])
    flat = fit_log_linear([1e9, 1e10], [50.0, 50.0])
    assert rising.crossing(flat) == pytest.approx(10**9.5)
    assert flat.crossing(rising) is None and flat.crossing(flat) is None


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_printed_tables(freedom):
    quantiles = student_t_quantile(0.95, freedom), student_t_quantile(0.99, freedom)
    assert quantiles == pytest.approx(TABLE[freedom], abs=6e-4)


def test_quantiles_beside_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 7, 40):
        for confidence in (0.5, 0.9, 0.999):
            expected = stats.t.ppf((1 + confidence) / 2, freedom)
            assert student_t_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("confidence", "freedom"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_rejects_quantiles_that_do_not_exist(confidence, freedom):
    with pytest.raises(ValueError, match=f"got {confidence} and {freedom}"):
        student_t_quantile(confidence, freedom)


def test_the_band_covers_the_true_line_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = -40 + 10 * np.log10(X)
    num_trials, covered, slopes = 4000, 0, 0
    for _ in range(num_trials):
        fit = fit_log_linear(X, truth + rng.normal(0, 0.7, len(X)))
        covered += abs(fit.at(X[-1]) - truth[-1]) <= fit.half_band(X[-1])
        slopes += abs(fit.slope - 10) <= fit.slope_half_interval()
    # Within four standard deviations of a binomial count.
    assert covered / num_trials == pytest.approx(0.95, abs=0.014) and slopes / num_trials == pytest.approx(
        0.95, abs=0.014
    )
