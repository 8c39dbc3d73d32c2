"""A run of any tiny method over the real loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tests.engine.dinov2_run import OPTIM, TRAIN, run_method
from tests.methods.tiny import TINY
from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed


def run_tiny(
    distributed: Distributed,
    name: str,
    output_dir: Path,
    train_settings: dict[str, Any] | None = None,
    stop_at_step: int | None = None,
) -> None:
    """`name`: of `TINY`; the rest as of `run_dinov2`."""
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    with torch.device("meta"):
        method = TINY[name](init=False)
    run_method(method, distributed, output_dir, config, OptimConfig(**OPTIM), stop_at_step)


def run_each(distributed: Distributed, names: Iterable[str], output_dir: Path, *arguments: Any) -> None:
    """Each in a folder of its name."""
    for name in names:
        run_tiny(distributed, name, output_dir / name, *arguments)
