"""A run of the tiny DINOv2 over the real loop, on noise that is a function of each image's position."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.methods.tiny import batch_at, tiny_method
from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.loop import micro_steps, train
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods.base import Method
from webssl_fast.records import Batch

NUM_STEPS = 20
TRAIN = {
    "precision": "fp32",
    "num_steps": NUM_STEPS,
    "global_batch_size": 8,
    "num_threads": 1,
    "log_every": 1,
    "checkpoint_every": NUM_STEPS,
}
OPTIM = {"base_lr": 2e-2, "warmup_steps": 5}
METHOD = {"group_size": 2, "num_steps": NUM_STEPS, "drop_path_rate": 0.3, "ema_momentum": (0.9, 1.0), "init": False}


class NoiseLoader:
    """Batches of noise for any method; writes down the positions that it handed out."""

    def __init__(self, method: Method, config: TrainConfig, distributed: Distributed, stop_at_step: int | None = None):
        self.method, self.distributed, self.stop_at_step = method, distributed, stop_at_step
        self.global_batch_size = config.global_batch_size
        self.num_micro_steps = micro_steps(config, distributed.world_size)
        self.data_wait_seconds = 0.0
        self.positions: dict[int, list[int]] = {}

    def batch(self, step: int, micro_step: int) -> Batch:
        if step == self.stop_at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        rank, world_size = self.distributed.rank, self.distributed.world_size
        per_pass = self.global_batch_size // (self.num_micro_steps * world_size)
        first = step * self.global_batch_size + (micro_step * world_size + rank) * per_pass
        positions = np.arange(first, first + per_pass)
        self.positions.setdefault(step, []).extend(positions.tolist())
        return batch_at(self.method, positions)


def run_dinov2(
    distributed: Distributed,
    output_dir: Path,
    train_settings: dict[str, Any] | None = None,
    optim_settings: dict[str, Any] | None = None,
    method_settings: dict[str, Any] | None = None,
    stop_at_step: int | None = None,
) -> dict[int, list[int]]:
    """Trains on the meta-made method; the positions of this rank's images by step. Settings as in the config."""
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    with torch.device("meta"):
        method = tiny_method(**{**METHOD, **(method_settings or {})})
    optim = OptimConfig(**{**OPTIM, **(optim_settings or {})})
    return run_method(method, distributed, output_dir, config, optim, stop_at_step)


def run_method(
    method: Method,
    distributed: Distributed,
    output_dir: Path,
    config: TrainConfig,
    optim: OptimConfig,
    stop_at_step: int | None = None,
) -> dict[int, list[int]]:
    materialize(method, 0, distributed, config)
    loader = NoiseLoader(method, config, distributed, stop_at_step)
    train(
        method,
        loader,
        distributed,
        train_config=config,
        optim_config=optim,
        output_dir=output_dir,
        facts={"seed": 0},
    )
    return loader.positions
