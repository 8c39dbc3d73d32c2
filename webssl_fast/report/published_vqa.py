"""The VQA rows of Web-SSL, arXiv 2504.01017v1, Tables 6 to 15; published_vqa.csv holds them as they are printed.

Columns that the paper does not print: `parameters`, counted on the networks of its Table 1 (the vision tower alone; of
CLIP, whose tower is not told exactly, that of Web-DINO), and the `data` and `filter` of its text.
"""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path

from webssl_fast.report.vqa_rows import VqaRow
from webssl_fast.vqa_categories import BENCHMARKS, CATEGORIES

AGREEMENT = 0.01  # the paper cuts its averages off after two decimals
CSV_COLUMNS = ("model", "average_reported", "average_recomputed", *CATEGORIES, "table")


@cache
def published_vqa_rows() -> tuple[VqaRow, ...]:
    """In the order of the file."""
    with (Path(__file__).parent / "published_vqa.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def unexplained_rows() -> tuple[VqaRow, ...]:
    """Those whose printed average is not the mean of their printed categories."""
    return tuple(row for row in published_vqa_rows() if not is_explained(row))


def is_explained(row: VqaRow) -> bool:
    """Whether a row's reported average is what the category code makes of its benchmarks."""
    assert row.reported_average is not None
    return abs(row.means["average"] - row.reported_average) <= AGREEMENT + 1e-9


def published_csv() -> str:
    """A line a published row: the average as it is reported and as the category code makes it, and the categories."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in published_vqa_rows():
        means = [f"{row.means[name]:.4f}" for name in ("average", *CATEGORIES)]
        writer.writerow([row.model, f"{row.reported_average:.2f}", *means, row.source])
    return out.getvalue()


def _row(line: dict[str, str]) -> VqaRow:
    printed = {name: line[name] for name in BENCHMARKS}
    return VqaRow(
        model=line["model"],
        method=line["method"],
        size=line["size"],
        parameters=int(line["parameters"]) if line["parameters"] else None,
        samples_seen=float(line["samples_seen_billions"]) * 1e9 if line["samples_seen_billions"] else None,
        resolution_px=int(line["resolution_px"]),
        data=line["data"],
        filter=line["filter"],
        scores={name: float(text) for name, text in printed.items()},
        source=line["table"],
        published=True,
        reported_average=float(line["average_reported"]),
        printed=printed,
    )
