"""The paper's tables, classic vision and alignment, with our rows above the published ones; and every score of ours."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from webssl_fast.report import scales
from webssl_fast.report.measures import MEASURES
from webssl_fast.report.published import ALIGNMENT_K, ALIGNMENT_PAIRS, PAPER, PublishedRow, published_rows
from webssl_fast.report.result_files import Result

EVALUATION_TITLES = {
    "knn": "k-NN",
    "linear_probe": "Linear probe",
    "logistic_regression": "Logistic regression",
    "segmentation": "Segmentation",
    "depth": "Depth",
    "alignment": "Alignment",
}
SHARES = ("top1", "top5", "miou", "accuracy", "delta1", "chance")
PROBES = ("linear_probe", "logistic_regression")
CHOSEN = "best_on_val/"  # the one of a probe's many heads that counts
PUBLISHED_LANGUAGE_MODEL = "llama-3.1"
CSV_COLUMNS = (
    *("table", "origin", "encoder", "sha256", "measure", "value", "unit"),
    *("data", "comparable", "remarks", "date", "source"),
)


@dataclass(frozen=True)
class Cell:
    """One score of ours: `value` in its column's unit, and why it is no match for the published ones."""

    value: float
    text: str
    result: Result
    departures: list[str]


@dataclass
class ClassicRow:
    """An encoder's scores by the name of their measure."""

    result: Result  # the newest one
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignmentRow:
    """A vision encoder and a language model, at the pair of layers where they agree best."""

    result: Result
    language_model: str
    score: float
    vision_layer: float | None
    language_layer: float | None
    chance: float | None

    @property
    def departures(self) -> list[str]:
        """Why the score is no match for the published ones, in words."""
        found = ["a subset of the data"] if self.result.is_subset else []
        published_chance = ALIGNMENT_K / (ALIGNMENT_PAIRS - 1)
        if self.chance is not None and abs(self.chance - published_chance) > 1e-6:
            chances = f"{scales.number(self.chance, 3)} instead of {scales.number(published_chance, 3)}"
            found.append(f"other numbers of neighbours or pairs (chance is {chances})")
        if PUBLISHED_LANGUAGE_MODEL not in self.language_model.lower():
            found.append("another language model than Llama 3.1")
        return found


@dataclass(frozen=True)
class Scores:
    """All that a result file says, for the table of everything: (name, value, untrained value or "")."""

    result: Result
    title: str
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Tables:
    classic: list[ClassicRow]
    published: tuple[PublishedRow, ...]
    alignment: list[AlignmentRow]
    scores: list[Scores]

    @property
    def has_untrained(self) -> bool:
        return any(untrained for scores in self.scores for _, _, untrained in scores.rows)

    def classic_remarks(self) -> list[str]:
        """A sentence for each score that must not be compared with the published ones."""
        return [
            f"{row.result.encoder.name}, {measure.data} {measure.title}: {'; '.join(cell.departures)}."
            for row in self.classic
            for measure in MEASURES
            if (cell := row.cells.get(measure.name)) and cell.departures
        ]

    def alignment_remarks(self) -> list[str]:
        return [
            f"{row.result.encoder.name}, {row.language_model}: {'; '.join(row.departures)}."
            for row in self.alignment
            if row.departures
        ]


def make_tables(results: Sequence[Result]) -> Tables:
    """A row an encoder: results of the same weights share it wherever they were written, since each protocol has a
    config and an output_dir of its own. A second result for a place that is taken begins another row."""
    return Tables(
        classic=_classic_rows(results),
        published=published_rows(),
        alignment=[row for result in results if result.evaluation == "alignment" for row in _alignment_rows(result)],
        scores=[_scores(result) for result in sorted(results, key=_place)],
    )


def tables_csv(tables: Tables, published_alone: bool = False) -> str:
    """Both tables, one line a score, published values as they are printed; without a row of ours only if asked for."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([*_classic_lines(tables, published_alone), *_alignment_lines(tables)])
    return out.getvalue()


def _classic_rows(results: Sequence[Result]) -> list[ClassicRow]:
    rows: list[ClassicRow] = []
    for result in results:
        for measure in MEASURES:
            value = measure.value(result)
            if value is None:
                continue
            identity = result.encoder.identity
            same = (r for r in rows if r.result.encoder.identity == identity and measure.name not in r.cells)
            row = next(same, None)
            if row is None:
                rows.append(row := ClassicRow(result))
            row.result = max(row.result, result, key=lambda r: r.date)
            text = f"{value:.{measure.decimals}f}" if math.isfinite(value) else scales.number(value)
            row.cells[measure.name] = Cell(value, text, result, measure.departures(result))
    return rows


def _alignment_rows(result: Result) -> Iterator[AlignmentRow]:
    for key, score in result.scores.items():
        name, _, kind = key.rpartition("/")
        if kind == "alignment":
            others = (result.scores.get(f"{name}/{key}") for key in ("vision_layer", "language_layer", "chance"))
            yield AlignmentRow(result, name, score, *others)


def _place(result: Result) -> int:
    known = list(EVALUATION_TITLES)
    return known.index(result.evaluation) if result.evaluation in known else len(known)


def _scores(result: Result) -> Scores:
    chosen = [name for name in result.scores if name.startswith(CHOSEN) or name == "chance"]
    names = chosen if result.evaluation in PROBES else list(result.scores)
    if result.evaluation == "alignment":  # the rest stands in a table of its own
        names = [name for name in names if name.endswith("/alignment")]
    rows = [
        (
            name.removeprefix(CHOSEN).replace("_", " "),
            _text(result, name, result.scores[name]),
            _text(result, name, result.untrained_scores[name]) if name in result.untrained_scores else "",
        )
        for name in names
    ]
    return Scores(result, EVALUATION_TITLES.get(result.evaluation, result.evaluation), rows)


def _text(result: Result, name: str, value: float) -> str:
    is_percentage = name.endswith(SHARES) and result.evaluation != "alignment"
    return scales.percent(value) if is_percentage else scales.number(value)


def _classic_lines(tables: Tables, published_alone: bool) -> Iterator[list[object]]:
    for row in tables.classic:
        for measure in MEASURES:
            if cell := row.cells.get(measure.name):
                yield _own_line("classic_vision", cell.result, measure.name, cell.value, measure.unit, cell.departures)
    for published in tables.published if tables.classic or published_alone else ():
        name = f"{published.encoder}, {published.detail}".removesuffix(", ")
        for measure in MEASURES:
            if printed := published.printed.get(measure.name):
                score = [measure.name, printed, measure.unit]
                source = f"{PAPER}, {published.source}"
                yield ["classic_vision", "published", name, "", *score, measure.data, True, "", "", source]


def _alignment_lines(tables: Tables) -> Iterator[list[object]]:
    for row in tables.alignment:
        measure, unit = f"{row.language_model}/alignment", "share of common neighbours"
        yield _own_line("alignment", row.result, measure, row.score, unit, row.departures)


def _own_line(table: str, result: Result, measure: str, value: float, unit: str, departures: list[str]) -> list[object]:
    encoder = result.encoder
    score = [measure, float(f"{value:.8g}"), unit]  # 45.678 and not 45.678000000000004
    origin = [result.data_name, not departures, "; ".join(departures), result.date, result.file]
    return [table, "ours", encoder.name, encoder.sha256, *score, *origin]
