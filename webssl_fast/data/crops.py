"""Decoded images to crops: the random ones of training, the central one of evaluation.

Dimensions: B images, V crops, S size of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from webssl_fast.ops.crop_parameters import center_crop_parameters, draw_crop_parameters
from webssl_fast.ops.multi_crop import multi_crop
from webssl_fast.records import CropRecipe


def training_crops(
    images: Sequence[Tensor],
    positions_B: np.ndarray,
    recipes: Sequence[CropRecipe],
    *,
    seed: int,
    dtype: torch.dtype,
    num_threads: int,
) -> list[Tensor]:
    """Normalised crops [V, B, 3, S, S], a tensor for each run of recipes of equal size.

    A pure function of the seed, the positions and the images (uint8 [H, W, 3]).
    """
    parameters_BVP = draw_crop_parameters(_sizes(images), recipes, seed, torch.from_numpy(positions_B))
    sizes_px = [recipe.size_px for recipe in recipes]
    return multi_crop(images, parameters_BVP, sizes_px, dtype=dtype, num_threads=num_threads)


def evaluation_crop(images: Sequence[Tensor], size_px: int, *, dtype: torch.dtype, num_threads: int) -> Tensor:
    """Normalised central crop [B, 3, S, S] of each image (uint8 [H, W, 3]), after a resize of the shorter side."""
    parameters_BVP = center_crop_parameters(_sizes(images), size_px)
    (crops_VB3SS,) = multi_crop(images, parameters_BVP, [size_px], dtype=dtype, num_threads=num_threads)
    return crops_VB3SS[0]


def _sizes(images: Sequence[Tensor]) -> Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int32).reshape(-1, 2)
