"""Reading result files, and saying which cannot be read."""

import json

import pytest

from tests.report.evaluations import SCORES, content_of, write_result
from webssl_fast.report.result_files import Result, read_results


def test_every_evaluation_is_read(tmp_path):
    for evaluation in SCORES:
        write_result(tmp_path / "run", evaluation)
    notes: list[str] = []
    results = read_results(tmp_path / "run", notes)
    assert notes == [] and [result.evaluation for result in results] == sorted(SCORES)
    assert {result.evaluation: result.scores for result in results} == SCORES
    assert results[0].file == "run/eval/alignment.json" and results[0].encoder.short_hash == "0f3a0f3a"
    assert read_results(tmp_path, notes) == [] == notes


def broken(**changes):
    return json.dumps(content_of("depth") | changes)


def without(*keys):
    return json.dumps({k: v for k, v in content_of("depth").items() if k not in keys})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (broken()[:40], "it is not JSON, or was cut short"),
        ("", "it is not JSON, or was cut short"),
        ("[1, 2]", "the whole: input should be"),
        ("\udcff", "utf-8"),
        (without("scores", "date"), "it lacks scores, date"),
        (broken(encoder={"name": "vit"}), "it lacks encoder.source, encoder.sha256"),
        (broken(scores={"rmse": "low"}), "scores.rmse: input should be a valid number"),
        (broken(scores={"abs_rel": 0.1}), "it lacks a score rmse"),
        (broken(scores={}), "it lacks a score rmse"),
    ],
)
def test_a_bad_file_is_named_and_left_out(tmp_path, text, reason):
    write_result(tmp_path / "run", "knn")
    (tmp_path / "run" / "eval" / "depth.json").write_bytes(text.encode(errors="surrogateescape"))
    notes: list[str] = []
    assert [result.evaluation for result in read_results(tmp_path / "run", notes)] == ["knn"]
    assert len(notes) == 1
    assert notes[0].startswith("run/eval/depth.json is left out: ") and reason in notes[0]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"source": "/data/ADEChallengeData2016/"}, "data/ADEChallengeData2016"),
        ({"train_source": "a/train", "val_source": "a/val", "test_source": ""}, "a/val"),
        ({"train_source": "a/train", "val_source": "a/val", "test_source": "a/test"}, "a/test"),
        ({"source": "shards/{00..07}.tar"}, "shards/{00..07}.tar"),
        ({"source": 3}, ""),
        ({}, ""),
    ],
)
def test_data_is_named_by_what_decides_the_score(config, name):
    assert Result.model_validate(content_of("knn", config=config)).data_name == name


def test_sizes_are_told_and_a_subset_is_one_where_the_file_says_so():
    def result(data):
        return Result.model_validate(content_of("depth", data=data))

    part = result({"train_images": 24231, "test_images": 4, "complete": False})
    assert part.data_sizes == "24,231 train images, 4 test images" and part.is_subset
    assert not result({"complete": True}).is_subset and not result({}).is_subset
