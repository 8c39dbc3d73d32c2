import json
import os
import signal
import threading
from collections import Counter

import pytest
import torch

from tests.engine.comparison import assert_same_run, tensors_of
from tests.engine.toy_method import ToyMethod
from tests.engine.toy_run import run_toy
from webssl_fast.config.schema import TrainConfig
from webssl_fast.engine.loop import micro_steps
from webssl_fast.engine.nonfinite import NonfiniteError
from webssl_fast.engine.run_state import ResumeError
from webssl_fast.engine.tensor_files import TensorMismatch
from webssl_fast.errors import UserError

# Steps of 8 images: these put a NaN image into step 6 (from 0), and replaced samples into steps 2, 9 and 10.
LOADER = {"nonfinite_positions": [50], "bad_positions": [16, 17, 75, 83]}


def lines(path, name="metrics.jsonl"):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_toy(folder, **LOADER)
    return folder


@pytest.mark.parametrize("at_step", [0, 6, 7, 9, 18])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, at_step):
    result, _ = run_toy(tmp_path, stop_at_step=at_step, **LOADER)
    assert (result.step, result.interrupted_by) == (at_step + 1, signal.SIGTERM)
    assert (tmp_path / f"checkpoints/step_{at_step + 1:08d}").is_dir()
    result, _ = run_toy(tmp_path, **LOADER)
    assert (result.step, result.interrupted_by) == (20, None)
    assert_same_run(tmp_path, uninterrupted)


def test_run_that_died_between_checkpoints_repeats_its_steps(tmp_path, uninterrupted):
    def die(step):
        if step == 14:
            raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        run_toy(tmp_path, on_batch=die, **LOADER)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 14, "loss": 0.1')  # a line that was being written
    run_toy(tmp_path, **LOADER)
    assert_same_run(tmp_path, uninterrupted)


def test_saving_before_training_goes_on_writes_the_same(tmp_path, uninterrupted):
    run_toy(tmp_path, train_settings={"async_checkpoint": False}, **LOADER)
    assert_same_run(tmp_path, uninterrupted)


def test_finished_run_is_left_alone(tmp_path, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_text()
    result, _ = run_toy(uninterrupted, on_batch=lambda step: pytest.fail("took a step"), **LOADER)
    assert result.step == 20
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_second_sigint_aborts_at_once(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, on_batch=lambda step: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2 * (step == 3))])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_metrics_lines_are_complete(uninterrupted):
    rows = lines(uninterrupted)
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20]
    expected = {"step", "loss", "fit", "agreement", "grad_norm/backbone", "grad_norm/head", "lr", "weight_decay"}
    expected |= {"ema_momentum", "samples_per_second", "data_wait_share", "samples_seen", "epoch", "bad_samples"}
    expected |= {"skipped_steps", "memory_peak_rss_gib"}
    assert set(rows[0]) == expected
    assert [row["bad_samples"] for row in rows] == [2, 2, 4, 4, 4]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1, 1]
    assert [row["samples_seen"] for row in rows] == [32, 64, 96, 128, 160]
    assert rows[1]["epoch"] == 0.64
    assert all(row["loss"] == pytest.approx(row["fit"] + 0.1 * row["agreement"], rel=1e-5) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


def test_nonfinite_batch_is_listed_with_its_samples(uninterrupted):
    assert lines(uninterrupted, "nonfinite_batches.jsonl") == [
        {"step": 7, "sample_ids": [position * 10 for position in range(48, 56)]}
    ]
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(uninterrupted).values())


@pytest.mark.parametrize("last_bad_step, stops", [(8, False), (9, True)])
def test_nonfinite_steps_in_a_row_stop_the_run(tmp_path, last_bad_step, stops):
    settings = {
        "train_settings": {"max_nonfinite_steps": 5},
        "nonfinite_positions": [step * 8 for step in range(5, last_bad_step + 1)],
    }
    if not stops:
        assert run_toy(tmp_path, **settings)[0].step == 20
        return
    with pytest.raises(NonfiniteError, match=r"not finite in 5 steps in a row.*nonfinite_batches\.jsonl"):
        run_toy(tmp_path, **settings)
    assert [row["step"] for row in lines(tmp_path, "nonfinite_batches.jsonl")] == [6, 7, 8, 9, 10]
    with pytest.raises(NonfiniteError):  # and again after a resume, whose checkpoint stands amid the row
        run_toy(tmp_path, **settings)
    assert [row["step"] for row in lines(tmp_path, "nonfinite_batches.jsonl")] == [6, 7, 8, 9, 10]


def test_device_is_read_at_logged_steps_and_checkpoints_only(tmp_path, monkeypatch):
    now = {"step": 0}
    reads: Counter[int] = Counter()
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        plain = getattr(torch.Tensor, name)

        def read(self, *args, plain=plain, **kwargs):
            # What a checkpoint's thread reads is on the host already.
            reads[now["step"]] += threading.current_thread() is threading.main_thread()
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    run_toy(
        tmp_path,
        train_settings={"log_every": 6, "checkpoint_every": 9},
        on_batch=lambda step: now.update(step=step),
    )
    assert {step for step, num in reads.items() if num} - {0} == {
        5,
        8,
        11,
        17,
        19,
    }  # steps 6, 9, 12, 18 and 20; before the first, nothing is timed


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    _, split = run_toy(tmp_path / "split", train_settings={"micro_batch_size": 2})
    _, whole = run_toy(tmp_path / "whole", train_settings={"micro_batch_size": None})
    for name, tensor in split.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_bf16_trains(tmp_path):
    run_toy(tmp_path, train_settings={"precision": "bf16"})
    rows = lines(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


def test_evaluation_is_logged_and_does_not_disturb(tmp_path, uninterrupted):
    seen = []

    def evaluate(step):
        seen.append((step, torch.is_grad_enabled(), torch.rand(3).sum() > 0))
        return {"knn/cls_top1": step / 100}

    run_toy(tmp_path, evaluate=evaluate, evaluate_every=6, **LOADER)
    assert [step for step, grad, _ in seen if not grad] == [0, 6, 12, 18, 20]
    scores = [row for row in lines(tmp_path) if "eval/knn/cls_top1" in row]
    assert scores == [{"step": step, "eval/knn/cls_top1": step / 100} for step in (0, 6, 12, 18, 20)]
    assert_same_run(tmp_path, uninterrupted, ignore=("eval/knn/cls_top1",))


def test_evaluation_restores_modes(tmp_path):
    modes = []

    def look(step):
        modes.append((method.student.training, method.teacher.training))

    method = ToyMethod()
    method.teacher.eval()
    run_toy(tmp_path, method=method, on_batch=look, evaluate=lambda step: {"x": float(method.student.training)})
    assert set(modes) == {(True, False)}
    assert [row["eval/x"] for row in lines(tmp_path) if "eval/x" in row] == [0.0, 0.0]


def test_other_thread_count_warns_that_bits_may_differ(tmp_path, caplog):
    run_toy(tmp_path, stop_at_step=3)
    torch.set_num_threads(2)
    run_toy(tmp_path, stop_at_step=4)
    assert "no longer bit for bit the same run: num_threads was 1 and is 2" in caplog.text


def test_same_conditions_do_not_warn(tmp_path, caplog):
    run_toy(tmp_path, stop_at_step=3)
    run_toy(tmp_path, stop_at_step=4)
    assert "stopped by signal" in caplog.text and "OTHER CONDITIONS" not in caplog.text


@pytest.mark.parametrize("change", [{"seed": 1}, {"train_settings": {"global_batch_size": 4}}])
def test_other_data_order_refuses_to_resume(tmp_path, change):
    run_toy(tmp_path, train_settings={"num_steps": 5})
    with pytest.raises(ResumeError, match="was started with (seed=0|global_batch_size=8).*output_dir"):
        run_toy(tmp_path, **change)


def test_other_architecture_refuses_to_resume(tmp_path):
    run_toy(tmp_path, train_settings={"num_steps": 5})
    with pytest.raises(TensorMismatch, match=r"another architecture: method\.student\.backbone\.0\.weight is float32"):
        run_toy(tmp_path, width=9)


def test_batch_must_be_shared_out_evenly():
    assert micro_steps(TrainConfig(global_batch_size=24, micro_batch_size=4), 2) == 3
    assert micro_steps(TrainConfig(global_batch_size=24), 2) == 1
    with pytest.raises(UserError, match="global_batch_size=9 cannot be shared out among 2 processes"):
        micro_steps(TrainConfig(global_batch_size=9), 2)
    with pytest.raises(UserError, match="micro_batch_size=5 does not divide the 12 images"):
        micro_steps(TrainConfig(global_batch_size=24, micro_batch_size=5), 2)


def test_tensorboard_without_its_package_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        run_toy(tmp_path, train_settings={"tensorboard": True})
