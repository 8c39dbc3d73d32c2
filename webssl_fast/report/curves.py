"""Line charts as inline SVG.

Written here and not with matplotlib: a page of these is a tenth of the size, its text is selectable, it follows the
reader's colour scheme through CSS classes, and the package keeps one heavy dependency less. Colours live in page.css.

Coordinates: x, y in pixels of the view box; steps and values in data units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from markupsafe import Markup

from webssl_fast.report import scales

NUM_BUCKETS = 240  # of a long series; about one for every two pixels of a wide chart
LABEL_HEIGHT_PX = 15
NUM_COLOURS = 6
STEP_LABEL = "step"


@dataclass(frozen=True)
class Line:
    """One curve; `level` draws a dashed horizontal of the same colour, e.g. the untrained network's score."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    level: float | None = None
    level_name: str = ""


@dataclass(frozen=True)
class Chart:
    """One panel. `unit` stands beside the title; `percent` shows shares in [0, 1] as percentages; `may_be_log` takes a
    logarithmic axis where positive values span more than two decades."""

    title: str
    lines: list[Line]
    unit: str = ""
    percent: bool = False
    from_zero: bool = False
    may_be_log: bool = False
    last_step: int = 0
    note: str = ""

    @property
    def is_condensed(self) -> bool:
        return any(len(line.steps) > NUM_BUCKETS for line in self.lines)

    def text(self, value: float | None) -> str:
        return scales.percent(value) if self.percent else scales.number(value)


@dataclass
class Condensed:
    """A series cut into at most NUM_BUCKETS buckets of equal width in steps: mean, lowest and highest finite value."""

    steps: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)  # NaN where a bucket holds no finite value: a gap in the curve
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    broken_steps: list[int] = field(default_factory=list)  # where a value is not finite
    is_condensed: bool = False


def condense(steps: Sequence[int], values: Sequence[float], num_buckets: int = NUM_BUCKETS) -> Condensed:
    """Leaves a short series as it is, so that every logged value is seen."""
    found = Condensed(is_condensed=len(steps) > num_buckets)
    found.broken_steps = [s for s, v in zip(steps, values, strict=True) if not math.isfinite(v)]
    buckets: dict[int, list[tuple[int, float]]] = {}
    width = (steps[-1] - steps[0]) / num_buckets if found.is_condensed else 0
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        key = min(int((step - steps[0]) / width), num_buckets - 1) if found.is_condensed else i
        buckets.setdefault(key, []).append((step, value))
    for points in buckets.values():
        finite = [v for _, v in points if math.isfinite(v)] or [math.nan]
        found.steps.append(sum(s for s, _ in points) / len(points))
        found.means.append(sum(finite) / len(finite))
        found.lows.append(min(finite))
        found.highs.append(max(finite))
    return found


@dataclass(frozen=True)
class Frame:
    """The plot area in pixels and what its edges mean."""

    left: float
    right: float
    top: float
    bottom: float
    last_step: float
    ticks: list[float]
    is_log: bool

    def x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.last_step

    def y(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.is_log else float
        low, high = scale(self.ticks[0]), scale(self.ticks[-1])
        return self.bottom - (self.bottom - self.top) * (scale(value) - low) / (high - low)


def svg(chart: Chart, width: int, height: int, css_class: str = "") -> Markup:
    """The chart without its title, as one <svg> element that scales with its container."""
    curves = [condense(line.steps, line.values) for line in chart.lines]
    extremes = [v for c in curves for v in (*c.lows, *c.highs) if math.isfinite(v)]
    if not extremes:
        message = "no finite value was logged" if any(c.steps for c in curves) else "nothing was logged yet"
        return Markup(
            f'<svg class="{css_class}" viewBox="0 0 {width} {height}" role="img" aria-label="{message}">'
            f'<text class="empty" x="{width / 2}" y="{height / 2}">{message}</text></svg>'
        )
    levels = [_near(line.level, extremes) for line in chart.lines]
    labels = _end_labels(chart, curves, levels)
    frame = _frame(chart, extremes + [level for level in levels if level is not None], labels, width, height)

    parts = [_grid(frame, chart)]
    for i, (level, curve) in enumerate(zip(levels, curves, strict=True)):
        parts.append(f'<g class="c{i % NUM_COLOURS}">{_dashed(frame, level)}{_curve(frame, curve)}</g>')
    parts.append(placed_labels(labels, frame))
    edges = (frame.left, frame.right, frame.top, frame.bottom, frame.last_step, frame.ticks[0], frame.ticks[-1])
    geometry = " ".join(f"{edge:.6g}" for edge in (*edges, int(frame.is_log)))
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(describe(chart))}" '
        f'data-frame="{geometry}">{"".join(parts)}<g class="cursor"></g></svg>'
    )


def describe(chart: Chart) -> str:
    """The chart in words: its first and last values."""
    sentences = []
    for line in chart.lines:
        finite = [(s, v) for s, v in zip(line.steps, line.values, strict=True) if math.isfinite(v)]
        if not finite:
            continue
        (_, first), (last_step, last) = finite[0], finite[-1]
        named = f"{line.name} " if len(chart.lines) > 1 else ""
        moved = chart.text(last) if len(finite) == 1 else f"{chart.text(first)} \N{RIGHTWARDS ARROW} {chart.text(last)}"
        sentences.append(f"{named}{moved}" + (f" at step {last_step:,}" if len(finite) == 1 else ""))
    num_broken = sum(not math.isfinite(v) for line in chart.lines for v in line.values)
    if num_broken:
        sentences.append(f"{num_broken} not finite (\N{MULTIPLICATION SIGN})")
    if chart.note:
        sentences.append(chart.note)
    return ", ".join(sentences)


def hover_data(chart: Chart) -> str:
    """JSON for page.js: what the pointer reads out."""

    def rounded(values: Sequence[float]) -> list[float | None]:
        return [float(f"{v:.5g}") if math.isfinite(v) else None for v in values]

    curves = [condense(line.steps, line.values) for line in chart.lines]
    lines = [
        [line.name if len(chart.lines) > 1 else "", [round(s) for s in curve.steps], rounded(curve.means)]
        for line, curve in zip(chart.lines, curves, strict=True)
    ]
    return json.dumps({"percent": chart.percent, "lines": lines}, separators=(",", ":"))


def text_width_px(text: str) -> float:
    """About how wide a text of 12 px is in the system fonts of today, which differ by a few percent."""
    narrow, wide = " .,:;'|ijlrtfI\N{NO-BREAK SPACE}", "%mwMW\N{RIGHTWARDS ARROW}\N{MINUS SIGN}"
    return sum(3.9 if c in narrow else 10.3 if c in wide else 7.0 for c in text)


def _near(level: float | None, extremes: list[float]) -> float | None:
    """A level that can be drawn without pressing the curves flat, None otherwise."""
    low, high = min(extremes), max(extremes)
    span = max(high - low, abs(high) * 0.1)
    return level if level is not None and low - 2 * span <= level <= high + 2 * span else None


@dataclass
class EndLabel:
    """Text beside the end of a curve at `value`."""

    value: float
    text: str
    css_class: str


def _end_labels(chart: Chart, curves: list[Condensed], levels: list[float | None]) -> list[EndLabel]:
    labels = []
    for i, (line, level, curve) in enumerate(zip(chart.lines, levels, curves, strict=True)):
        finite = [v for v in line.values if math.isfinite(v)]
        ends = [v for v in curve.means if math.isfinite(v)]
        named = f"{line.name} " if len(chart.lines) > 1 else ""
        if ends:
            labels.append(EndLabel(ends[-1], named + chart.text(finite[-1]), f"end c{i % NUM_COLOURS}"))
        if level is not None:
            text = f"{line.level_name} {chart.text(level)}".strip()
            labels.append(EndLabel(level, text, f"end level c{i % NUM_COLOURS}"))
    return labels


def _frame(chart: Chart, extremes: list[float], labels: list[EndLabel], width: int, height: int) -> Frame:
    low, high = min(extremes), max(extremes)
    is_log = chart.may_be_log and low > 0 and high > 100 * low
    num_ticks = max(2, height // 48)
    factor = 100 if chart.percent else 1  # ticks that are round as shown
    if is_log:
        ticks = scales.log_ticks(low, high)
    else:
        floor = 0.0 if chart.from_zero and low >= 0 else low
        ticks = [t / factor for t in scales.linear_ticks(floor * factor, high * factor, num_ticks)]
    tick_width = max(text_width_px(_tick(chart, t, ticks, is_log)) for t in ticks)
    label_width = max([text_width_px(label.text) * 1.06 for label in labels] + [text_width_px(STEP_LABEL) + 14])
    return Frame(
        left=tick_width + 8,
        right=max(width - label_width - 10, width / 2),
        top=10,
        bottom=height - 24,
        last_step=max(chart.last_step, max((line.steps[-1] for line in chart.lines if line.steps), default=0), 1),
        ticks=ticks,
        is_log=is_log,
    )


def _tick(chart: Chart, value: float, ticks: list[float], is_log: bool) -> str:
    if is_log:
        return scales.number(value, 1) if 1e-3 <= value < 1e4 else scales.tick_text(value, value)
    factor = 100 if chart.percent else 1
    return scales.tick_text(value * factor, (ticks[1] - ticks[0]) * factor) + ("%" if chart.percent else "")


def _grid(frame: Frame, chart: Chart) -> str:
    parts = []
    for tick in frame.ticks:
        y = frame.y(tick)
        css_class = "base" if tick == frame.ticks[0] else "grid"
        parts.append(f'<path class="{css_class}" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        text = _tick(chart, tick, frame.ticks, frame.is_log)
        parts.append(f'<text class="tick y" x="{frame.left - 6:.1f}" y="{y + 4:.1f}">{text}</text>')
    num_ticks = max(1, int((frame.right - frame.left) // 60))
    steps = [t for t in scales.linear_ticks(0, frame.last_step, num_ticks) if t <= frame.last_step and t == int(t)]
    for step in steps:
        x, text = frame.x(step), scales.tick_text(step, steps[1] if len(steps) > 1 else 1)
        parts.append(f'<path class="base" d="M{x:.1f} {frame.bottom:.1f}v4"/>')
        parts.append(f'<text class="tick x" x="{x:.1f}" y="{frame.bottom + 17:.1f}">{text}</text>')
    at = max(frame.right + 7, x + text_width_px(text) / 2 + 6)  # beyond the last number
    parts.append(f'<text class="tick" x="{at:.1f}" y="{frame.bottom + 17:.1f}">{STEP_LABEL}</text>')
    return "".join(parts)


def _curve(frame: Frame, curve: Condensed) -> str:
    runs: list[list[int]] = [[]]  # stretches without a gap
    for i, mean in enumerate(curve.means):
        if math.isfinite(mean):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in filter(None, runs):
        at = [f"{frame.x(curve.steps[i]):.1f} {frame.y(curve.means[i]):.1f}" for i in run]
        if curve.is_condensed:
            upper = [f"{frame.x(curve.steps[i]):.1f} {frame.y(curve.highs[i]):.1f}" for i in run]
            lower = [f"{frame.x(curve.steps[i]):.1f} {frame.y(curve.lows[i]):.1f}" for i in reversed(run)]
            parts.append(f'<path class="band" d="M{"L".join(upper + lower)}Z"/>')
        if len(run) > 1:
            parts.append(f'<path class="curve" d="M{"L".join(at)}"/>')
        if len(curve.means) <= 24 or len(run) == 1:
            parts += [f'<circle r="2.6" cx="{p.split()[0]}" cy="{p.split()[1]}"/>' for p in at]
    for step in curve.broken_steps[:50]:
        parts.append(f'<path class="broken" d="M{frame.x(step) - 3.5:.1f} {frame.top:.1f}l7 7m0 -7l-7 7"/>')
    return "".join(parts)


def _dashed(frame: Frame, level: float | None) -> str:
    if level is None:
        return ""
    return f'<path class="level" d="M{frame.left:.1f} {frame.y(level):.1f}H{frame.right:.1f}"/>'


def placed_labels(labels: list[EndLabel], frame: Frame) -> str:
    """Labels beside the ends of their curves, moved apart where they would touch, in the order of their values."""
    labels = sorted(labels, key=lambda label: -label.value)
    ys = [frame.y(label.value) + 4 for label in labels]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + LABEL_HEIGHT_PX)
    limit = frame.bottom + 2
    for i in reversed(range(len(ys))):
        ys[i] = min(ys[i], limit)
        limit = ys[i] - LABEL_HEIGHT_PX
    return "".join(
        f'<text class="{label.css_class}" x="{frame.right + 7:.1f}" y="{y:.1f}">{escape(label.text)}</text>'
        for label, y in zip(labels, ys, strict=True)
    )
