"""What `webssl train` hands to the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.engine import loop
from webssl_fast.plan.flops import flops_per_image
from webssl_fast.recipes.pretrain import pretrain

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
    assert handed["flops_per_image"] == pytest.approx(flops_per_image(config)) and flops_per_image(config) > 1e7
