"""Decoded images to crops: the random ones of training, the central one of evaluation.

Dimensions: B images, V crops, S size of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from webssl_fast.ops.crop_parameters import HEIGHT, LEFT, TOP, WIDTH, center_crop_parameters, draw_crop_parameters
from webssl_fast.ops.multi_crop import IMAGENET_MEAN, IMAGENET_STD, multi_crop
from webssl_fast.records import CropRecipe, Preprocessing


def training_crops(
    images: Sequence[Tensor],
    positions_B: np.ndarray,
    recipes: Sequence[CropRecipe],
    *,
    seed: int,
    dtype: torch.dtype,
    num_threads: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[Tensor]:
    """Normalised crops [V, B, 3, S, S], a tensor for each run of recipes of equal size.

    A pure function of the seed, the positions and the images (uint8 [H, W, 3]).
    """
    parameters_BVP = draw_crop_parameters(_sizes(images), recipes, seed, torch.from_numpy(positions_B))
    sizes_px = [recipe.size_px for recipe in recipes]
    return multi_crop(images, parameters_BVP, sizes_px, mean=mean, std=std, dtype=dtype, num_threads=num_threads)


def evaluation_crop(
    images: Sequence[Tensor], preprocessing: Preprocessing, *, dtype: torch.dtype, num_threads: int
) -> Tensor:
    """Normalised central crop [B, 3, S, S] of each image (uint8 [H, W, 3]), resized as `preprocessing` says, where the
    images are. Other filters than the bicubic one are Pillow's, on the host."""
    size_px = preprocessing.crop_px
    sizes_B2 = _sizes(images)
    parameters_BVP = center_crop_parameters(sizes_B2, size_px, preprocessing.resize_px)
    if not preprocessing.keep_aspect:
        share = size_px / preprocessing.resize_px
        parameters_BVP[:, 0, TOP : LEFT + 1] = sizes_B2 * (1 - share) / 2
        parameters_BVP[:, 0, HEIGHT : WIDTH + 1] = sizes_B2 * share
    if preprocessing.interpolation == "bicubic" or not images:
        mean, std = preprocessing.mean, preprocessing.std
        (crops_VB3SS,) = multi_crop(
            images, parameters_BVP, [size_px], mean=mean, std=std, dtype=dtype, num_threads=num_threads
        )
        return crops_VB3SS[0]
    boxes_B4 = parameters_BVP[:, 0, : WIDTH + 1].tolist()
    resize = partial(_resized_by_pillow, preprocessing=preprocessing)
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        crops_BSS3 = torch.stack(list(pool.map(resize, images, boxes_B4)))
    mean_3, std_3 = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    crops_B3SS = ((crops_BSS3 / 255 - mean_3) / std_3).permute(0, 3, 1, 2).to(dtype).contiguous()
    return crops_B3SS.to(images[0].device)


def _resized_by_pillow(image_HW3: Tensor, box: Sequence[float], preprocessing: Preprocessing) -> Tensor:
    """uint8 [S, S, 3], on the host."""
    H, W = image_HW3.shape[:2]
    top, left, height, width = box
    resized = Image.fromarray(image_HW3.cpu().numpy()).resize(
        (preprocessing.crop_px, preprocessing.crop_px),
        Image.Resampling[preprocessing.interpolation.upper()],
        box=(left, top, min(left + width, W), min(top + height, H)),  # a box that rounding puts outside is refused
    )
    return torch.from_numpy(np.array(resized))


def _sizes(images: Sequence[Tensor]) -> Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int32).reshape(-1, 2)
