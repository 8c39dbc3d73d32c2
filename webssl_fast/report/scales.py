"""Axis ticks and the writing of numbers."""

from __future__ import annotations

import math


def nice_step(span: float, num_ticks: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts `span` into about `num_ticks` pieces."""
    rough = span / max(num_ticks, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def linear_ticks(low: float, high: float, num_ticks: int) -> list[float]:
    """Round values from at or below `low` to at or above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal but for rounding
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = nice_step(high - low, num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose positive `low` and `high`, every second or third of them if there are many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    stride = -(-(last - first) // 5)
    last = first + stride * -(-(last - first) // stride)
    return [10.0**e for e in range(first, last + 1, stride)]


def tick_text(value: float, step: float) -> str:
    """A tick's label with the decimals that its spacing needs: 0.994, 7.5, 200, 50k, 1e-4."""
    if value == 0:
        return "0"
    if step < 1e-3 and abs(value) < 1e-2:
        return _exponent(value, 1 + math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and (unit > 1e3 or abs(value) >= 1e4):
            return f"{value / unit:.{_decimals(step / unit)}f}{suffix}"
    return f"{value:.{_decimals(step)}f}".replace("-", "\N{MINUS SIGN}")


def number(value: float | None, digits: int = 4) -> str:
    """A value to `digits` significant digits: 7.312, 19,200, 2.13e-5; "not finite" for NaN and infinities.

    Trailing zeros stay only where digits beyond them were rounded away: 12.998 is 13.00, and 0.07 is 0.07.
    """
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return _exponent(value, digits - 1)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    is_exact = math.isclose(float(text.replace(",", "")), value, rel_tol=1e-9)
    return (_trimmed(text) if is_exact else text).replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, decimals: int = 1) -> str:
    """0.681 as "68.1 %"."""
    if share is None or not math.isfinite(share):
        return number(share)
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def big_count(value: float) -> str:
    """Counts of parameters and images for a sentence: 19,200, 5.5 M, 1.13 B."""
    for unit, suffix in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{float(f'{value / unit:.3g}'):g}\N{NO-BREAK SPACE}{suffix}"
    return f"{value:,.0f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _exponent(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{max(digits - 1, 0)}e}".split("e")
    return f"{_trimmed(mantissa)}e{int(exponent)}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
