"""CLIP and SigLIP on several ranks: gradients of one step, and whole runs over the real loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from tests.methods.tiny_pairs import noise_pairs, tiny_pairs_method
from webssl_fast.config.schema import OptimConfig, TrainConfig
from webssl_fast.engine import sharding
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.loop import micro_steps, train
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.records import Batch

NUM_STEPS = 6
TRAIN = {
    "precision": "fp32",
    "num_steps": NUM_STEPS,
    "global_batch_size": 8,
    "num_threads": 1,
    "log_every": 1,
    "checkpoint_every": NUM_STEPS // 2,
}
OPTIM = {"base_lr": 1e-2, "warmup_steps": 2, "clip_grad_norm": None}


def made(name: str, distributed: Distributed, config: TrainConfig, method_settings: dict[str, Any]) -> ImageTextMethod:
    with torch.device("meta"):
        method = tiny_pairs_method(name, init=False, num_steps=NUM_STEPS, **method_settings)
    materialize(method, 0, distributed, config)
    return method


def gradients_of_each(
    distributed: Distributed, name: str, all_settings: Sequence[dict[str, Any]]
) -> list[tuple[float, dict[str, np.ndarray]]]:
    return [gradients(distributed, name, settings) for settings in all_settings]


def gradients(
    distributed: Distributed,
    name: str,
    method_settings: dict[str, Any],
    train_settings: dict[str, Any] | None = None,
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and whole gradients of the joint batch of 8 pairs, of which this rank has its share."""
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    method = made(name, distributed, config, method_settings)
    share = 8 // distributed.world_size
    loss, _ = method.training_step(noise_pairs(method, share * distributed.rank, share), 0)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    # Arrays, since a tensor would be shared with this process, which may have ended when it is read.
    whole = {n: (g.full_tensor() if isinstance(g, DTensor) else g).numpy() for n, g in grads.items()}
    mean_loss = distributed.sum_(loss.detach().clone()) / distributed.world_size
    return float(mean_loss), whole


def step_as_on_gpus(distributed: Distributed, name: str) -> tuple[float, torch.dtype]:
    """Loss of one step with weights gathered as bf16, which a run on CPUs does not do; and the scale's dtype in it."""
    sharding._gathered_dtype = lambda precision, device: torch.bfloat16
    method = made(name, distributed, TrainConfig(**{**TRAIN, "precision": "bf16"}), {"embed_batch_size": 3})
    share = 8 // distributed.world_size
    with torch.autocast("cpu", torch.bfloat16):
        loss, scalars = method.training_step(noise_pairs(method, share * distributed.rank, share), 0)
    loss.backward()
    return float(distributed.sum_(loss.detach().clone())) / distributed.world_size, scalars["logit_scale"].dtype


class PairsLoader:
    def __init__(
        self, method: ImageTextMethod, config: TrainConfig, distributed: Distributed, stop_at_step: int | None
    ):
        self.method, self.distributed, self.stop_at_step = method, distributed, stop_at_step
        self.global_batch_size = config.global_batch_size
        self.num_micro_steps = micro_steps(config, distributed.world_size)
        self.data_wait_seconds = 0.0

    def batch(self, step: int, micro_step: int) -> Batch:
        if step == self.stop_at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        rank, world_size = self.distributed.rank, self.distributed.world_size
        per_pass = self.global_batch_size // (self.num_micro_steps * world_size)
        first = step * self.global_batch_size + (micro_step * world_size + rank) * per_pass
        return noise_pairs(self.method, first, per_pass)


def run_pairs(
    distributed: Distributed,
    name: str,
    output_dir: Path,
    method_settings: dict[str, Any] | None = None,
    train_settings: dict[str, Any] | None = None,
    stop_at_step: int | None = None,
) -> None:
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    method = made(name, distributed, config, method_settings or {})
    train(
        method,
        PairsLoader(method, config, distributed, stop_at_step),
        distributed,
        train_config=config,
        optim_config=OptimConfig(**OPTIM),
        output_dir=output_dir,
        facts={"seed": 0},
    )


def run_each(distributed: Distributed, names: Sequence[str], output_dir: Path, *arguments: Any) -> None:
    for name in names:
        run_pairs(distributed, name, output_dir / name, *arguments)
