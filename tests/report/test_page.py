"""The page: complete, self-contained, and safe against what stands in the files of a run."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.report.evaluations import write_pictures, write_result
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
    path = write_report(tmp_path / "run", output=tmp_path / "elsewhere" / "page.html")
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


def test_what_reading_met_is_told_and_drawn_over_the_run(tmp_path):
    quiet = page_of(write_run(tmp_path / "quiet", [row | {"bad_samples": 0} for row in training_metrics()]))
    rows = [
        row | {"read_retries": count}
        for row, count in zip(training_metrics(), (0, 5, 7, 1, 2, 2, 3, 3, 4), strict=True)
    ]
    page = page_of(write_run(tmp_path / "run", rows))
    assert "Remote reads tried again: 11 , over all starts of the run" in page.words
    for title in ("Images replaced", "Remote reads tried again"):
        assert title in page.words and title not in quiet.words
    assert page.num["figure"] == quiet.num["figure"] + 2 and "Samples that could not be read" not in page.words


def test_a_long_run_stays_a_small_page(tmp_path):
    rows = training_metrics(num_steps=200_000, every=20)
    path = write_report(write_run(tmp_path, rows))
    assert path.stat().st_size < 1_000_000
    assert "band: lowest to highest" in Page(path.read_text(encoding="utf-8")).words


# ---------------------------------------------------------------- what `webssl eval` left


def judged_run(directory):
    write_run(directory, training_metrics())
    for evaluation in ("knn", "linear_probe", "ade20k_linear", "nyud_lin1", "alignment"):
        write_result(directory, evaluation)
    write_pictures(directory)
    return directory


def test_tables_and_pictures_of_a_judged_run(tmp_path):
    page = page_of(judged_run(tmp_path / "run"))
    for expected in (
        "vit_tiny_patch14, DINOv2",
        "51.2 %",
        "Classic vision",
        "vit_small 0f3a0f3a · 2026-11-24",
        "84.32 imagenet/val",
        "45.68 data/ADEChallengeData2016",
        "0.365 data/nyu",
        "Web-DINO ViT-7B 8 B images seen, 224 px 86.52 42.14 52.55 0.491 0.376 published",
        "Alignment with language models",
        "SmolLM2-135M 0.123 †",
        "0.16 to 0.18",
        "The paper prints no values",
        "Predicted segmentation",
        "Predicted depth",
        "Every score of ours",
        "run/eval/knn.json",
    ):
        assert expected in page.words, expected
    assert page.num["img"] == 2 * 2 * 3
    assert "ADE20K linear:" not in page.words, "nothing departs from the protocol"
    assert all(re.match("data:image/(jpeg|png);base64,", link) for link in page.links)
    assert (tmp_path / "run" / "report_tables.csv").read_text().startswith("table,origin,encoder,")


def test_a_subset_is_not_comparable_and_says_so(tmp_path):
    data = {"train_images": 40, "test_images": 8, "complete": False}
    words = page_of(write_result(tmp_path, "nyud_lin1", data=data)).words
    assert "0.365 † data/nyu" in words
    assert (
        "Not comparable with the published rows. vit_small, NYUd v2 lin. 1: a subset of the data; 40 train images"
        in words
    )


def test_a_directory_of_evaluations_alone(tmp_path):
    words = page_of(write_result(tmp_path, "nyud_lin4")).words
    assert words.startswith(" vit_small: report vit_small ") and "Evaluated, the last time on 2026-11-24." in words
    assert "no logged step yet" not in words and "Configuration" not in words and "Loss" not in words


def test_several_directories_share_tables_and_the_first_that_has_them_gives_the_curves(tmp_path):
    first = write_result(tmp_path / "first", "ade20k_multiscale")
    second = judged_run(tmp_path / "second")
    third = write_result(tmp_path / "third", "nyud_lin1", encoder="rival", sha256="ab" * 32)
    write_pictures(third, 1)
    path = write_report(first, second, third)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == first / "report.html" and (first / "report_tables.csv").is_file()
    assert "vit_tiny_patch14, DINOv2" in page.words and "7.125" in page.words
    assert page.num["b"] - Page(write_report(second).read_text()).num["b"] == 2, "+ms, and the rival's lin. 1"
    assert "rival abababab" in page.words and "third/eval/depth.json" in page.words
    assert page.num["img"] == 2 * 2 * 3, "of the second, not of the third"


def test_bad_evaluation_files_are_warnings(tmp_path):
    run = judged_run(tmp_path / "run")
    (run / "eval" / "depth.json").write_text('{"evaluation": "depth"')
    (run / "eval" / "knn.json").write_text("{}")
    (run / "eval" / "depth_1_truth.png").write_bytes(b"")
    page = page_of(run)
    assert "run/eval/depth.json is left out: it is not JSON, or was cut short" in page.words
    assert "run/eval/knn.json is left out: it lacks evaluation, encoder, scores" in page.words
    assert "depth_1_truth.png cannot be read" in page.words
    assert "84.32" in page.words and page.num["img"] == 9


def test_markup_in_result_files_is_text(tmp_path):
    data = {HOSTILE: 3, "complete": False}
    for evaluation, scores in (("alignment", {f"{HOSTILE}/alignment": 0.5}), ("depth", {"rmse": 1.0, HOSTILE: 1.0})):
        hostile = {"encoder": HOSTILE, "sha256": HOSTILE, "date": HOSTILE, "scores": scores, "data": data}
        write_result(tmp_path, evaluation, config={"num_blocks": 1, "lr": HOSTILE, "source": HOSTILE}, **hostile)
    page = page_of(tmp_path)
    assert page.num["script"] == 1 and page.words.count(HOSTILE) >= 12
