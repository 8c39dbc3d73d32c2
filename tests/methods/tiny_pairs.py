"""A CLIP and a SigLIP small enough for tests, and batches of noise for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from webssl_fast.config.schema import ClipConfig, CropsConfig, ModelConfig, OptimConfig, SigLipConfig, TextConfig
from webssl_fast.methods.clip import Clip
from webssl_fast.methods.image_text import ImageTextMethod
from webssl_fast.methods.siglip import SigLip
from webssl_fast.records import Batch

WORDS = "red green blue small large round square old new bright cat dog house tree car".split()


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


def caption_at(position: int) -> str:
    rng = np.random.default_rng(position)
    return "a " + " ".join(rng.choice(WORDS, size=rng.integers(1, 5)))


def noise_pairs(method: ImageTextMethod, first_position: int = 0, num_images: int = 8) -> Batch:
    """Images and captions that are functions of their positions."""
    positions = np.arange(first_position, first_position + num_images)
    images = [torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(int(p))) for p in positions]
    batch = Batch(
        positions,
        positions.copy(),
        [torch.stack(images)[None]],
        torch.full((num_images,), -1),
        captions=[caption_at(int(p)) for p in positions],
    )
    method.prepare(batch)
    return batch
