"""Inputs of one DINOv2 step, made from a seed: what a loader would hand over, without one."""

from __future__ import annotations

import torch
from torch import Tensor


def synthetic_inputs(num_images: int, grid_size: int, patch_size_px: int = 14, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Global crops fp32 [2B, 3, S, S], local crops [8B, 3, 98, 98] (crop-major) and the mask bool [2B, N].

    As in DINOv2's recipe, half of the global crops are masked, by ratios that divide [0.1, 0.5] evenly. Which tokens are
    masked is uniform here: neither the time nor the loss of random weights depends on the shape of the blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    size_px = grid_size * patch_size_px
    global_crops = torch.randn(2 * num_images, 3, size_px, size_px, generator=generator)
    local_crops = torch.randn(8 * num_images, 3, 98, 98, generator=generator)
    num_tokens = grid_size**2
    mask = torch.zeros(2 * num_images, num_tokens, dtype=torch.bool)
    ratio_edges = torch.linspace(0.1, 0.5, num_images + 1)
    crops = torch.randperm(2 * num_images, generator=generator)[:num_images]
    for crop, low, high in zip(crops.tolist(), ratio_edges[:-1].tolist(), ratio_edges[1:].tolist(), strict=True):
        num_masked = int(num_tokens * (low + high) / 2)
        mask[crop, torch.randperm(num_tokens, generator=generator)[:num_masked]] = True
    return global_crops, local_crops, mask
