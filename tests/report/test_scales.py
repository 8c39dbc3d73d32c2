"""Ticks enclose their data, and numbers read as a person would write them."""

import math

import pytest

from webssl_fast.report import scales


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (12.9, 20.4), (-0.55, 0.31), (0.994, 1.0), (1e-6, 1e-4), (0, 625_000), (3, 3), (0, 0), (-5, -5)]
    + [(1, 1 + 2**-52)],
)
def test_linear_ticks_enclose_the_data_evenly(low, high):
    ticks = scales.linear_ticks(low, high, 5)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(nice) for nice in (1, 2, 5, 10))


@pytest.mark.parametrize(("low", "high"), [(0.03, 7), (1, 1000), (1e-9, 1e9), (0.5, 0.6)])
def test_log_ticks_enclose_the_data(low, high):
    ticks = scales.log_ticks(low, high)
    assert ticks[0] <= low * 1.001 and ticks[-1] >= high * 0.999 and 2 <= len(ticks) <= 7


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1.9e-4), (0.9941, 0.9999), (0, 625_000), (0, 2_500_000), (-0.55, 0.31), (5.4, 9.2), (0, 12_500)],
)
def test_tick_labels_tell_ticks_apart_and_say_their_value(low, high):
    ticks = scales.linear_ticks(low, high, 5)
    texts = [scales.tick_text(t, ticks[1] - ticks[0]) for t in ticks]
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    read = [float(t.rstrip("kMG").replace("\N{MINUS SIGN}", "-")) * units.get(t[-1], 1) for t in texts]
    assert read == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.3124, "7.312"),
        (12.998, "13.00"),
        (0.07, "0.07"),
        (0.07000000000000001, "0.07"),
        (19200, "19,200"),
        (1234567.8, "1,234,568"),
        (-0.54064, "\N{MINUS SIGN}0.5406"),
        (2.1267e-5, "2.13e-5"),
        (1e-4, "1e-4"),
        (0, "0"),
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers(value, text):
    assert scales.number(value) == text


def test_shares_and_counts():
    assert scales.percent(0.6812) == "68.1\N{NO-BREAK SPACE}%"
    assert scales.percent(math.nan) == "not finite"
    assert scales.big_count(19_200) == "19,200"
    assert scales.big_count(5_526_000) == "5.53\N{NO-BREAK SPACE}M"
    assert scales.big_count(1_134_770_176) == "1.13\N{NO-BREAK SPACE}B"
