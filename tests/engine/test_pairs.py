"""CLIP and SigLIP on one rank and two, with gradient caching and without, are one and the same objective."""

from __future__ import annotations

import pytest
import torch

from tests.engine.comparison import assert_same_run, metrics_of
from tests.engine.pairs_run import NUM_STEPS, gradients, run_pairs
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
        assert (grads[name] - grad).norm() <= TOLERANCE * grad.norm() + 1e-9, name


@pytest.mark.parametrize("name", METHODS)
def test_gradient_caching_changes_nothing(name):
    expected = gradients(CPU, name, {}, {})
    assert len(expected[1]) > 50
    assert_same_gradients(gradients(CPU, name, CACHED, {}), expected)
    assert_same_gradients(gradients(CPU, name, CACHED, {"activation_checkpointing": "full"}), expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("method_settings", [{}, CACHED], ids=["whole", "cached"])
def test_two_ranks_have_the_gradients_of_the_joint_batch(name, method_settings):
    expected = gradients(CPU, name, {}, {})
    for found in run_ranks(2, gradients, name, method_settings, {}):
        assert_same_gradients(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_what_one_trains_and_hand_over(name, tmp_path):
    run_pairs(CPU, name, tmp_path / "one")
    run_ranks(2, run_pairs, name, tmp_path / "two", CACHED, {"activation_checkpointing": "selective"}, NUM_STEPS // 2)
    run_pairs(CPU, name, tmp_path / "two")  # goes on from what two ranks saved
    rows, expected = metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one")
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    for key in ("loss", "logit_scale", "grad_norm/vision", "grad_norm/text", "grad_norm/logit_scale"):
        values, expected_values = ([row[key] for row in each] for each in (rows, expected))
        assert values == pytest.approx(expected_values, rel=1e-4), key


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    settings = {"micro_batch_size": 4}  # two passes a step
    run_pairs(CPU, "clip", tmp_path / "whole", None, settings)
    run_pairs(CPU, "clip", tmp_path / "killed", None, settings, stop_at_step=6)
    run_pairs(CPU, "clip", tmp_path / "killed", None, settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
