"""Small configs, and a real training step of them, for tests that hold a plan to what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import DinoV2Config, HeadConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.methods import build_method
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.records import Batch

STEP = 2000  # the last layers are no longer frozen


def small_config(
    preset: str = "vit_nano_patch14",
    *,
    num_images: int = 4,
    drop_path_rate: float = 0.4,
    num_prototypes: int = 512,
    world_size: int = 1,
    optimizer: str = "torch",
    **train: object,
) -> RunConfig:
    """Web-DINO's crops on a small network with few prototypes; resolved."""
    config = RunConfig(
        optim=OptimConfig(implementation=optimizer),
        model=ModelConfig(preset=preset, drop_path_rate=drop_path_rate),
        method=DinoV2Config(
            dino_head=HeadConfig(hidden_dim=256, bottleneck_dim=64, num_prototypes=num_prototypes),
            ibot_head=HeadConfig(hidden_dim=256, bottleneck_dim=32, num_prototypes=num_prototypes),
        ),
        train=TrainConfig(
            global_batch_size=num_images * world_size, group_size=num_images, **{"precision": "fp32", **train}
        ),
    )
    return resolve(config, world_size=world_size, device="cpu")


def method_of(config: RunConfig) -> DinoV2:
    method = build_method(config)
    method.initialize(config.seed)
    return method


def noise_batch(config: RunConfig, method: DinoV2, rank: int = 0) -> Batch:
    """A micro-batch of noise, with the masks and drop-path choices of the method."""
    B = config.train.micro_batch_size
    generator = torch.Generator().manual_seed(rank)
    crops = [
        torch.randn(group.num, B, 3, group.size_px, group.size_px, generator=generator)
        for group in (config.method.global_crops, config.method.local_crops)
    ]
    positions = np.arange(rank * B, (rank + 1) * B)
    batch = Batch(positions, positions, crops, torch.full((B,), -1))
    method.prepare(batch)
    return batch


def optimizer_of(config: RunConfig, method: DinoV2, distributed: Distributed | None = None) -> Optimizer:
    train = config.train
    return Optimizer(
        method,
        config.optim,
        distributed or Distributed(torch.device("cpu")),
        num_steps=train.num_steps,
        global_batch_size=train.global_batch_size,
    )


def take_step(
    config: RunConfig,
    method: DinoV2,
    batch: Batch,
    optimizer: Optimizer | None = None,
    between: Callable[[], None] = lambda: None,
) -> None:
    """As the engine's loop takes it. `between`: called after the forward."""
    half = config.train.precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        loss, _ = method.training_step(batch, STEP)
    between()
    loss.backward()
    if optimizer is not None:
        optimizer.step(STEP, loss.detach())
        method.after_step(STEP)
