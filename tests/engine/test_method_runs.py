"""Any method on one rank or two, in one pass or several, interrupted or not, compiled or not, is one same run.

Losses over 20 steps agree to 1e-5, relative: fp32 sums are taken in another order, and training amplifies that.
DINOv2, which needs groups of images, has runs of its own (test_multiprocess.py, test_sharding.py).
"""

from __future__ import annotations

import pytest
import torch

from tests.engine.comparison import assert_same_run, metrics_of
from tests.engine.dinov2_run import NUM_STEPS
from tests.engine.method_run import run_each, run_tiny
from tests.engine.rank_processes import run_ranks
from tests.methods.tiny import TINY
from webssl_fast.engine.distributed import Distributed

CPU = Distributed(torch.device("cpu"))
METHODS = [name for name in TINY if name != "dinov2"]
MEANS_OVER_IMAGES = [name for name in METHODS if TINY[name](init=False).balanced_over_pass is None]


def assert_same_losses(run, other, tolerance=1e-5):
    rows, others = metrics_of(run), metrics_of(other)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1)) == [row["step"] for row in others]
    names = [name for name in others[0] if name == "loss" or name.startswith("grad_norm/")]
    assert len(names) >= 3
    for name in names:
        expected = [row[name] for row in others]
        assert [row[name] for row in rows] == pytest.approx(expected, rel=tolerance, abs=tolerance), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_each(CPU, METHODS, folder)
    return folder


@pytest.fixture(scope="module")
def two_then_one(tmp_path_factory):
    """Two ranks take the first half of the steps, and one goes on from what they saved."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(2, run_each, METHODS, folder, {"activation_checkpointing": "selective"}, NUM_STEPS // 2)
    run_each(CPU, METHODS, folder)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_what_one_trains_and_hand_over(one, two_then_one, name):
    assert_same_losses(two_then_one / name, one / name)


@pytest.mark.parametrize("name", MEANS_OVER_IMAGES)
def test_passes_that_add_up_train_what_one_pass_trains(one, tmp_path, name):
    run_tiny(CPU, name, tmp_path, {"micro_batch_size": 2})
    assert_same_losses(tmp_path, one / name)


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_bit_for_bit_as_another(tmp_path, name):
    whole, interrupted, settings = tmp_path / "whole", tmp_path / "interrupted", {"micro_batch_size": 4}
    run_tiny(CPU, name, whole, settings)
    run_tiny(CPU, name, interrupted, settings, stop_at_step=7)
    assert len(metrics_of(interrupted)) == 8
    run_tiny(CPU, name, interrupted, settings)
    assert_same_run(interrupted, whole)


@pytest.mark.nightly
@pytest.mark.parametrize("name", METHODS)
def test_compiled_blocks_train_what_others_train(one, tmp_path, name):
    run_tiny(CPU, name, tmp_path, {"compile_blocks": True})
    assert_same_losses(tmp_path, one / name, tolerance=1e-4)
