"""Least squares on a logarithmic axis, y = a + b log10(x), with what is known of its slope and its line.

Textbook formulas (Draper and Smith, Applied Regression Analysis, chapter 1): with n points, m and S the mean and the
sum of squared deviations of log10(x), and s^2 the residual sum of squares over n - 2, the slope's standard error is
s / sqrt(S) and that of the line at x is s sqrt(1/n + (log10(x) - m)^2 / S); intervals are Student's t with n - 2
degrees of freedom times these. They take the deviations for independent, normal and of one size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.95
LOG10_OF_2 = math.log10(2)


@dataclass(frozen=True)
class LogLinearFit:
    """`slope` per decade of x; `residual_deviation` is None with two points, which a line always meets."""

    num_points: int
    intercept: float  # at log10(x) = 0
    slope: float
    r_squared: float
    residual_deviation: float | None
    mean_log10: float
    squares_log10: float
    range: tuple[float, float]  # the x that were seen

    @property
    def slope_per_doubling(self) -> float:
        return self.slope * LOG10_OF_2

    def at(self, x: float) -> float:
        return self.intercept + self.slope * math.log10(x)

    def half_band(self, x: float, confidence: float = CONFIDENCE) -> float | None:
        """Half the height of the line's confidence band at x: of the expected value, not of single points."""
        if self.residual_deviation is None:
            return None
        leverage = 1 / self.num_points + (math.log10(x) - self.mean_log10) ** 2 / self.squares_log10
        return self._quantile(confidence) * self.residual_deviation * math.sqrt(leverage)

    def slope_half_interval(self, confidence: float = CONFIDENCE) -> float | None:
        """Half the slope's confidence interval, per decade."""
        if self.residual_deviation is None:
            return None
        return self._quantile(confidence) * self.residual_deviation / math.sqrt(self.squares_log10)

    def crossing(self, other: LogLinearFit) -> float | None:
        """Where this line passes another from below; None where it rises no faster."""
        if self.slope <= other.slope:
            return None
        exponent = (other.intercept - self.intercept) / (self.slope - other.slope)
        return 10.0**exponent if abs(exponent) < 300 else None

    def _quantile(self, confidence: float) -> float:
        return student_t_quantile(confidence, self.num_points - 2)


def fit_log_linear(x: Sequence[float], y: Sequence[float]) -> LogLinearFit | None:
    """The fit to points with positive x; None with fewer than two different x."""
    if len(set(x)) < 2:
        return None
    log_x, values = np.log10(np.asarray(x, float)), np.asarray(y, float)
    mean_log10, mean = float(log_x.mean()), float(values.mean())
    squares_log10 = float(((log_x - mean_log10) ** 2).sum())
    slope = float(((log_x - mean_log10) * (values - mean)).sum()) / squares_log10
    intercept = mean - slope * mean_log10
    residual = float(((values - intercept - slope * log_x) ** 2).sum())
    total = float(((values - mean) ** 2).sum())
    freedom = len(values) - 2
    return LogLinearFit(
        num_points=len(values),
        intercept=intercept,
        slope=slope,
        r_squared=1 - residual / total if total > 0 else 1.0,
        residual_deviation=math.sqrt(residual / freedom) if freedom else None,
        mean_log10=mean_log10,
        squares_log10=squares_log10,
        range=(float(min(x)), float(max(x))),
    )


@cache
def student_t_quantile(confidence: float, freedom: int) -> float:
    """The t that |T| exceeds with probability 1 - confidence, by bisection of `student_t_inside`.

    Raises ValueError for a confidence outside (0, 1) or fewer than one degree of freedom.
    """
    if not 0 < confidence < 1 or freedom < 1:
        raise ValueError(f"confidence must lie in (0, 1) and freedom be at least 1, got {confidence} and {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if student_t_inside(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def student_t_inside(angle: float, freedom: int) -> float:
    """P(|T| < t) with t = sqrt(freedom) tan(angle): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1, (freedom - odd) // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
