"""The published VQA rows: complete, as printed, and their averages by the category code."""

from __future__ import annotations

import csv
import io

import pytest

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.recipes.setup import describe_method, num_parameters
from webssl_fast.report.published_vqa import published_csv, published_vqa_rows, unexplained_rows
from webssl_fast.report.vqa_rows import BENCHMARK_TITLES, CATEGORY_TITLES
from webssl_fast.vqa_categories import BENCHMARKS, CATEGORIES

BY_MODEL = {row.model: row for row in published_vqa_rows()}
PREFIXES = {"Web-DINO": "webdino", "Web-MAE": "webmae", "CLIP": "clip"}


def test_the_paper_s_arithmetic_explains_36_of_37_averages():
    differences = {row.model: abs(row.means["average"] - row.reported_average) for row in published_vqa_rows()}
    assert len(differences) == 37
    # The paper cuts off after two decimals, so that a mean may be up to 0.01 above what is printed.
    assert sum(difference <= 0.01 for difference in differences.values()) == 36
    (row,) = unexplained_rows()
    assert row.model == "I-JEPA-H-224" and row.reported_average == 44.78
    assert row.means["average"] == pytest.approx(44.30, abs=0.005)


@pytest.mark.parametrize(
    ("model", "means"),
    [
        ("Web-DINO-1B", (49.01, 71.07, 46.12, 23.25, 55.60)),
        ("CLIP-7B-MC2B", (52.97, 73.03, 48.10, 35.32, 55.42)),
        ("Web-MAE-3B", (50.92, 70.38, 46.41, 31.11, 55.76)),
        ("Web-DINO-7B-8B-518", (59.91, 75.46, 48.24, 55.12, 60.84)),
    ],
)
def test_category_means(model, means):
    assert list(BY_MODEL[model].means) == list(CATEGORY_TITLES)
    assert list(BY_MODEL[model].means.values()) == pytest.approx(means, abs=0.01)


def test_figures_keep_their_digits():
    row = BY_MODEL["Web-DINO-7B-8Bseen"]
    assert (row.printed["mme"], row.printed["mmbench"], row.printed["docvqa"]) == ("1811.05", "71.30", "29.00")
    assert list(row.printed) == list(BENCHMARKS) == list(BENCHMARK_TITLES)


def test_what_an_encoder_was_is_data():
    row = BY_MODEL["Web-DINO-2B-heavy"]
    assert (row.method, row.size, row.samples_seen, row.filter, row.source) == (
        "Web-DINO",
        "2B",
        2e9,
        "heavy",
        "Table 13",
    )
    assert BY_MODEL["Web-DINO-7B-8B-378"].resolution_px == 378
    assert BY_MODEL["SigLIP-SO400M-384"].parameters is None
    controlled = [
        r for r in published_vqa_rows() if r.data == "MC-2B" and r.filter == "full" and r.resolution_px == 224
    ]
    assert {m: sum(r.method == m for r in controlled) for m in PREFIXES} == {"Web-DINO": 8, "Web-MAE": 4, "CLIP": 5}


def test_parameters_are_those_of_the_configs():
    for row in published_vqa_rows():
        if row.filter == "full" and row.samples_seen == 2e9:
            config = load_config(f"configs/pretrain/{PREFIXES[row.method]}_{row.size.lower()}_mc2b.yaml")
            method = describe_method(resolve(config, world_size=1, device="cuda"))
            assert num_parameters(method.encoder()) == row.parameters


def test_csv_lists_both_averages():
    lines = list(csv.DictReader(io.StringIO(published_csv())))
    assert len(lines) == 37
    odd = next(line for line in lines if line["model"] == "I-JEPA-H-224")
    assert (odd["average_reported"], odd["average_recomputed"], odd["table"]) == ("44.78", "44.3042", "Table 14")
    assert set(CATEGORIES) < set(odd)
