"""The report of a scaling study: the paper's figures and tables with our rows, as one HTML page and as CSV files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from webssl_fast.report import measures, published, scales
from webssl_fast.report.alignment_chart import alignment_svg
from webssl_fast.report.fits import LOG10_OF_2
from webssl_fast.report.scaling import MEASURES, Axis, Scaling, findings, make_scaling, signed, slope_words
from webssl_fast.report.scaling_chart import scaling_svg
from webssl_fast.report.study_files import StudyManifest, read_study, state_of
from webssl_fast.report.study_rows import own_results, own_vqa_rows
from webssl_fast.report.tables import make_tables, tables_csv
from webssl_fast.report.templates import page_template
from webssl_fast.report.vqa_rows import BENCHMARK_TITLES, CATEGORY_TITLES, VqaRow
from webssl_fast.vqa_categories import BENCHMARKS

WIDE, PANEL, NARROW = (1080, 380), (525, 280), (370, 250)
ROW_COLUMNS = (
    *("origin", "model", "method", "size", "parameters", "samples_seen", "resolution_px", "data", "filter"),
    *("average_reported", *MEASURES, *BENCHMARKS, "source"),
)
FIT_COLUMNS = (
    *("x", "method", "origin", "fixed", "measure", "num_points", "x_min", "x_max", "slope_per_doubling"),
    *("slope_low", "slope_high", "slope_per_decade", "intercept", "r_squared"),
)


def write_study_report(directory: Path, output: Path | None = None) -> Path:
    """Writes the page (default: the study's report.html) and, beside it, <page>_vqa.csv, _fits.csv, _filters.csv and
    _tables.csv; returns the page's path. Works before any run has begun, with the published rows alone.

    Raises UserError where the directory is no study.
    """
    study = read_study(directory)
    path = output if output is not None else directory / "report.html"
    notes: list[str] = []
    scaling = make_scaling(own_vqa_rows(directory, study, notes))
    tables = make_tables(own_results(directory, study, notes))
    path.parent.mkdir(parents=True, exist_ok=True)
    functions = {"alignment_svg": alignment_svg, "figure": _figure, "signed": signed, "big_count": scales.big_count}
    page = page_template("study.html", **functions).render(
        title=f"{study.name}: scaling study",
        study=study,
        notes=notes,
        states=_states(directory, study),
        scaling=scaling,
        findings=findings(scaling),
        measure_names=MEASURES,
        titles=CATEGORY_TITLES,
        benchmarks=BENCHMARK_TITLES,
        slope_words=slope_words,
        tables=tables,
        measures=measures.MEASURES,
        published=published,
    )
    path.write_text(page, encoding="utf-8")
    for name, text in (
        ("vqa", _csv(ROW_COLUMNS, map(_row_line, scaling.rows))),
        ("fits", _csv(FIT_COLUMNS, _fit_lines(scaling))),
        ("filters", _csv(("origin", "model", "beside", *MEASURES), _filter_lines(scaling))),
        ("tables", tables_csv(tables, published_alone=True)),
    ):
        path.with_name(f"{path.stem}_{name}.csv").write_text(text, encoding="utf-8")
    return path


def _states(directory: Path, study: StudyManifest) -> str:
    counts = Counter(state_of(directory, point)[0] for point in study.points)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _figure(axis: Axis, measure: str) -> Markup:
    """Drawn twice, for wide and for narrow screens; page.css shows the one that fits."""
    size, css_class = (WIDE, "main") if measure == "average" else (PANEL, "half")
    drawn = scaling_svg(axis, measure, *size, "wide") + scaling_svg(axis, measure, *NARROW, "narrow")
    return Markup(
        '<figure class="chart {}"><figcaption><b>{}</b> <span class="unit">% against {}</span></figcaption>{}</figure>'
    ).format(css_class, CATEGORY_TITLES[measure], axis.title, drawn)


# ---------------------------------------------------------------- CSV


def _origin(is_published: bool) -> str:
    return "published" if is_published else "ours"


def _row_line(row: VqaRow) -> list[object]:
    about = [_origin(row.published), row.model, row.method, row.size, row.parameters, row.samples_seen]
    about += [row.resolution_px, row.data, row.filter, row.reported_average]
    means = [_rounded(row.means.get(name)) for name in MEASURES]
    return [*about, *means, *(row.printed.get(n, row.scores.get(n)) for n in BENCHMARKS), row.source]


def _fit_lines(scaling: Scaling) -> Iterator[list[object]]:
    for axis in (scaling.by_parameters, scaling.by_samples_seen):
        for series in axis.series:
            for measure, fit in series.fits.items():
                half = fit.slope_half_interval()
                slope = fit.slope_per_doubling
                ends = [None, None] if half is None else [slope + sign * half * LOG10_OF_2 for sign in (-1, 1)]
                about = [axis.name, series.method, _origin(series.published), series.fixed, measure, fit.num_points]
                values = [slope, *ends, fit.slope, fit.intercept, fit.r_squared]
                yield [*about, *fit.range, *map(_rounded, values)]


def _filter_lines(scaling: Scaling) -> Iterator[list[object]]:
    for difference in scaling.filters:
        about = [_origin(difference.row.published), difference.row.model, difference.base.model]
        yield [*about, *(_rounded(difference.of(measure)) for measure in MEASURES)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _csv(columns: tuple[str, ...], lines: Iterator[list[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return out.getvalue()
