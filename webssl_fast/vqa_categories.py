"""The 16 VQA benchmarks of Web-SSL (arXiv 2504.01017, section 2.3) in their four categories, and the average.

A category is the plain mean of its four benchmarks, all on a scale of 0 to 100, MME's points divided by 20; the average
is the mean of the four categories. The paper does not state the divisor; with 20 its own averages come out.
"""

from __future__ import annotations

from collections.abc import Mapping

CATEGORIES = {
    "general": ("mme", "mmbench", "seed", "gqa"),
    "knowledge": ("scienceqa", "mmmu", "mathvista", "ai2d"),
    "ocr_and_chart": ("chartqa", "ocrbench", "textvqa", "docvqa"),
    "vision_centric": ("mmvp", "realworldqa", "cv_bench_2d", "cv_bench_3d"),
}
BENCHMARKS = tuple(name for names in CATEGORIES.values() for name in names)
MME_DIVISOR = 20


def category_means(scores: Mapping[str, float]) -> dict[str, float]:
    """The mean of each category whose four benchmarks are all there.

    scores  in percent by benchmark; `mme` in points, as it is published
    """
    unknown = sorted(set(scores) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"unknown benchmarks {unknown}; there are {', '.join(BENCHMARKS)}")
    percent = {name: score / MME_DIVISOR if name == "mme" else score for name, score in scores.items()}
    return {
        category: sum(percent[name] for name in names) / len(names)
        for category, names in CATEGORIES.items()
        if all(name in percent for name in names)
    }


def average(scores: Mapping[str, float]) -> float | None:
    """The mean of the four categories; None where a benchmark is missing."""
    means = category_means(scores)
    return sum(means.values()) / len(means) if len(means) == len(CATEGORIES) else None
