"""Geometry that an image and its map of classes or depths go through together: scale, cut, flip, turn, pad.

Dimensions: C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def fitted_size(height: int, width: int, short_side_px: float, max_long_side_px: float = math.inf) -> tuple[int, int]:
    """Height and width, in proportion, of the largest image within a short and a long side."""
    scale = min(max_long_side_px / max(height, width), short_side_px / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, *size]: bilinear between pixel centres, not antialiased.

    The protocols were trained with OpenCV's INTER_LINEAR, which has no antialiasing either.
    """
    if image_3HW.shape[-2:] == size:
        return image_3HW
    image = F.interpolate(image_3HW[None].float(), size, mode="bilinear", align_corners=False)[0]
    return image.round_().clamp_(0, 255).to(torch.uint8)


def resized_labels(labels_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W] -> uint8 `size`: each pixel takes the label at floor(its index times the scale)."""
    return F.interpolate(labels_HW[None, None], size, mode="nearest")[0, 0]


def random_corner(size: Sequence[int], crop: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a crop, uniform over where it fits; 0 along a side that is no longer than the crop."""
    top, left = (int(rng.integers(0, max(whole - part, 0) + 1)) for whole, part in zip(size, crop, strict=True))
    return top, left


def cut(x: Tensor, corner: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """[..., H, W] -> [..., at most crop]."""
    (top, left), (height, width) = corner, crop
    return x[..., top : top + height, left : left + width]


def padded(x: Tensor, crop: tuple[int, int], value: float) -> Tensor:
    """[..., H, W] -> [..., *crop], filled up with `value` at the bottom and on the right."""
    below, right = crop[0] - x.shape[-2], crop[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, below), value=value) if below or right else x


def rotated(image_3HW: Tensor, depth_HW: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Both turned about their centre, at their size: the uint8 image bilinear, fp32 depths nearest; 0 from outside."""
    image = Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).rotate(degrees, Image.Resampling.BILINEAR)
    depth = Image.fromarray(depth_HW.numpy()).rotate(degrees, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(depth))


def normalized(image_3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[3, H, W] in 0 to 255 -> fp32: (x / 255 - mean) / std."""
    return (image_3HW.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
