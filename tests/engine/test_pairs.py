"""CLIP and SigLIP on one rank and two, with gradient caching and without, are one and the same objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine.pairs_run import gradients, gradients_of_each, steps_as_on_gpus
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


def test_two_ranks_have_the_gradients_of_the_joint_batch():
    for of_rank in run_ranks(2, gradients_of_each, METHODS, [{}, CACHED]):
        for name in METHODS:
            expected = gradients(CPU, name, {})
            for found in of_rank[name]:
                assert_same_gradients(found, expected)


def test_weights_gathered_as_bf16_leave_the_scale_in_fp32():
    for of_rank in run_ranks(2, steps_as_on_gpus, METHODS):
        for name, (loss, scale_dtype) in of_rank.items():
            expected, _ = gradients(CPU, name, {})
            assert loss == pytest.approx(expected, rel=2e-2) and scale_dtype == torch.float32, name
