"""One self-contained HTML page about a run or several: nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from webssl_fast.report import curves, measures, published, scales, sections
from webssl_fast.report.dense_pictures import DensePicture, load_pictures
from webssl_fast.report.features import FeaturePicture
from webssl_fast.report.reconstructions import ReconstructionPicture
from webssl_fast.report.result_files import Result, read_results
from webssl_fast.report.run_files import Run, read_run
from webssl_fast.report.tables import make_tables, tables_csv
from webssl_fast.report.templates import page_template

METHOD_NAMES = {"dinov2": "DINOv2", "mae": "MAE", "ijepa": "I-JEPA", "clip": "CLIP", "siglip": "SigLIP"}
DENSE = ("segmentation", "depth")
MAX_TABLE_ROWS = 50
# Pixels of a chart's view box, near to those it gets on screen so that its text keeps its size. Larger charts are drawn
# for narrow screens too, and page.css shows the one that fits.
PANEL, NARROW = (350, 190), (370, 230)
WIDE = {"main": (1080, 320), "half": (525, 260)}


def write_report(
    *run_dirs: Path | str,
    output: Path | str | None = None,
    pictures: Sequence[FeaturePicture] = (),
    num_parameters: int | None = None,
    reconstructions: Sequence[ReconstructionPicture] = (),
) -> Path:
    """Writes the report of runs, finished or not, and returns where it is; with results of `webssl eval`, also their
    tables as `<page's name>_tables.csv` beside it.

    run_dirs        what `webssl train` leaves: config.yaml, metrics.jsonl, bad_samples.jsonl, checkpoints/; and `webssl
                    eval`: eval/. Tables are of all of them, curves of `shown_directory`, pictures of the first that has
                    them
    output          the page's path; default the first directory's report.html
    pictures        patch features of sample photographs, from `features.feature_pictures`
    num_parameters  of the encoder of `shown_directory`, for the summary
    reconstructions of a method that predicts pixels, from `reconstructions.reconstruction_pictures`

    Raises UserError for a directory that is no run.
    """
    path = Path(output) if output is not None else Path(run_dirs[0]) / "report.html"
    runs = {Path(run_dir): read_run(run_dir) for run_dir in run_dirs}
    run = runs[shown_directory(list(runs))]
    results = [result for directory in runs for result in read_results(directory, run.notes)]
    dense = {name: _first_pictures(list(runs), name, run.notes) for name in DENSE}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run, pictures, num_parameters, results, dense, reconstructions), encoding="utf-8")
    if results:
        tables = tables_csv(make_tables(results))
        path.with_name(f"{path.stem}_tables.csv").write_text(tables, encoding="utf-8")
    return path


def shown_directory(run_dirs: Sequence[Path]) -> Path:
    """The one whose curves are shown: the first that logged anything, or else the first."""
    logs = (directory / "metrics.jsonl" for directory in run_dirs)
    return next((log.parent for log in logs if log.is_file() and log.stat().st_size), run_dirs[0])


def render(
    run: Run,
    pictures: Sequence[FeaturePicture] = (),
    num_parameters: int | None = None,
    results: Sequence[Result] = (),
    dense: Mapping[str, Sequence[DensePicture]] = MappingProxyType({}),
    reconstructions: Sequence[ReconstructionPicture] = (),
) -> str:
    """The page's HTML. Everything that came from files is escaped by the template engine."""
    num_steps = run.setting("train.num_steps")
    rows = sections.score_rows(run)
    return page_template("page.html", figure=_figure, image=_image_uri).render(
        title=_title(run, results),
        run=run,
        started=bool(run.series),
        facts=_facts(run, rows, num_steps, num_parameters),
        state=_state(run, num_steps, results),
        loss=sections.loss_chart(run),
        parts=sections.loss_parts(run),
        evaluations=sections.evaluation_charts(run),
        rows=rows,
        tables=make_tables(results),
        measures=measures.MEASURES,
        published=published,
        dense=dense,
        pictures=pictures,
        reconstructions=reconstructions,
        sections=sections.metric_sections(run),
        health=_health(run),
        num_listed=MAX_TABLE_ROWS,
    )


def _first_pictures(run_dirs: Sequence[Path], name: str, notes: list[str]) -> list[DensePicture]:
    found = (load_pictures(directory / "eval", name, notes) for directory in run_dirs)
    return next(filter(None, found), [])


def _title(run: Run, results: Sequence[Result]) -> str:
    preset = run.setting("model.preset")
    method = run.setting("method.name")
    if not run.series and results:
        names = list(dict.fromkeys(result.encoder.name for result in results))
        return names[0] if len(names) == 1 else f"{len(names)} encoders"
    if not preset:
        return f"Run {run.directory.resolve().name}"
    return f"{preset}, {METHOD_NAMES.get(method, method)}" if method else str(preset)


def _state(run: Run, num_steps: int | None, results: Sequence[Result]) -> str:
    if not run.series and results:
        return f"Evaluated, the last time on {max(result.date for result in results)}."
    if not run.series:
        return "Nothing was logged yet."
    logged = datetime.fromtimestamp((run.directory / "metrics.jsonl").stat().st_mtime, timezone.utc)
    when = f"last logged {logged:%Y-%m-%d %H:%M} UTC"
    if not num_steps:
        return f"Step {run.last_step:,}, {when}."
    if run.last_step < num_steps:
        return f"Unfinished: step {run.last_step:,} of {num_steps:,}, {when}."
    return f"Finished, {when}."


def _facts(
    run: Run, rows: list[sections.ScoreRow], num_steps: int | None, num_parameters: int | None
) -> list[tuple[str, str, str]]:
    """What a reader wants to know first: (name, value, note)."""
    if not run.series:
        return []
    facts = []
    if num_parameters:
        facts.append(("Parameters", scales.big_count(num_parameters), "encoder"))
    facts.append(("Steps", f"{run.last_step:,}", f"of {num_steps:,}" if num_steps else ""))
    facts.append(("Images seen", scales.big_count(sections.images_seen(run)), _epochs(run)))
    facts.append(("Loss", scales.number(run.last("loss")), f"from {scales.number(_first(run, 'loss'))}"))
    for row in rows:
        if row.score.endswith("top-1"):
            name = f"{row.evaluation}, {row.score.removesuffix(' top-1')}"
            untrained = "untrained" if row.first_step == 0 else f"at step {row.first_step:,}"
            note = f"from {scales.percent(row.first)} {untrained}" if row.last_step > row.first_step else untrained
            facts.append((name, scales.percent(row.last), note))
    speeds = run.get("samples_per_second").finite.values
    if speeds:
        facts.append(("Throughput", scales.number(statistics.median(speeds), 3), "images/s, median"))
    return facts


def _first(run: Run, key: str) -> float | None:
    values = run.get(key).finite.values
    return values[0] if values else None


def _epochs(run: Run) -> str:
    epoch = run.last("epoch")
    return f"epoch {scales.number(epoch, 3)}" if epoch is not None else ""


def _health(run: Run) -> dict[str, Any]:
    """Counts of what went wrong with data and steps. A bad sample is listed once and replaced in every epoch."""
    num_replaced = run.last("bad_samples")
    if num_replaced is None:
        num_replaced = float(len(run.bad_samples))
    seen = sections.images_seen(run)
    reasons = Counter(sample.reason for sample in run.bad_samples)
    return {
        "num_replaced": int(num_replaced),
        "share": num_replaced / seen if seen else None,
        "limit": run.setting("data.max_bad_share"),
        "reading": [
            (int(counted.values[-1]), title)
            for key, title in sections.READING.items()
            if any((counted := run.get(key).over_restarts).values)
        ],
        "charts": sections.health_charts(run),
        "num_skipped": int(run.last("skipped_steps") or 0),
        "has_batches": (run.directory / "nonfinite_batches.jsonl").is_file(),
        "reasons": reasons.most_common(8) if len(reasons) < len(run.bad_samples) else [],
    }


def _figure(chart: curves.Chart, size: str = "panel") -> Markup:
    """A chart with its title; `size` is panel, or one of WIDE."""
    if size in WIDE:
        drawn = curves.svg(chart, *WIDE[size], "wide") + curves.svg(chart, *NARROW, "narrow")
    else:
        drawn = curves.svg(chart, *PANEL)
    unit = Markup(' <span class="unit">{}</span>').format(chart.unit) if chart.unit else ""
    return Markup(
        '<figure class="chart {}" data-lines="{}"><figcaption><b>{}</b>{}<span class="readout">{}</span></figcaption>'
        "{}</figure>"
    ).format(size, curves.hover_data(chart), chart.title, unit, curves.describe(chart), drawn)


def _image_uri(image: np.ndarray, kind: str = "jpeg") -> str:
    """`kind` is jpeg, or png where edges between colours have a meaning."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
