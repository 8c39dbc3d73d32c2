"""Reading what a run leaves, also where it was cut short."""

import math

import pytest

from tests.report.runs import training_metrics, write_run
from webssl_fast.errors import UserError
from webssl_fast.report.run_files import BadSample, read_run


def test_series_are_read_in_order_of_steps(tmp_path):
    run = read_run(write_run(tmp_path, training_metrics()))
    assert run.get("loss").steps == [10, 20, 30, 40]
    assert run.last("loss") == 7.125
    assert run.get("eval/knn/cls_top1").steps == [0, 10, 20, 30, 40]
    assert run.last_step == 40
    assert run.setting("train.num_steps") == 40
    assert run.setting("train.absent", 3) == 3
    assert run.setting("model.preset.deeper") is None
    assert not run.get("never_logged") and run.last("never_logged") is None
    assert run.notes == []


def test_a_truncated_last_line_is_left_out_in_silence(tmp_path):
    write_run(tmp_path, training_metrics())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "loss": 6.')
    run = read_run(tmp_path)
    assert run.last_step == 40 and run.notes == []


def test_other_unreadable_lines_are_counted(tmp_path):
    write_run(tmp_path, training_metrics())
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "lo\n\n[1, 2]\n' + path.read_text())
    run = read_run(tmp_path)
    assert run.last("loss") == 7.125
    assert run.notes == ["2 lines are not readable in metrics.jsonl, and left out here."]


def test_the_later_of_two_lines_of_a_step_holds(tmp_path):
    run = read_run(
        write_run(tmp_path, [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}, {"step": 10, "loss": 6.0}])
    )
    assert (run.get("loss").steps, run.get("loss").values) == ([10, 20], [6.0, 4.0])


def test_nonfinite_values_are_kept_and_never_the_last(tmp_path):
    rows = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": None},
        {"step": 4, "loss": -math.inf},
    ]
    run = read_run(write_run(tmp_path, rows))
    assert [math.isfinite(v) for v in run.get("loss").values] == [True, False, False, False]
    assert run.last("loss") == 5.0


def test_a_counter_that_starts_anew_goes_on(tmp_path):
    counts = [0, 3, 5, 1, 1, math.nan, 4, 2]
    run = read_run(write_run(tmp_path, [{"step": i, "read_retries": count} for i, count in enumerate(counts)]))
    assert run.get("read_retries").over_restarts.values == [0, 3, 5, 6, 6, 9, 11]


def test_what_is_no_number_is_no_series(tmp_path):
    run = read_run(
        write_run(tmp_path, [{"step": 1, "loss": 5, "note": "x", "flag": True}, {"loss": 4.0}, {"step": "2"}])
    )
    assert set(run.series) == {"loss"} and run.get("loss").values == [5.0]


def test_bad_samples_are_listed_once(tmp_path):
    rows = [
        {"sample_id": 7, "name": "a.jpg", "reason": "empty", "offset": 0},
        {"sample_id": 7, "name": "a.jpg", "reason": "empty", "offset": 0},
        {"sample_id": 9, "name": "b.jpg"},
    ]
    run = read_run(write_run(tmp_path, [], rows))
    assert run.bad_samples == [BadSample("7", "a.jpg", "empty"), BadSample("9", "b.jpg", "")]


def test_only_complete_checkpoints_count(tmp_path):
    write_run(tmp_path)
    for name in ("step_00001000", "step_00000020", "saving_step_00001500", "removing_step_00000010"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00009999").write_text("a file")
    assert read_run(tmp_path).checkpoint_steps == [20, 1000]


def test_a_broken_config_is_noted_and_shown(tmp_path):
    run = read_run(write_run(tmp_path, training_metrics(), config="train: [unclosed"))
    assert run.config == {} and run.config_text == "train: [unclosed"
    assert "not valid YAML" in run.notes[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file, not a directory"),
        (lambda path: path.mkdir(), "it has no config.yaml"),
    ],
)
def test_rejects_what_is_no_run_and_says_how_to_make_one(tmp_path, make, message):
    path = tmp_path / "place"
    make(path)
    with pytest.raises(UserError, match=rf"place .*{message}.*webssl train CONFIG output_dir="):
        read_run(path)
