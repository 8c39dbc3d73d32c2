"""The page: complete, self-contained, and safe against what stands in the files of a run."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.report.runs import CONFIG, training_metrics, write_run
from webssl_fast.report.features import FeaturePicture
from webssl_fast.report.page import write_report

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "circle"}
HOSTILE = "<script>alert(1)</script>&\"'{{ 7 * 7 }}.jpg"


class Page(HTMLParser):
    """Checks that elements nest, and collects text, links and scripts."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.links, self.num = [], [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.num[tag] = self.num.get(tag, 0) + 1
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\N{NO-BREAK SPACE}", " ")


def page_of(directory, **options):
    return Page(write_report(directory, **options).read_text(encoding="utf-8"))


def picture(name, untrained=True):
    image = np.full((16, 16, 3), 128, np.uint8)
    return FeaturePicture(name, image, image, image if untrained else None)


def test_a_finished_run_shows_its_final_values(tmp_path):
    bad = [{"sample_id": 3, "name": "x/broken.jpg", "reason": "truncated JPEG"}]
    write_run(tmp_path, training_metrics(), bad)
    (tmp_path / "checkpoints" / "step_00000040").mkdir(parents=True)
    page = page_of(tmp_path, pictures=[picture("cat.png")], num_parameters=5_526_000)
    for expected in (
        "vit_tiny_patch14, DINOv2",
        "Finished",
        "5.53 M",
        "7.125",
        "51.2 %",
        "from 31.2 % untrained",
        "68.1 %",
        "from 45.2 % untrained",
        "+22.9",
        "2 images could not be decoded",
        "0.62 % of those seen",
        "x/broken.jpg",
        "truncated JPEG",
        "Checkpoints kept of step 40",
        "No step was skipped",
        "cat.png",
        "clipped at 3",
        "max_bad_share: 0.05",
    ):
        assert expected in page.words, expected
    assert page.num["img"] == 3
    for heading in (
        "Evaluation",
        "What the patches see",
        "Loss",
        "Speed",
        "Schedules",
        "Gradient norms",
        "Data and health",
    ):
        assert heading in page.words


def test_is_self_contained(tmp_path):
    path = write_report(write_run(tmp_path, training_metrics()), pictures=[picture("cat.png")])
    html = path.read_text(encoding="utf-8")
    assert all(link.startswith("data:image/jpeg;base64,") for link in Page(html).links)
    assert not re.search(r"https?:|//\w+\.\w+|@import|url\(", re.sub(r"base64,[\w+/=]+", "", html))
    assert path == tmp_path / "report.html" and len(html) < 300_000


def test_the_output_path_is_free(tmp_path):
    write_run(tmp_path / "run", training_metrics())
    path = write_report(tmp_path / "run", tmp_path / "elsewhere" / "page.html")
    assert path == tmp_path / "elsewhere" / "page.html" and path.is_file()
    assert not (tmp_path / "run" / "report.html").exists()


def test_is_deterministic(tmp_path):
    write_run(tmp_path, training_metrics())
    first = write_report(tmp_path).read_text()
    assert write_report(tmp_path).read_text() == first


def test_markup_in_names_and_values_is_text(tmp_path):
    rows = training_metrics()
    for row in rows:
        row[f"{HOSTILE}"] = 1.0
        row[f"grad_norm/{HOSTILE}"] = 1.0
        row[f"eval/{HOSTILE}/{HOSTILE}"] = 1.0
    run = write_run(
        tmp_path / "a & b <i>",
        rows,
        [{"sample_id": HOSTILE, "name": HOSTILE, "reason": HOSTILE}],
        CONFIG.replace("vit_tiny_patch14", "'<script>alert(1)</script>'") + f"# {HOSTILE}\n",
    )
    page = page_of(run, pictures=[picture(HOSTILE)])
    assert page.num["script"] == 1, "the page's own and no other"
    assert page.words.count(HOSTILE) >= 6
    assert "a & b <i>" in page.words
    assert page.num.get("i", 0) == 0


def test_a_run_that_has_just_begun(tmp_path):
    words = page_of(write_run(tmp_path, training_metrics()[1:2])).words
    assert "Unfinished: step 10 of 40" in words and "10.12 at step 10" in words
    assert "Evaluation" not in words and "What the patches see" not in words


def test_a_first_evaluation_without_training(tmp_path):
    words = page_of(write_run(tmp_path, training_metrics()[:1])).words
    assert "Unfinished: step 0 of 40" in words
    assert "k-NN, class token 31.2 % untrained" in words
    assert "nothing was logged yet" in words


@pytest.mark.parametrize("metrics", [None, []])
def test_a_run_without_a_logged_step(tmp_path, metrics):
    words = page_of(write_run(tmp_path, metrics)).words
    assert "Nothing was logged yet." in words and "no logged step yet" in words


def test_a_run_of_an_empty_config(tmp_path):
    words = page_of(write_run(tmp_path / "mine", training_metrics(), config="")).words
    assert "Run mine" in words and "7.125" in words


def test_nan_values_are_told_and_not_drawn(tmp_path):
    rows = training_metrics()
    rows[3]["loss"] = math.nan
    rows[3]["grad_norm/backbone"] = math.inf
    for row in rows[3::2]:  # counted from the start of the run
        row["skipped_steps"] = 3
    (write_run(tmp_path, rows) / "nonfinite_batches.jsonl").write_text("{}\n")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    words = Page(html).words
    assert "1 not finite" in words
    assert "3 steps were skipped" in words and "nonfinite_batches.jsonl" in words
    assert not re.search(r"[\s\"M,L](nan|inf)[\s\",<]", html)


def test_metrics_that_are_all_nan(tmp_path):
    words = page_of(write_run(tmp_path, [{"step": 10, "loss": math.nan, "eval/knn/cls_top1": math.nan}])).words
    assert "no finite value was logged" in words


def test_metrics_of_an_unknown_method_are_drawn_under_other(tmp_path):
    rows = [{"step": s, "loss": 1.0 / s, "logit_scale": 10.0 + s} for s in (1, 2, 3)]
    words = page_of(write_run(tmp_path, rows)).words
    assert "Other measurements" in words and "logit_scale" in words


def test_unreadable_lines_are_said(tmp_path):
    write_run(tmp_path, training_metrics())
    path = tmp_path / "metrics.jsonl"
    path.write_text("not json\n" + path.read_text())
    assert "1 line is not readable in metrics.jsonl" in page_of(tmp_path).words


def test_a_long_list_of_bad_samples_is_cut_and_says_so(tmp_path):
    bad = [{"sample_id": i, "name": f"photo_{i:04d}.jpg", "reason": "empty"} for i in range(1000)]
    page = page_of(write_run(tmp_path, training_metrics(), bad))
    assert "photo_0049.jpg" in page.words and "photo_0050.jpg" not in page.words
    assert "The first 50 of 1000" in page.words and "1000 × empty" in page.words


def test_a_long_run_stays_a_small_page(tmp_path):
    rows = training_metrics(num_steps=200_000, every=20)
    path = write_report(write_run(tmp_path, rows))
    assert path.stat().st_size < 1_000_000
    assert "band: lowest to highest" in Page(path.read_text(encoding="utf-8")).words
