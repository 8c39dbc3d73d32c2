"""Alignment with language models on one axis: what is published, a range alone, and our scores, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from webssl_fast.report import scales
from webssl_fast.report.curves import text_width_px
from webssl_fast.report.published import ALIGNMENT_K, ALIGNMENT_PAIRS, ALIGNMENT_RANGE
from webssl_fast.report.tables import AlignmentRow

ROW_HEIGHT_PX = 26
PUBLISHED = "published range"


def alignment_svg(rows: Sequence[AlignmentRow], width: int, css_class: str = "") -> Markup:
    """A line a score of ours under the published range; `width` in pixels of the view box."""
    names = [PUBLISHED, *(f"{row.result.encoder.name}, {row.language_model}" for row in rows)]
    left = min(max(map(text_width_px, names)) * 1.02 + 8, width * 0.55)
    shown = [_cut(name, left - 8) for name in names]
    right, bottom = width - 12, ROW_HEIGHT_PX * len(names) + 6
    ticks = scales.linear_ticks(0, max([ALIGNMENT_RANGE[1], *(row.score for row in rows)]), 2 if width < 500 else 4)

    def x(value: float) -> float:
        return left + (right - left) * value / ticks[-1]

    chance = x(ALIGNMENT_K / (ALIGNMENT_PAIRS - 1))
    parts = [f'<path class="base" d="M{left:.1f} {bottom}H{right:.1f}"/>']
    parts += [f'<path class="grid" d="M{x(t):.1f} 0V{bottom}"/>' for t in ticks]
    parts += [
        f'<text class="tick x" x="{x(t):.1f}" y="{bottom + 17}">{scales.tick_text(t, ticks[1])}</text>' for t in ticks
    ]
    for i, name in enumerate(shown):
        y = ROW_HEIGHT_PX * (i + 0.5) + 2
        parts.append(f'<text class="tick y" x="{left - 8:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    low, high = (x(end) for end in ALIGNMENT_RANGE)
    parts.append(
        f'<g class="c0"><rect class="band" x="{low:.1f}" y="2" width="{high - low:.1f}" height="{bottom - 2}"/>'
    )
    parts.append(f'<path class="level" d="M{chance:.1f} 0V{bottom}"/><title>dashed: chance</title>')
    for i, row in enumerate(rows, start=1):
        y = ROW_HEIGHT_PX * (i + 0.5) + 2
        words = f"{names[i]}: {scales.number(row.score)}"
        parts.append(
            f'<circle class="solid" r="4" cx="{x(row.score):.1f}" cy="{y:.1f}"><title>{escape(words)}</title></circle>'
        )
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {width} {bottom + 24}" role="img" '
        f'aria-label="Mutual k-NN alignment with language models">{"".join(parts)}</g></svg>'
    )


def _cut(text: str, width_px: float) -> str:
    """The text, or as much of its beginning as fits and an ellipsis."""
    if text_width_px(text) <= width_px:
        return text
    while text and text_width_px(text + "\N{HORIZONTAL ELLIPSIS}") > width_px:
        text = text[:-1]
    return text.rstrip(" ,") + "\N{HORIZONTAL ELLIPSIS}"
