"""The page of a study: with published rows alone, and with rows of ours."""

from __future__ import annotations

import csv
import json
import re

from tests.report.evaluations import content_of
from tests.report.studies import SIZES, point, write_study, write_vqa
from webssl_fast.cli import main


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_published_rows_alone(tmp_path, capsys):
    study = write_study(tmp_path / "study", point("1b"))
    assert main(["report", str(study)]) == 0
    assert f"wrote {study / 'report.html'}" in capsys.readouterr().out
    page = (study / "report.html").read_text()
    assert not re.search(r"(src|href)=.?http|<script", page), "it needs no other file"
    for heading in (
        "Language-free against CLIP",
        "Filtered images",
        "Classic vision",
        "Alignment with language models",
    ):
        assert heading in page
    assert "1 point: 1 not started" in page and page.count("<svg") == 2 * (5 + 5 + 1) and 'class="solid"' not in page
    assert len(lines_of(study / "report_vqa.csv")) == 37
    fits = {(f["x"], f["method"], f["measure"]): f for f in lines_of(study / "report_fits.csv")}
    assert len(fits) == 20 and fits["parameters", "CLIP", "average"]["num_points"] == "5"
    assert [f["model"] for f in lines_of(study / "report_filters.csv")][0] == "Web-DINO-1B-light"
    assert all(line["origin"] == "published" for line in lines_of(study / "report_tables.csv"))


def test_own_rows_beside_them(tmp_path):
    points = [point(size) for size in SIZES]
    study = write_study(tmp_path / "study", *points)
    for i, each in enumerate(points):
        write_vqa(study, each, 40 + 3 * i)
    results = study / points[0].run_dir / "eval"
    results.mkdir()
    content = content_of("linear_probe", encoder="own_1b")
    (results / "linear_probe.json").write_text(json.dumps(content))
    assert main(["report", str(study), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "3 VQA rows of ours beside 37 published ones" in page and "Web-DINO, ours 46.0" in page
    assert "own_1b" in page and "left out" not in page
    own = [line for line in lines_of(tmp_path / "page_vqa.csv") if line["origin"] == "ours"]
    assert [line["average"] for line in own] == ["40.0", "43.0", "46.0"]


def test_a_study_is_reported_alone(tmp_path, capsys):
    study = write_study(tmp_path / "study", point("1b"))
    assert main(["report", str(study), str(tmp_path)]) == 1
    assert "is a study, which is reported alone" in capsys.readouterr().err
