"""CLIP and SigLIP on one rank and two, with gradient caching and without, are one and the same objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine.comparison import assert_same_run, metrics_of
from tests.engine.pairs_run import NUM_STEPS, gradients, gradients_of_each, run_each, run_pairs, step_as_on_gpus
from tests.engine.rank_processes import run_ranks
from webssl_fast.engine.distributed import Distributed

METHODS = ["clip", "siglip"]
CPU = Distributed(torch.device("cpu"))
CACHED = {"embed_batch_size": 3}  # of 8 or 4 pairs: the last part is a short one
TOLERANCE = 1e-5


def assert_same_gradients(found, expected):
    (loss, grads), (expected_loss, expected_grads) = found, expected
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert grads.keys() == expected_grads.keys() and "logit_scale.log_scale" in grads
    for name, grad in expected_grads.items():
        assert np.linalg.norm(grads[name] - grad) <= TOLERANCE * np.linalg.norm(grad) + 1e-9, name


@pytest.mark.parametrize("name", METHODS)
def test_gradient_caching_changes_nothing(name):
    expected = gradients(CPU, name, {})
    assert len(expected[1]) > 50
    assert_same_gradients(gradients(CPU, name, CACHED), expected)
    assert_same_gradients(gradients(CPU, name, CACHED, {"activation_checkpointing": "full"}), expected)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_gradients_of_the_joint_batch(name):
    expected = gradients(CPU, name, {})
    for of_rank in run_ranks(2, gradients_of_each, name, [{}, CACHED]):
        for found in of_rank:
            assert_same_gradients(found, expected)


def test_two_ranks_train_what_one_trains_and_hand_over(tmp_path):
    run_each(CPU, METHODS, tmp_path / "one")
    settings = {"activation_checkpointing": "selective"}
    run_ranks(2, run_each, METHODS, tmp_path / "two", CACHED, settings, NUM_STEPS // 2)
    run_each(CPU, METHODS, tmp_path / "two")  # goes on from what two ranks saved
    for name in METHODS:
        rows, expected = metrics_of(tmp_path / "two" / name), metrics_of(tmp_path / "one" / name)
        assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
        for key in ("loss", "logit_scale", "grad_norm/backbone", "grad_norm/text", "grad_norm/logit_scale"):
            values, expected_values = ([row[key] for row in each] for each in (rows, expected))
            assert values == pytest.approx(expected_values, rel=1e-4), (name, key)


def test_a_killed_run_of_two_passes_a_step_goes_on_bit_for_bit(tmp_path):
    settings = {"micro_batch_size": 4}
    run_pairs(CPU, "clip", tmp_path / "whole", None, settings)
    run_pairs(CPU, "clip", tmp_path / "killed", None, settings, stop_at_step=4)
    run_pairs(CPU, "clip", tmp_path / "killed", None, settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("name", METHODS)
def test_weights_gathered_as_bf16_leave_the_scale_in_fp32(name):
    expected, _ = gradients(CPU, name, {})
    for loss, scale_dtype in run_ranks(2, step_as_on_gpus, name):
        assert loss == pytest.approx(expected, rel=2e-2) and scale_dtype == torch.float32
