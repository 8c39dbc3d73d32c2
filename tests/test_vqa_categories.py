from __future__ import annotations

import pytest

from webssl_fast.vqa_categories import BENCHMARKS, average, category_means

# Web-DINO 7B, 8 billion samples, 224 pixels, as printed (Web-SSL, arXiv 2504.01017v1).
PRINTED = (1811.05, 71.30, 72.14, 64.04, 72.43, 35.66, 15.20, 68.52)
PRINTED += (35.52, 36.40, 56.53, 29.00, 46.00, 57.90, 70.53, 62.08)
SCORES = dict(zip(BENCHMARKS, PRINTED, strict=True))


def test_a_printed_row_gives_its_printed_average():
    assert average(SCORES) == pytest.approx(55.24, abs=0.01)
    means = {"general": 74.51, "knowledge": 47.95, "ocr_and_chart": 39.36, "vision_centric": 59.13}
    assert category_means(SCORES) == pytest.approx(means, abs=0.01)


def test_a_category_with_a_missing_benchmark_has_no_mean():
    scores = {name: score for name, score in SCORES.items() if name != "docvqa"}
    assert set(category_means(scores)) == {"general", "knowledge", "vision_centric"}
    assert average(scores) is None


def test_rejects_unknown_benchmarks():
    with pytest.raises(ValueError, match=r"pope.*there are mme"):
        category_means({"pope": 1.0})
