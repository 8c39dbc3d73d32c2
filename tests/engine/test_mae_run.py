"""The tiny MAE on one rank or two, in one pass or several, interrupted or not, compiled or not, is one same run.

Losses over 20 steps agree to 1e-5, relative: fp32 sums are taken in another order, and training amplifies that.
"""

from __future__ import annotations

import pytest
import torch

from tests.engine.comparison import assert_same_run, metrics_of
from tests.engine.dinov2_run import NUM_STEPS
from tests.engine.mae_run import run_mae
from tests.engine.rank_processes import run_ranks
from webssl_fast.engine.distributed import Distributed

CPU = Distributed(torch.device("cpu"))
NAMES = ("loss", "grad_norm/backbone", "grad_norm/decoder")


def assert_same_losses(run, other, tolerance=1e-5):
    rows, others = metrics_of(run), metrics_of(other)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1)) == [row["step"] for row in others]
    for name in NAMES:
        expected = [row[name] for row in others]
        assert [row[name] for row in rows] == pytest.approx(expected, rel=tolerance, abs=tolerance), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_mae(CPU, folder)
    losses = [row["loss"] for row in metrics_of(folder)]
    assert losses[-1] < losses[0] - 0.05
    return folder


def test_two_ranks_train_what_one_trains(one, tmp_path):
    run_ranks(2, run_mae, tmp_path, {"activation_checkpointing": "selective"})
    assert_same_losses(tmp_path, one)


def test_passes_that_add_up_train_what_one_pass_trains(one, tmp_path):
    run_mae(CPU, tmp_path, {"micro_batch_size": 2})
    assert_same_losses(tmp_path, one)


def test_an_interrupted_run_ends_bit_for_bit_as_another(tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run_mae(CPU, whole)
    run_mae(CPU, interrupted, stop_at_step=7)
    assert len(metrics_of(interrupted)) == 8
    run_mae(CPU, interrupted)
    assert_same_run(interrupted, whole)


@pytest.mark.nightly
def test_compiled_blocks_train_what_others_train(one, tmp_path):
    run_mae(CPU, tmp_path, {"compile_blocks": True})
    assert_same_losses(tmp_path, one, tolerance=1e-4)
