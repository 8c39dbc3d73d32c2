"""What `webssl train` hands to the engine, and what it says."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine import loop
from webssl_fast.engine.distributed import Distributed
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.methods.mae import Mae
from webssl_fast.plan.steps import flops_per_image
from webssl_fast.recipes.pretrain import _warn_of_accumulation, pretrain

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke" / "dinov2.yaml"


def test_mfu_counts_the_flops_of_the_plan(tmp_path, monkeypatch):
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    handed: dict = {}

    def train(*args, **settings) -> loop.TrainResult:
        handed.update(settings)
        return loop.TrainResult(step=0)

    monkeypatch.setattr(loop, "train", train)
    overrides = [f"data.source={tmp_path}", f"output_dir={tmp_path / 'run'}", "train.device=cpu"]
    pretrain(SMOKE, overrides)
    config = resolve(load_config(SMOKE, overrides), world_size=1, device="cpu")
    assert handed["flops_per_image"] == pytest.approx(flops_per_image(config, 1)) and flops_per_image(config, 1) > 1e7


@pytest.mark.parametrize(("micro_batch_size", "world_size", "num_passes"), [(8, 4, 1), (8, 2, 2), (2, 4, 4)])
def test_accumulation_says_what_it_changes(caplog, micro_batch_size, world_size, num_passes):
    config = RunConfig.model_validate(
        {"train": {"global_batch_size": 32, "micro_batch_size": micro_batch_size, "group_size": 2}}
    )
    config = resolve(config, world_size=world_size, device="cpu")
    with caplog.at_level(logging.WARNING):
        ranks = Distributed(device=None, world_size=world_size)  # type: ignore[arg-type]
        _warn_of_accumulation(config, ranks, DinoV2.balanced_over_pass)
        num_warnings = len(caplog.records)
        _warn_of_accumulation(config, ranks, Mae.balanced_over_pass)
        assert len(caplog.records) == num_warnings, "MAE's objective is a mean over images"
    if num_passes == 1:
        assert not caplog.text
    else:
        images = 32 // num_passes
        assert f"a step is {num_passes} passes of {images} images. Sinkhorn-Knopp balances" in caplog.text
