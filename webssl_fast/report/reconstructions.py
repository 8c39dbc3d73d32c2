"""Pictures of a method that predicts pixels: what it saw of a photograph, and what it made of the rest.

Dimensions: B images, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from webssl_fast.report.features import photographs


@dataclass(frozen=True)
class ReconstructionPicture:
    """uint8 [S, S, 3] each."""

    name: str
    seen: np.ndarray
    reconstruction: np.ndarray
    photograph: np.ndarray


def reconstruction_pictures(
    names: Sequence[str],
    images_B3SS: Tensor,
    seen_B3SS: Tensor,
    reconstructions_B3SS: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[ReconstructionPicture]:
    """`mean` and `std` are those by which all images were normalised."""
    rows = [photographs(images, mean, std) for images in (seen_B3SS, reconstructions_B3SS, images_B3SS)]
    return [ReconstructionPicture(*four) for four in zip(names, *rows, strict=True)]
