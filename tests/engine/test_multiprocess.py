"""Runs of two processes on one host, against the same run in one process."""

import shutil

import pytest
import torch

from tests.engine.comparison import metrics_of
from tests.engine.rank_processes import exit_statuses, start_ranks
from tests.engine.toy_method import ToyMethod
from tests.engine.toy_run import run_toy
from webssl_fast.engine.checkpoint import load_weights
from webssl_fast.engine.distributed import Distributed

LOADER = {"nonfinite_positions": [103], "bad_positions": [99, 102, 103]}


def run(distributed, folder, settings):
    run_toy(folder, distributed=distributed, **settings, **LOADER)


def run_ranks(num_ranks, folder, **settings):
    """Runs to the end, or to where the settings stop it; returns what the first rank printed."""
    ranks = start_ranks(run, folder, settings, logs=folder / "logs", num_ranks=num_ranks)
    assert exit_statuses(ranks) == [0] * num_ranks
    return (folder / "logs/rank0").read_text()


def weights_of(folder):
    method = ToyMethod()
    load_weights(folder, method, Distributed(torch.device("cpu")))
    return method.state_dict()


def test_one_process_resumes_as_two_and_two_as_one(tmp_path):
    one, moved = tmp_path / "one", tmp_path / "moved"
    log_each = {"log_every": 1}
    run_toy(one, train_settings=log_each, **LOADER)
    run_toy(moved, train_settings=log_each, stop_at_step=9, **LOADER)
    printed = run_ranks(2, moved, train_settings=log_each, stop_at_step=13)
    assert "RESUMED UNDER OTHER CONDITIONS" in printed and "world_size was 1 and is 2" in printed
    newest = max((moved / "checkpoints").iterdir())
    assert newest.name == "step_00000015"  # one rank was told in step 14, and both stop after the same later step
    shards = sorted(path.name for path in newest.glob("*.safetensors"))
    assert [name.split("-")[1] for name in shards] == ["00001", "00002"]
    run_toy(moved, train_settings=log_each, **LOADER)

    rows, expected = metrics_of(moved), metrics_of(one)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert abs(rows[10]["loss"] - expected[10]["loss"]) < 1e-6  # the first step of two processes
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            close = pytest.approx(other[name], rel=1e-4, abs=1e-5) if other[name] is not None else None
            assert value == close, (row["step"], name)
    # The batch of step 13 (from 1) has its NaN image on the second rank: skipped by both, and listed whole.
    assert (moved / "nonfinite_batches.jsonl").read_text() == (one / "nonfinite_batches.jsonl").read_text()
    assert rows[12]["loss"] is None and rows[12]["skipped_steps"] == 1 and rows[12]["bad_samples"] == 3
    for name, tensor in weights_of(moved).items():
        torch.testing.assert_close(tensor, weights_of(one)[name], rtol=1e-4, atol=1e-5)


def test_four_processes_resume_as_two_and_as_one(tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    settings = {"train_settings": {"log_every": 1}}
    run_toy(one, **settings, **LOADER)
    run_ranks(4, four, stop_at_step=9, **settings)
    newest = max((four / "checkpoints").iterdir())
    assert len({path.name.split("-")[1] for path in newest.glob("*.safetensors")}) == 4
    for num_ranks in (2, 1):
        moved = tmp_path / str(num_ranks)
        shutil.copytree(four, moved)
        run_ranks(num_ranks, moved, **settings)
        losses, expected = ([row["loss"] or 0.0 for row in metrics_of(folder)] for folder in (moved, one))
        assert losses == pytest.approx(expected, rel=1e-4) and expected.count(0.0) == 1  # step 13 is skipped
        for name, tensor in weights_of(moved).items():
            torch.testing.assert_close(tensor, weights_of(one)[name], rtol=1e-4, atol=1e-5)
