"""Colour augmentation of the dense protocols, in numbers of their own: neither is torchvision's ColorJitter.

Dimensions: H rows, W columns. Images are uint8 [3, H, W], RGB.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS = 32.0  # of 255, added
CONTRAST = SATURATION = (0.5, 1.5)
HUE_STEPS, DEGREES_PER_STEP = 18, 2  # OpenCV counts hue in steps of two degrees


def photometric_distortion(image_3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue, each with probability 1/2; contrast comes second or last. uint8 out.

    (SSD, Liu et al. 2016, as MMSegmentation has it.)

    Brightness adds up to +-32, contrast multiplies by 0.5 to 1.5, saturation by 0.5 to 1.5 in HSV, hue turns by -36 to
    34 degrees in steps of 2. Hue itself is not rounded to OpenCV's two degrees.
    """
    image = image_3HW.float()
    if rng.random() < 0.5:
        image = _levels(image + rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _contrast(image, rng)
    if rng.random() < 0.5:
        image = _saturated(image, rng.uniform(*SATURATION))
    if rng.random() < 0.5:
        image = _hue_turned(image, int(rng.integers(-HUE_STEPS, HUE_STEPS)) * DEGREES_PER_STEP)
    if not contrast_first:
        image = _contrast(image, rng)
    return image.to(torch.uint8)


def gamma_brightness_color(image_3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Image^gamma (of values 0 to 255, so that it is mostly a change of exposure), brightness, and a factor a channel.

    Gamma 0.9 to 1.1, brightness 0.75 to 1.25, channels 0.9 to 1.1 (BTS, Lee et al. 2019). uint8 in, fp32 0 to 255 out.
    """
    gamma, brightness, color = rng.uniform(0.9, 1.1), rng.uniform(0.75, 1.25), rng.uniform(0.9, 1.1, 3)
    factors = torch.from_numpy(brightness * color).float()[:, None, None]
    return (image_3HW.float() ** gamma * factors).clamp_(0, 255)


def _contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    return _levels(image * rng.uniform(*CONTRAST)) if rng.random() < 0.5 else image


def _levels(image: Tensor) -> Tensor:
    return image.clamp_(0, 255).floor_()


def _saturated(image: Tensor, factor: float) -> Tensor:
    """HSV's saturation (value - least) / value times the factor, at most 1; value and hue stay."""
    value, least = image.amax(0), image.amin(0)
    factor_HW = torch.minimum(torch.tensor(factor), value / (value - least).clamp_min(1e-6))
    return (value - (value - image) * factor_HW).clamp_(0, 255).round_()


def _hue_turned(image: Tensor, degrees: float) -> Tensor:
    """HSV's hue plus the angle; value and saturation stay (Smith 1978)."""
    value, chroma = image.amax(0), image.amax(0) - image.amin(0)
    red, green, blue = image
    divisor = chroma.clamp_min(1e-6)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + degrees / 60
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        k = (offset + sextant) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels).clamp_(0, 255).round_()
