"""Points on a logarithmic axis with fitted lines and their confidence bands, as inline SVG; published points hollow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from webssl_fast.report import scales
from webssl_fast.report.curves import EndLabel, Frame, placed_labels, text_width_px
from webssl_fast.report.fits import LogLinearFit
from webssl_fast.report.scaling import METHODS, Axis, Series
from webssl_fast.report.vqa_rows import CATEGORY_TITLES

NUM_COLOURS = 6
NUM_BAND_POINTS = 25
MARGIN = 0.06  # of the logarithmic x range, on either side
LEAST_MARGIN = 1.15  # as a factor


@dataclass(frozen=True)
class LogFrame(Frame):
    """A plot area whose x is logarithmic, from `low_x` to `high_x`."""

    low_x: float = 1.0
    high_x: float = 10.0

    def x(self, step: float) -> float:
        share = math.log10(step / self.low_x) / math.log10(self.high_x / self.low_x)
        return self.left + (self.right - self.left) * share


def scaling_svg(axis: Axis, measure: str, width: int, height: int, css_class: str = "") -> Markup:
    """One measure of every series of an axis; `width` and `height` in pixels of the view box."""
    shown = [series for series in axis.series if series.points(measure)]
    if not shown:
        return Markup('<p class="lead">No row has this score.</p>')
    frame = _frame(shown, measure, width, height)
    colours = _colours(shown)
    parts = [_grid(frame)]
    # Own rows last: they lie on top.
    for series in sorted(shown, key=lambda s: not s.published):
        parts.append(f'<g class="c{colours[series.method]}">{_drawn(series, measure, frame)}</g>')
    labels = [_label(series, measure, colours[series.method]) for series in shown]
    parts.append(placed_labels(labels, frame))
    title = f"{CATEGORY_TITLES[measure]} against {axis.title}"
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def log_x_ticks(low: float, high: float) -> list[float]:
    """Round values within [low, high], fewer of a decade over a longer range."""
    span = math.log10(high / low)
    multiples = (1, 2, 3, 4, 6, 8) if span < 1.2 else (1, 3) if span < 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents for m in multiples if low <= m * 10.0**e <= high]


def _colours(shown: Sequence[Series]) -> dict[str, int]:
    methods = dict.fromkeys([*METHODS, *(series.method for series in shown)])
    return {method: i % NUM_COLOURS for i, method in enumerate(methods)}


def _frame(shown: Sequence[Series], measure: str, width: int, height: int) -> LogFrame:
    points = [point for series in shown for point in series.points(measure)]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    margin = max((high_x / low_x) ** MARGIN, LEAST_MARGIN)
    lines = [(s.fits[measure], x) for s in shown if measure in s.fits for x in s.fits[measure].range]
    values = [p[1] for p in points] + [fit.at(x) for fit, x in lines]
    ticks = scales.linear_ticks(min(values), max(values), max(3, height // 48))
    labels = [_label(series, measure, 0).text for series in shown]
    label_width = max(text_width_px(text) for text in labels) * 1.06
    return LogFrame(
        left=max(text_width_px(scales.tick_text(t, ticks[1] - ticks[0])) for t in ticks) + 8,
        right=max(width - label_width - 10, width / 2),
        top=10,
        bottom=height - 24,
        last_step=1,
        ticks=ticks,
        is_log=False,
        low_x=low_x / margin,
        high_x=high_x * margin,
    )


def _grid(frame: LogFrame) -> str:
    parts = []
    for tick in frame.ticks:
        y = frame.y(tick)
        css_class = "base" if tick == frame.ticks[0] else "grid"
        parts.append(f'<path class="{css_class}" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        text = scales.tick_text(tick, frame.ticks[1] - frame.ticks[0])
        parts.append(f'<text class="tick y" x="{frame.left - 6:.1f}" y="{y + 4:.1f}">{text}</text>')
    for tick in log_x_ticks(frame.low_x, frame.high_x):
        x = frame.x(tick)
        parts.append(f'<path class="base" d="M{x:.1f} {frame.bottom:.1f}v4"/>')
        text = scales.big_count(tick)
        parts.append(f'<text class="tick x" x="{x:.1f}" y="{frame.bottom + 17:.1f}">{text}</text>')
    return "".join(parts)


def _drawn(series: Series, measure: str, frame: LogFrame) -> str:
    parts = []
    if fit := series.fits.get(measure):
        parts.append(_band(fit, frame))
        ends = [f"{frame.x(x):.1f} {frame.y(fit.at(x)):.1f}" for x in fit.range]
        dashes = " published" if series.published else ""
        parts.append(f'<path class="curve fit{dashes}" d="M{"L".join(ends)}"/>')
    for x, value, row in series.points(measure):
        words = f"{row.model}: {value:.2f} ({row.source})"
        css_class = "hollow" if series.published else "solid"
        parts.append(
            f'<circle class="{css_class}" r="4" cx="{frame.x(x):.1f}" cy="{frame.y(value):.1f}">'
            f"<title>{escape(words)}</title></circle>"
        )
    return "".join(parts)


def _band(fit: LogLinearFit, frame: LogFrame) -> str:
    """Cut off at the plot's edges: with three points it can be higher than the plot."""
    low, high = fit.range
    xs = [low * (high / low) ** (i / (NUM_BAND_POINTS - 1)) for i in range(NUM_BAND_POINTS)]
    upper: list[str] = []
    lower: list[str] = []
    for x in xs:
        half = fit.half_band(x)
        if half is None:
            return ""
        for edge, sign in ((upper, 1), (lower, -1)):
            y = frame.y(fit.at(x) + sign * half)
            edge.append(f"{frame.x(x):.1f} {min(max(y, frame.top), frame.bottom):.1f}")
    return f'<path class="band" d="M{"L".join(upper + lower[::-1])}Z"/>'


def _label(series: Series, measure: str, colour: int) -> EndLabel:
    value = series.points(measure)[-1][1]
    return EndLabel(value, f"{series.name} {value:.1f}", f"end c{colour}")
