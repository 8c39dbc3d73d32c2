"""Rows of the tables and of their CSV."""

import csv
import io
import math

import pytest

from tests.report.evaluations import SCORES, SIZES, content_of
from webssl_fast.report.result_files import Result
from webssl_fast.report.tables import make_tables, tables_csv


def results(*contents):
    return [Result.model_validate(content) for content in contents]


def texts(row):
    return {name: cell.text for name, cell in row.cells.items()}


def test_one_encoder_has_one_row_wherever_its_results_lie():
    configs = ("ade20k_linear", "ade20k_multiscale", "nyud_lin1", "nyud_lin4", "linear_probe")
    dates = ("2026-11-20", "2026-11-24", "2026-11-22", "2026-11-21", "2026-11-23")
    made = make_tables(results(*(content_of(c, date=d) for c, d in zip(configs, dates, strict=True))))
    assert len(made.classic) == 1 and made.classic[0].result.date == "2026-11-24"
    assert texts(made.classic[0]) == {
        "ade20k_linear": "45.68",
        "ade20k_multiscale": "45.68",
        "nyud_lin1": "0.365",
        "nyud_lin4": "0.365",
        "imagenet1k_linear_probe": "84.32",
    }
    assert made.classic_remarks() == []


def test_other_weights_and_second_results_have_rows_of_their_own():
    made = make_tables(
        results(
            content_of("nyud_lin1"),
            content_of("nyud_lin1", sha256="ab" * 32),
            content_of("nyud_lin1", scores={"rmse": 0.4}),
            content_of("nyud_lin4"),
        )
    )
    assert [texts(row) for row in made.classic] == [
        {"nyud_lin1": "0.365", "nyud_lin4": "0.365"},
        {"nyud_lin1": "0.365"},
        {"nyud_lin1": "0.400"},
    ]


def test_encoders_without_a_hash_are_told_apart_by_name():
    made = make_tables(results(*(content_of("nyud_lin1", encoder=name, sha256="") for name in "ab")))
    assert [row.result.encoder.name for row in made.classic] == ["a", "b"]
    contents = [
        content_of(config, encoder=name, sha256="") for name, config in (("a", "nyud_lin1"), ("b", "nyud_lin4"))
    ]
    assert len(make_tables(results(*contents)).classic) == 2


def test_alignment_has_a_row_a_language_model():
    made = make_tables(results(content_of("alignment")))
    small, llama = made.alignment
    assert (small.language_model, small.score, small.vision_layer, small.language_layer) == (
        "SmolLM2-135M",
        0.1234,
        11,
        20,
    )
    assert llama.departures == [] and small.departures == ["another language model than Llama 3.1"]
    scores = {"Llama-3.1-8B/alignment": 0.5, "Llama-3.1-8B/chance": 10 / 99}
    (row,) = make_tables(results(content_of("alignment", scores=scores))).alignment
    assert row.vision_layer is None
    assert row.departures == ["other numbers of neighbours or pairs (chance is 0.101 instead of 0.00978)"]


def test_every_score_leaves_out_the_heads_that_were_not_chosen():
    made = make_tables(results(content_of("linear_probe"), content_of("knn", untrained_scores={"cls_top1": 0.3})))
    knn, probe = made.scores
    assert knn.title == "k-NN" and made.has_untrained
    assert knn.rows[:2] == [
        ("cls top1", "71.2\N{NO-BREAK SPACE}%", "30.0\N{NO-BREAK SPACE}%"),
        ("cls top5", "90.0\N{NO-BREAK SPACE}%", ""),
    ]
    assert [name for name, _, _ in probe.rows] == ["val top1", "val top5", "learning rate", "num blocks", "chance"]
    assert probe.rows[2][1] == "0.01"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_said(value):
    everything = [content_of(e, scores={k: value for k in SCORES[e]}) for e in SCORES]
    everything += [content_of(c, scores={"rmse": value}) for c in ("nyud_lin1", "nyud_lin4")]
    made = make_tables(results(*everything))
    assert {text for row in made.classic for text in texts(row).values()} == {"not finite"}
    assert tables_csv(made)


def test_csv_holds_both_tables_in_the_units_of_their_columns():
    subset = content_of("ade20k_linear", data=SIZES["segmentation"] | {"complete": False})
    subset["config"]["source"] = "a,b/photos"
    text = tables_csv(make_tables(results(subset, content_of("nyud_lin4"), content_of("alignment"))))
    lines = list(csv.DictReader(io.StringIO(text)))
    ours = [line for line in lines if line["origin"] == "ours"]
    assert [(line["table"], line["measure"], line["value"], line["comparable"]) for line in ours] == [
        ("classic_vision", "ade20k_linear", "45.678", "False"),
        ("classic_vision", "nyud_lin4", "0.36549", "True"),
        ("alignment", "SmolLM2-135M/alignment", "0.1234", "False"),
        ("alignment", "Llama-3.1-8B/alignment", "0.1725", "True"),
    ]
    assert ours[0]["data"] == "a,b/photos" and ours[0]["remarks"] == "a subset of the data"
    published = [line for line in lines if line["origin"] == "published"]
    assert len(published) == 11 * 5 + 2 and all("arXiv 2504.01017" in line["source"] for line in published)
    assert ("86.52", "% top-1") in {(line["value"], line["unit"]) for line in published}


def test_published_rows_come_with_rows_of_ours_only():
    assert tables_csv(make_tables(results(content_of("knn")))).count("\n") == 1
