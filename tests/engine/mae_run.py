"""A run of the tiny MAE over the real loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engine.dinov2_run import OPTIM, TRAIN, run_method
from tests.methods.tiny import tiny_mae
from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed


def run_mae(
    distributed: Distributed,
    output_dir: Path,
    train_settings: dict[str, Any] | None = None,
    stop_at_step: int | None = None,
) -> dict[int, list[int]]:
    """As `run_dinov2`."""
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    with torch.device("meta"):
        method = tiny_mae(init=False)
    return run_method(method, distributed, output_dir, config, OptimConfig(**OPTIM), stop_at_step)
