"""One row of VQA scores, published or our own, with what its encoder was: what a scaling study compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from webssl_fast.vqa_categories import CATEGORIES, average, category_means

CATEGORY_TITLES = {
    "average": "VQA average",
    "general": "General",
    "knowledge": "Knowledge",
    "ocr_and_chart": "OCR & Chart",
    "vision_centric": "Vision-Centric",
}
BENCHMARK_TITLES = {
    "mme": "MME",
    "mmbench": "MMBench",
    "seed": "SEED",
    "gqa": "GQA",
    "scienceqa": "ScienceQA",
    "mmmu": "MMMU",
    "mathvista": "MathVista",
    "ai2d": "AI2D",
    "chartqa": "ChartQA",
    "ocrbench": "OCRBench",
    "textvqa": "TextVQA",
    "docvqa": "DocVQA",
    "mmvp": "MMVP",
    "realworldqa": "RealWorldQA",
    "cv_bench_2d": "CV-Bench 2D",
    "cv_bench_3d": "CV-Bench 3D",
}


@dataclass(frozen=True)
class VqaRow:
    """`scores` of benchmarks in percent, MME in points; `printed` as their source writes them. What is not known of an
    encoder is None or empty: `parameters` of the vision tower, images it saw, the `data` and their `filter`."""

    model: str
    method: str
    size: str
    parameters: int | None
    samples_seen: float | None
    resolution_px: int
    data: str
    filter: str
    scores: Mapping[str, float]
    source: str
    published: bool = False
    reported_average: float | None = None
    printed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def means(self) -> dict[str, float]:
        """The categories that are whole and, where all four are, the average, by the names of CATEGORY_TITLES."""
        means = category_means(self.scores)
        mean = average(self.scores)
        return means if mean is None else {"average": mean, **means}


assert set(CATEGORY_TITLES) == {"average", *CATEGORIES}
