"""Charts: well-formed SVG whose marks stand where the data say."""

import json
import math
import re
from xml.etree import ElementTree

import pytest

from webssl_fast.report.curves import Chart, Line, condense, describe, hover_data, svg


def drawn(chart, width=400, height=200):
    return ElementTree.fromstring(str(svg(chart, width, height)))


def frame_of(root):
    names = ("left", "right", "top", "bottom", "last_step", "low", "high", "is_log")
    return dict(zip(names, map(float, root.attrib["data-frame"].split()), strict=True))


def curve_points(root):
    path = next(p for p in root.iter("path") if p.get("class") == "curve")
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.get("d"))[1:]]


def test_points_stand_where_the_data_say():
    steps, values = [0, 10, 40], [1.0, 3.0, 2.0]
    root = drawn(Chart("loss", [Line("loss", steps, values)], last_step=50))
    frame = frame_of(root)
    assert frame["last_step"] == 50 and frame["low"] <= 1 and frame["high"] >= 3
    for (x, y), step, value in zip(curve_points(root), steps, values, strict=True):
        assert x == pytest.approx(frame["left"] + (frame["right"] - frame["left"]) * step / 50, abs=0.1)
        share = (value - frame["low"]) / (frame["high"] - frame["low"])
        assert y == pytest.approx(frame["bottom"] + (frame["top"] - frame["bottom"]) * share, abs=0.1)


def test_a_logarithmic_axis_for_decades():
    line = Line("norm", [1, 2, 3], [100.0, 1.0, 0.1])
    assert frame_of(drawn(Chart("norm", [line], may_be_log=True)))["is_log"] == 1
    assert frame_of(drawn(Chart("norm", [line])))["is_log"] == 0
    root = drawn(Chart("norm", [line], may_be_log=True))
    ys = [y for _, y in curve_points(root)]
    assert (ys[1] - ys[0]) == pytest.approx(2 * (ys[2] - ys[1]), abs=0.3)


def test_text_and_marks_stay_inside_the_box():
    lines = [
        Line(f"a rather long name {i}", [0, 5], [0.1 * i, 0.5], level=0.1 * i, level_name="first") for i in range(4)
    ]
    root = drawn(Chart("accuracy", lines, percent=True, last_step=5), 400, 240)
    ys = [float(t.get("y")) for t in root.iter("text") if "end" in (t.get("class") or "")]
    assert len(ys) == 8 and all(0 < y <= 240 for y in ys)
    ys.sort()
    assert all(b - a >= 10 for a, b in zip(ys, ys[1:], strict=False)), "labels must not lie on each other"
    frame = frame_of(root)
    assert 0 < frame["left"] < frame["right"] < 400


def test_labels_name_curves_and_levels_in_their_unit():
    line = Line("cls", [0, 5], [0.3125, 0.512], level=0.3125, level_name="untrained")
    texts = [t.text for t in drawn(Chart("k-NN", [line, Line("mean", [0, 5], [0.1, 0.2])], percent=True)).iter("text")]
    assert "cls 51.2\N{NO-BREAK SPACE}%" in texts and "untrained 31.2\N{NO-BREAK SPACE}%" in texts


def test_a_level_far_away_is_left_out():
    far = Line("norm", [1, 2], [0.5, 0.6], level=300.0, level_name="clip at")
    near = Line("norm", [1, 2], [0.5, 0.6], level=0.7, level_name="clip at")
    levels = [[p for p in drawn(Chart("n", [line])).iter("path") if p.get("class") == "level"] for line in (far, near)]
    assert [len(found) for found in levels] == [0, 1]


def test_nonfinite_values_are_gaps_and_marks():
    line = Line("loss", [1, 2, 3, 4, 5], [5.0, 4.0, math.nan, 3.0, 2.0])
    root = drawn(Chart("loss", [line]))
    classes = [p.get("class") for p in root.iter("path")]
    assert classes.count("curve") == 2 and classes.count("broken") == 1
    assert "nan" not in svg(Chart("loss", [line]), 400, 200)
    assert describe(Chart("loss", [line])) == "5 \N{RIGHTWARDS ARROW} 2, 1 not finite (\N{MULTIPLICATION SIGN})"


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_to_draw_is_said(values):
    root = drawn(Chart("loss", [Line("loss", list(range(len(values))), values)]))
    message = "no finite value was logged" if values else "nothing was logged yet"
    assert [t.text for t in root.iter("text")] == [message]


@pytest.mark.parametrize("value", [0.0, 7.5, -3.0, 1e-6])
def test_a_single_point_is_a_dot_inside_the_axis(value):
    root = drawn(Chart("loss", [Line("loss", [20], [value])], last_step=20))
    frame = frame_of(root)
    assert frame["low"] < value < frame["high"] or value in (frame["low"], frame["high"])
    assert len(list(root.iter("circle"))) == 1


def test_long_series_are_condensed_to_mean_and_range():
    steps = list(range(0, 100_000, 20))
    values = [math.sin(s / 7) + s / 1e5 for s in steps]
    curve = condense(steps, values, num_buckets=100)
    assert curve.is_condensed and len(curve.means) == 100
    assert all(low <= mean <= high for low, mean, high in zip(curve.lows, curve.means, curve.highs, strict=True))
    assert min(curve.lows) == min(values) and max(curve.highs) == max(values)
    assert sum(curve.means) / 100 == pytest.approx(sum(values) / len(values), abs=0.01)
    short = condense(steps[:100], values[:100], num_buckets=100)
    assert not short.is_condensed and short.means == values[:100]


def test_a_condensed_bucket_ignores_what_is_not_finite():
    values = [1.0] * 1000
    values[500] = math.nan
    curve = condense(range(1000), values, num_buckets=10)
    assert curve.means == [1.0] * 10 and curve.broken_steps == [500]


def test_names_are_escaped():
    name = '<script>alert("&")</script>'
    text = str(svg(Chart("x", [Line(name, [0, 1], [1.0, 2.0]), Line("b", [0, 1], [1.5, 2.0])]), 400, 200))
    assert "<script>" not in text
    ElementTree.fromstring(text)


def test_hover_data_is_json_without_nan():
    data = json.loads(hover_data(Chart("k", [Line("a", [1, 2], [0.5, math.nan]), Line("b", [], [])], percent=True)))
    assert data == {"percent": True, "lines": [["a", [1, 2], [0.5, None]], ["b", [], []]]}
