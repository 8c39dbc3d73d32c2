"""The figures of Web-SSL, arXiv 2504.01017v1, that our rows stand beside; published.csv holds them as they are printed.

Accuracies and mIoU in percent, RMSE in metres. SigLIP's figure for ADE20K is left out: which of the two protocols
it is of is not told.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAPER = "Web-SSL, arXiv 2504.01017v1"

# Figure 9 shows bars without values: best mutual k-NN of Web-DINO and DINOv2 with Llama 3.1 lies within these.
ALIGNMENT_RANGE = (0.16, 0.18)
ALIGNMENT_K, ALIGNMENT_PAIRS = 10, 1024  # WiT


@dataclass(frozen=True)
class PublishedRow:
    """`printed` holds each figure by its measure's name, with the digits of the paper."""

    encoder: str
    detail: str
    printed: dict[str, str]
    source: str


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Classic vision, in the order of the file."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def _row(line: dict[str, str]) -> PublishedRow:
    encoder, seen, size_px, source = (
        line.pop(key) for key in ("encoder", "images_seen_billions", "resolution_px", "source")
    )
    detail = [f"{seen} B images seen" if seen else "", f"{size_px} px" if size_px else ""]
    return PublishedRow(encoder, ", ".join(filter(None, detail)), {k: v for k, v in line.items() if v}, source)
