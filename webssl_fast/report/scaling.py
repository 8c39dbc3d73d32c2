"""Scores against size and against images seen, each series with its log-linear fit, and what the fits say in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from webssl_fast.report import scales
from webssl_fast.report.fits import LOG10_OF_2, LogLinearFit, fit_log_linear
from webssl_fast.report.published_vqa import published_vqa_rows, unexplained_rows
from webssl_fast.report.vqa_rows import CATEGORY_TITLES, VqaRow

METHODS = ("Web-DINO", "Web-MAE", "CLIP")  # of the paper's controlled comparison, in the order of their colours
SSL, LANGUAGE = ("Web-DINO", "Web-MAE"), "CLIP"
PUBLISHED_SAMPLES, PUBLISHED_SIZE = 2e9, "7B"  # what the paper holds fixed
MEASURES = tuple(CATEGORY_TITLES)


@dataclass(frozen=True)
class Series:
    """Rows of one method by ascending x, published or ours; `fixed` says what they have in common."""

    method: str
    published: bool
    fixed: str
    x: tuple[float, ...]
    rows: tuple[VqaRow, ...]

    @property
    def name(self) -> str:
        return self.method if self.published else f"{self.method}, ours"

    def points(self, measure: str) -> list[tuple[float, float, VqaRow]]:
        return [(x, row.means[measure], row) for x, row in zip(self.x, self.rows, strict=True) if measure in row.means]

    @cached_property
    def fits(self) -> dict[str, LogLinearFit]:
        """By measure, where two different x or more have it."""
        by_measure = {m: self.points(m) for m in MEASURES}
        fits = {m: fit_log_linear([p[0] for p in points], [p[1] for p in points]) for m, points in by_measure.items()}
        return {m: fit for m, fit in fits.items() if fit is not None}


@dataclass(frozen=True)
class Axis:
    """A figure: what its x is. `name` is for file names, `words` for sentences."""

    name: str
    title: str
    words: str
    series: tuple[Series, ...]

    def of(self, method: str) -> Series | None:
        """The published series of a method."""
        return next((s for s in self.series if s.method == method and s.published), None)


@dataclass(frozen=True)
class Difference:
    """A row beside the one that it is compared with; differences of means in points."""

    row: VqaRow
    base: VqaRow

    def of(self, measure: str) -> float | None:
        both = measure in self.row.means and measure in self.base.means
        return self.row.means[measure] - self.base.means[measure] if both else None


@dataclass(frozen=True)
class Scaling:
    rows: tuple[VqaRow, ...]  # ours, then the published ones

    @cached_property
    def by_parameters(self) -> Axis:
        """Against size at one number of samples seen: 2 billion of the published; of ours, that of most sizes."""
        series = list(self._series(lambda row: row.parameters, lambda row: row.samples_seen, PUBLISHED_SAMPLES))
        return Axis("parameters", "parameters of the encoder", "parameters", tuple(series))

    @cached_property
    def by_samples_seen(self) -> Axis:
        """Against samples seen at one size: 7B of the published; of ours, that with most lengths."""
        series = self._series(lambda row: row.samples_seen, lambda row: row.size.upper(), PUBLISHED_SIZE)
        shown = tuple(s for s in series if s.published or len(set(s.x)) > 1)
        return Axis("samples_seen", "samples seen", "samples seen", shown)

    @cached_property
    def against_clip(self) -> tuple[Difference, ...]:
        """SSL minus CLIP of the same size, samples and origin."""
        plain = [row for row in self.rows if row.method in METHODS and _is_plain(row)]
        clip = {_place(row): row for row in plain if row.method == LANGUAGE}
        return tuple(Difference(r, clip[_place(r)]) for r in plain if r.method in SSL and _place(r) in clip)

    @cached_property
    def filters(self) -> tuple[Difference, ...]:
        """Each row that saw a subset, minus the same without a filter."""
        full = {(row.method, _place(row)): row for row in self.rows if _is_plain(row)}
        subsets = [(row, full.get((row.method, _place(row)))) for row in self.rows if row.filter not in ("", "full")]
        return tuple(Difference(row, base) for row, base in subsets if base is not None)

    def _series(
        self, x_of: Callable[[VqaRow], float | None], fixed_of: Callable[[VqaRow], object], published_fixed: object
    ) -> Iterator[Series]:
        plain = [row for row in self.rows if _is_plain(row) and x_of(row) is not None]
        for method, published in sorted({(row.method, row.published) for row in plain}, key=_order):
            own = [row for row in plain if (row.method, row.published) == (method, published)]
            fixed = published_fixed
            if not published:
                different = {
                    value: {x_of(row) for row in own if fixed_of(row) == value} for value in map(fixed_of, own)
                }
                fixed = max(different, key=lambda value: (len(different[value]), value == published_fixed))
            chosen = sorted((row for row in own if fixed_of(row) == fixed), key=lambda row: x_of(row) or 0)
            if chosen:
                x = tuple(float(x_of(row) or 0) for row in chosen)
                words = f"{scales.big_count(fixed)} samples" if isinstance(fixed, float) else str(fixed)
                yield Series(method, published, words, x, tuple(chosen))


def make_scaling(own: Sequence[VqaRow]) -> Scaling:
    """Our rows beside the published ones."""
    return Scaling((*own, *published_vqa_rows()))


def _is_plain(row: VqaRow) -> bool:
    """Whether a row belongs on the curves: no filter, and of the published ones web images at 224 pixels."""
    if not row.published:
        return row.filter == "full"
    return row.data == "MC-2B" and row.filter == "full" and row.resolution_px == 224


def _order(kind: tuple[str, bool]) -> tuple[bool, int, str]:
    """The published ones first, those of the paper in its order."""
    method, published = kind
    return not published, METHODS.index(method) if method in METHODS else len(METHODS), method


def _place(row: VqaRow) -> tuple[object, ...]:
    return row.published, row.size.upper(), row.samples_seen


# ---------------------------------------------------------------- in words


def findings(scaling: Scaling) -> list[str]:
    """What the paper claims in words, in numbers, from its own rows."""
    size, samples = scaling.by_parameters, scaling.by_samples_seen
    found = [
        "VQA average by size, at 2 B samples seen: " + "; ".join(_slopes(size, "average")) + ".",
        "OCR & Chart by size: " + "; ".join(_slopes(size, "ocr_and_chart")) + ".",
        "Vision-Centric by size: " + "; ".join(_slopes(size, "vision_centric")) + ".",
        *_crossing(scaling, size),
    ]
    if web_dino := samples.of("Web-DINO"):
        words = [f"{CATEGORY_TITLES[m]} {slope_words(web_dino.fits[m])}" for m in MEASURES if m in web_dino.fits]
        found.append(f"Web-DINO {PUBLISHED_SIZE} by samples seen, a doubling: {'; '.join(words)}.")
    for difference in scaling.filters:
        row = difference.row
        if row.published:
            measures = ("average", "ocr_and_chart", "general")
            moves = ", ".join(f"{CATEGORY_TITLES[m]} {signed(difference.of(m))}" for m in measures)
            found.append(f"{row.method} {row.size} on images of the {row.filter} filter instead of all: {moves}.")
    odd, num = unexplained_rows(), len(published_vqa_rows())
    both = [f"{r.model}, {r.reported_average:.2f} reported, {r.means['average']:.2f} recomputed" for r in odd]
    explained = f"Of {num} published averages {num - len(odd)} come out of their benchmarks to 0.01"
    return [*found, f"{explained}. Not so: {'; '.join(both)}."]


def slope_words(fit: LogLinearFit) -> str:
    """E.g. "+1.88 (95% +1.64 to +2.11, R² 0.995, n = 5)": points a doubling. A line through two points explains all."""
    half = fit.slope_half_interval()
    slope = fit.slope_per_doubling
    if half is None:
        return f"{signed(slope)} (n = {fit.num_points})"
    low, high = (signed(slope + sign * half * LOG10_OF_2) for sign in (-1, 1))
    return f"{signed(slope)} (95% {low} to {high}, R² {fit.r_squared:.3f}, n = {fit.num_points})"


def signed(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _slopes(axis: Axis, measure: str) -> list[str]:
    series = [s for method in METHODS if (s := axis.of(method)) and measure in s.fits]
    return [f"{s.method} {slope_words(s.fits[measure])} points a doubling" for s in series]


def _crossing(scaling: Scaling, axis: Axis) -> Iterator[str]:
    clip = axis.of(LANGUAGE)
    for method in SSL:
        series = axis.of(method)
        if series is None or clip is None:
            continue
        for measure in ("average", "ocr_and_chart"):
            if measure not in series.fits or measure not in clip.fits:
                continue
            ahead = [d for d in scaling.against_clip if d.row.published and d.row.method == method]
            first = next((d for d in ahead if (d.of(measure) or 0) > 0), None)
            x = series.fits[measure].crossing(clip.fits[measure])
            if first is not None:
                trained = (
                    f"first at {first.row.size} of the sizes that were trained ({first.row.means[measure]:.2f} against "
                    f"{first.base.means[measure]:.2f})"
                )
            else:
                trained = "at none of the sizes that were trained"
            seen = max(series.x[-1], clip.x[-1])
            beyond = " (beyond what was trained)" if x is not None and x > seen else ""
            lines = f"the fits cross at {scales.big_count(x)} parameters{beyond}" if x else "the fits do not cross"
            yield f"{CATEGORY_TITLES[measure]}: {method} passes CLIP {trained}; {lines}."
