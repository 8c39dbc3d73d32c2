"""Whole images as squares of an encoder's native size: padded with its mean colour, then resized (as LLaVA and
Cambrian-1 do it), so that nothing at the edges is lost and nothing is squeezed.

Dimensions: H rows, W columns, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from webssl_fast.models.encoders import Encoder


def square_image(image: PIL.Image.Image, encoder: Encoder) -> Tensor:
    """uint8 [3, S, S] of an image of any mode and shape; S is the encoder's image_size_px."""
    image = image.convert("RGB")
    preprocessing, side = encoder.preprocessing, max(image.size)
    if image.width != image.height:
        mean_color = tuple(int(255 * channel) for channel in preprocessing.mean)
        padded = PIL.Image.new("RGB", (side, side), mean_color)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = padded
    if side != encoder.image_size_px:
        resample = PIL.Image.Resampling[preprocessing.interpolation.upper()]
        image = image.resize((encoder.image_size_px, encoder.image_size_px), resample)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalized(images_B3SS: Tensor, encoder: Encoder) -> Tensor:
    """uint8 to fp32 as the encoder wants it."""
    mean, std = (
        torch.tensor(values, device=images_B3SS.device).view(3, 1, 1)
        for values in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    return (images_B3SS.float() / 255 - mean) / std
