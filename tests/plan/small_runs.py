"""Small configs, and a real training step of them, for tests that hold a plan to what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from tests.methods.tiny import caption_at, crop_groups
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import (
    ClipConfig,
    CropsConfig,
    DinoV2Config,
    HeadConfig,
    MaeConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SigLipConfig,
    TextConfig,
    TrainConfig,
)
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.methods.base import Method
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


def small_mae(
    preset: str = "vit_mae_nano_patch14",
    *,
    num_images: int = 4,
    image_size_px: int = 224,
    mask_ratio: float = 0.75,
    decoder_depth: int = 2,
    world_size: int = 1,
    **train: object,
) -> RunConfig:
    """Web-MAE's step with a small encoder and decoder; resolved."""
    method = MaeConfig(mask_ratio=mask_ratio, decoder_width=64, decoder_depth=decoder_depth, decoder_num_heads=4)
    model = ModelConfig(preset=preset, image_size_px=image_size_px)
    return _resolved(method, model, num_images, world_size, train)


def small_pairs(
    name: str,
    preset: str = "vit_nano_patch14",
    *,
    num_images: int = 6,
    image_size_px: int = 112,
    text: str = "text_nano",
    context_length: int = 16,
    activation: str = "gelu",
    embed_batch_size: int | None = None,
    joint_dim: int = 32,
    world_size: int = 1,
    **train: object,
) -> RunConfig:
    """A step of CLIP or SigLIP with small towers; resolved."""
    method = {"clip": ClipConfig, "siglip": SigLipConfig}[name](
        crops=CropsConfig(num=1, size_px=image_size_px, scale=(0.9, 1.0)),
        text=TextConfig(preset=text, context_length=context_length, activation=activation),
        joint_dim=joint_dim,
        embed_batch_size=embed_batch_size,
    )
    model = ModelConfig(preset=preset, image_size_px=image_size_px)
    return _resolved(method, model, num_images, world_size, train)


def _resolved(
    method: MethodConfig, model: ModelConfig, num_images: int, world_size: int, train: dict[str, object]
) -> RunConfig:
    settings = {"global_batch_size": num_images * world_size, "group_size": 1, "precision": "fp32", **train}
    config = RunConfig(model=model, method=method, train=TrainConfig(**settings))
    return resolve(config, world_size=world_size, device="cpu")


def noise_batch(config: RunConfig, method: Method, rank: int = 0) -> Batch:
    """A micro-batch of noise, and a caption of each image, with what the method draws for them."""
    B = config.train.micro_batch_size
    generator = torch.Generator().manual_seed(rank)
    crops = [torch.randn(num, B, 3, px, px, generator=generator) for num, px in crop_groups(method)]
    positions = np.arange(rank * B, (rank + 1) * B)
    captions = [caption_at(int(position)) for position in positions]
    batch = Batch(positions, positions, crops, torch.full((B,), -1), captions=captions)
    method.prepare(batch)
    return batch


def optimizer_of(config: RunConfig, method: Method, distributed: Distributed | None = None) -> Optimizer:
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
    method: Method,
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
