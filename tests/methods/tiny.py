"""Methods small enough for tests, and batches of noise for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from webssl_fast.config.schema import (
    ClipConfig,
    CropsConfig,
    DinoV2Config,
    HeadConfig,
    IJepaConfig,
    MaeConfig,
    ModelConfig,
    OptimConfig,
    SigLipConfig,
    TextConfig,
)
from webssl_fast.methods.base import Method
from webssl_fast.methods.clip import Clip
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.methods.ijepa import IJepa
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.methods.mae import Mae
from webssl_fast.methods.siglip import SigLip
from webssl_fast.records import Batch

WORDS = "red green blue small large round square old new bright cat dog house tree car".split()


def tiny_method(*, drop_path_rate=0.0, group_size=4, seed=0, num_steps=100, init=True, **overrides) -> DinoV2:
    head = HeadConfig(hidden_dim=32, bottleneck_dim=16, num_prototypes=48)
    config = DinoV2Config(
        **{
            "global_crops": CropsConfig(num=2, size_px=56, scale=(0.32, 1.0)),
            "local_crops": CropsConfig(num=3, size_px=28, scale=(0.05, 0.32)),
            "dino_head": head,
            "ibot_head": head,
            **overrides,
        }
    )
    model = ModelConfig(
        preset="vit_nano_patch14", image_size_px=56, drop_path_rate=drop_path_rate, layer_scale_init=0.5
    )
    method = DinoV2(config, model, OptimConfig(), num_steps=num_steps, group_size=group_size, seed=seed)
    if init:
        method.initialize(seed)
    return method


def tiny_mae(
    *, seed=0, init=True, drop_path_rate=0.0, layerwise_decay=1.0, preset="vit_mae_nano_patch14", **overrides
) -> Mae:
    config = MaeConfig(**{"decoder_width": 32, "decoder_depth": 2, "decoder_num_heads": 2, **overrides})
    model = ModelConfig(preset=preset, image_size_px=56, drop_path_rate=drop_path_rate)
    optim = OptimConfig(layerwise_decay=layerwise_decay)
    method = Mae(config, model, optim, num_steps=100, group_size=1, seed=seed)
    if init:
        method.initialize(seed)
    return method


def tiny_ijepa(
    *,
    seed=0,
    init=True,
    drop_path_rate=0.0,
    preset="vit_mae_nano_patch14",
    image_size_px=84,
    num_steps=100,
    **overrides,
) -> IJepa:
    """84 pixels: a grid of 6 x 6, the smallest that holds the paper's blocks."""
    predictor = {"predictor_width": 32, "predictor_depth": 2, "predictor_num_heads": 2}
    config = IJepaConfig(**{**predictor, **overrides})
    model = ModelConfig(preset=preset, image_size_px=image_size_px, drop_path_rate=drop_path_rate)
    method = IJepa(config, model, OptimConfig(), num_steps=num_steps, group_size=1, seed=seed)
    if init:
        method.initialize(seed)
    return method


def tiny_pairs_method(
    name: str, *, seed: int = 0, num_steps: int = 100, init: bool = True, **overrides: Any
) -> ImageTextMethod:
    settings: dict[str, Any] = {
        "crops": CropsConfig(num=1, size_px=28, scale=(0.9, 1.0)),
        "text": TextConfig(preset="text_nano", context_length=8),
        "joint_dim": 16,
        **overrides,
    }
    model = ModelConfig(preset="vit_nano_patch14", image_size_px=28, layer_scale_init=0.5)
    run = {"num_steps": num_steps, "group_size": 1, "seed": seed}
    method: ImageTextMethod
    if name == "clip":
        method = Clip(ClipConfig(**settings), model, OptimConfig(), **run)
    else:
        method = SigLip(SigLipConfig(**settings), model, OptimConfig(), **run)
    if init:
        method.initialize(seed)
    return method


# Every method by the name that a config gives it. Keywords: seed, init, and settings of its own.
TINY: dict[str, Callable[..., Method]] = {
    "dinov2": tiny_method,
    "mae": tiny_mae,
    "ijepa": tiny_ijepa,
    "clip": partial(tiny_pairs_method, "clip"),
    "siglip": partial(tiny_pairs_method, "siglip"),
}


def crop_groups(method: Method) -> list[tuple[int, int]]:
    """(crops of an image, pixels of a side) of each group."""
    return [(len(list(group)), size_px) for size_px, group in groupby(r.size_px for r in method.crop_recipes())]


def noise_batch(method: Method, first_position=0, num_images=4, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    positions = np.arange(first_position, first_position + num_images)
    crops = [torch.randn(num, num_images, 3, size, size, generator=g) for num, size in crop_groups(method)]
    batch = Batch(positions, positions.copy(), crops, torch.full((num_images,), -1))
    method.prepare(batch)
    return batch


def batch_at(method: Method, positions: np.ndarray) -> Batch:
    """Images, and captions where the method wants them, that are functions of their positions."""
    images = []
    for position in positions:
        generator = torch.Generator().manual_seed(int(position))
        images.append([torch.randn(num, 3, size, size, generator=generator) for num, size in crop_groups(method)])
    batch = Batch(
        positions,
        positions.copy(),
        [torch.stack(group, dim=1) for group in zip(*images, strict=True)],
        torch.full((len(positions),), -1),
        captions=[caption_at(int(p)) for p in positions] if method.wants_captions else None,
    )
    method.prepare(batch)
    return batch


def caption_at(position: int) -> str:
    rng = np.random.default_rng(position)
    return "a " + " ".join(rng.choice(WORDS, size=rng.integers(1, 5)))


def noise_pairs(method: ImageTextMethod, first_position: int = 0, num_images: int = 8) -> Batch:
    return batch_at(method, np.arange(first_position, first_position + num_images))
