"""What the published rows say in numbers, and how our rows join them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.report.studies import SIZES, point, write_study, write_vqa
from webssl_fast.report.scaling import findings, make_scaling, slope_words
from webssl_fast.report.scaling_chart import log_x_ticks, scaling_svg
from webssl_fast.report.study_files import StudyManifest
from webssl_fast.report.study_rows import own_vqa_rows

PUBLISHED = make_scaling([])
AVERAGES = {  # as the paper prints them (arXiv 2504.01017v1, Tables 6, 11, 12, 8)
    "Web-DINO": (49.01, 50.77, 51.71, 52.83, 53.87),
    "Web-MAE": (49.19, 50.59, 50.92, 51.50),
    "CLIP": (52.30, 53.03, 53.22, 52.52, 52.97),
}
BILLIONS = (1.134771200, 2.084237568, 2.948317184, 4.938338816, 6.450170880)


@pytest.mark.parametrize("method", AVERAGES)
def test_slopes_by_size_are_those_of_the_printed_averages(method):
    series = PUBLISHED.by_parameters.of(method)
    y = AVERAGES[method]
    expected = np.polyfit(np.log2(BILLIONS[: len(y)]), y, 1)[0]
    assert series.fits["average"].slope_per_doubling == pytest.approx(expected, abs=0.01)
    assert series.fits["average"].num_points == len(y)


def test_slope_by_samples_seen():
    fit = PUBLISHED.by_samples_seen.of("Web-DINO").fits["average"]
    expected = np.polyfit([0, 1, 2, 3], (51.02, 53.87, 54.37, 55.24), 1)[0]
    assert fit.slope_per_doubling == pytest.approx(expected, abs=0.01) and fit.num_points == 4
    assert PUBLISHED.by_samples_seen.of("CLIP").fits == {}


def test_findings_state_the_paper_in_numbers():
    text = "\n".join(findings(PUBLISHED))
    assert "Web-DINO +1.88 (95% +1.64 to +2.11, R² 0.995, n = 5)" in text
    assert "Web-DINO passes CLIP first at 5B of the sizes that were trained (52.83 against 52.52)" in text
    assert "36 come out of their benchmarks to 0.01. Not so: I-JEPA-H-224, 44.78 reported, 44.30 recomputed" in text
    # Table 13 against Table 6: the filters' gains on OCR & Chart.
    assert "Web-DINO 2B on images of the heavy filter instead of all: VQA average +2.88, OCR & Chart +13.65" in text


def test_filters_and_clip_differences():
    assert [(d.row.model, d.base.model) for d in PUBLISHED.filters][-1] == ("Web-DINO-2B-heavy", "Web-DINO-2B")
    seven = next(d for d in PUBLISHED.against_clip if d.row.size == "7B")
    assert seven.of("average") == pytest.approx(53.87 - 52.97, abs=0.02)
    assert len(PUBLISHED.against_clip) == 9


def own(tmp_path, *points, percents):
    write_study(tmp_path, *points)
    for each, percent in zip(points, percents, strict=True):
        write_vqa(tmp_path, each, percent)
    notes = []
    rows = own_vqa_rows(tmp_path, StudyManifest(name="s", points=points, files=()), notes)
    assert not notes
    return make_scaling(rows)


def test_own_rows_have_curves_of_their_own(tmp_path):
    scaling = own(tmp_path, *map(point, SIZES), percents=(40, 43, 46))
    series = next(s for s in scaling.by_parameters.series if not s.published)
    assert series.name == "Web-DINO, ours" and series.fits["average"].slope_per_doubling == pytest.approx(3)
    drawn = scaling_svg(scaling.by_parameters, "average", 500, 300)
    assert drawn.count('class="solid"') == 3 and drawn.count('class="hollow"') == 14
    assert not any(s for s in scaling.by_samples_seen.series if not s.published), "one length is no curve"


def test_two_own_points_have_a_line_and_no_band(tmp_path):
    scaling = own(tmp_path, point("1b"), point("2b"), percents=(40, 43))
    series = next(s for s in scaling.by_parameters.series if not s.published)
    assert slope_words(series.fits["average"]) == "+3.00 (n = 2)"
    bands = scaling_svg(scaling.by_parameters, "average", 500, 300).count('class="band"')
    assert bands == 3


def test_own_subsets_stand_beside_their_whole(tmp_path):
    scaling = own(tmp_path, point("1b"), point("1b", subset="light"), percents=(40, 42.5))
    difference = scaling.filters[0]
    assert difference.row.filter == "light" and difference.of("general") == pytest.approx(2.5)


def test_a_mean_that_does_not_come_out_is_told(tmp_path):
    one, two = point("1b"), point("2b")
    write_study(tmp_path, one, two)
    write_vqa(tmp_path, one, 40, average=41.0)
    write_vqa(tmp_path, two, 40).write_text('{"scores": {"chartqa"')
    notes = []
    (row,) = own_vqa_rows(tmp_path, StudyManifest(name="s", points=(one, two), files=()), notes)
    assert row.means["average"] == pytest.approx(40)
    assert "says average 41.00, and its benchmarks give 40.00" in notes[0] and "is left out" in notes[1]


def test_ticks():
    assert log_x_ticks(0.99e9, 7.4e9) == [1e9, 2e9, 3e9, 4e9, 6e9]
    assert log_x_ticks(1e3, 1e9) == [10.0**e for e in range(3, 10)]


def test_own_curves_hold_fixed_what_most_rows_share(tmp_path):
    points = point("1b"), point("4b"), point("4b", billions=1), point("4b", billions=4)
    scaling = own(tmp_path, *points, percents=(40, 44, 42, 46))
    by_size = next(s for s in scaling.by_parameters.series if not s.published)
    assert by_size.x == (1e9, 4e9) and "2" in by_size.fixed
    by_length = next(s for s in scaling.by_samples_seen.series if not s.published)
    assert by_length.x == (1e9, 2e9, 4e9) and by_length.fixed == "4B"
    assert by_length.fits["average"].slope_per_doubling == pytest.approx(2)
