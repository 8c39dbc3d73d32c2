"""Pictures of patch features: their first three principal components as colours (DINOv2, arXiv 2304.07193, figure 1).

Dimensions: B images, S side in pixels, N patches of an image, G side of the patch grid (N = G * G), T = B * N, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from webssl_fast.records import Features

Encoder = Callable[[Tensor], Features]

BACKGROUND_GREY = 0.5


@dataclass(frozen=True)
class FeaturePicture:
    """A photograph and the features of its patches, uint8 [S, S, 3] each."""

    name: str
    photograph: np.ndarray
    trained: np.ndarray
    untrained: np.ndarray | None = None


def feature_pictures(
    names: Sequence[str],
    images_B3SS: Tensor,
    trained: Encoder,
    untrained: Encoder | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    foreground: bool = False,
) -> list[FeaturePicture]:
    """The pictures of a report: each photograph with `pca_pictures` of one or two encoders.

    `mean` and `std` are those by which `images_B3SS` were normalised; they bring the photographs back.
    """
    after = pca_pictures(trained, images_B3SS, foreground=foreground)
    before = pca_pictures(untrained, images_B3SS, foreground=foreground) if untrained else [None] * len(after)
    return [
        FeaturePicture(*four) for four in zip(names, photographs(images_B3SS, mean, std), after, before, strict=True)
    ]


def photographs(images_B3SS: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """Normalised images as they were: uint8 [S, S, 3] each."""
    channels = [torch.tensor(values, device=images_B3SS.device)[:, None, None] for values in (std, mean)]
    return [_to_uint8(image) for image in images_B3SS.float() * channels[0] + channels[1]]


@torch.no_grad()
def pca_pictures(encoder: Encoder, images_B3SS: Tensor, *, foreground: bool = False) -> list[np.ndarray]:
    """Colours each photograph by the first three principal components of its patch tokens, uint8 [S, S, 3] each.

    The components are those of all photographs together, so a colour means the same in each of them. Each is scaled
    from its 1st to its 99th percentile and upsampled bicubically from the patch grid.

    encoder      images [B, 3, S, S] -> records.Features, in eval mode (ValueError otherwise); sees one image at a time
    images_B3SS  normalised, on the encoder's device
    foreground   drop the patches on the background side of the first component (the side that holds more of the
                 images' borders) and colour the others by the components among themselves, as in DINOv2's figure
    """
    if getattr(encoder, "training", False):
        raise ValueError("encoder is in training mode, where drop-path would blur its features: call encoder.eval()")
    tokens_BND = torch.cat([encoder(image[None]).patch_tokens.double().cpu() for image in images_B3SS])
    num_images, num_patches, width = tokens_BND.shape
    grid = math.isqrt(num_patches)
    if grid * grid != num_patches:
        raise ValueError(f"the encoder gives {num_patches} patch tokens an image, which is no square grid")
    tokens_TD = tokens_BND.reshape(-1, width)

    keep_T = torch.ones(len(tokens_TD), dtype=torch.bool)
    if foreground:
        first_BGG = principal_components(tokens_TD, 1).reshape(num_images, grid, grid)
        border_GG = torch.ones(grid, grid, dtype=torch.bool)
        border_GG[1:-1, 1:-1] = False
        if (first_BGG > 0)[:, border_GG].double().mean() > (first_BGG > 0).double().mean():
            first_BGG = -first_BGG
        keep_T = (first_BGG > 0).flatten()

    colours_T3 = torch.zeros(len(tokens_TD), 3, dtype=torch.float64)  # 0 in the background: premultiplied by opacity
    colours_T3[keep_T] = _stretched(principal_components(tokens_TD[keep_T], 3))
    size_px = images_B3SS.shape[-1]
    colours = _enlarged(colours_T3.reshape(num_images, grid, grid, 3), size_px)
    opacity = _enlarged(keep_T.double().reshape(num_images, grid, grid, 1), size_px)
    return [_to_uint8(c + BACKGROUND_GREY * (1 - a)) for c, a in zip(colours, opacity, strict=True)]


def principal_components(rows_TD: Tensor, num_components: int) -> Tensor:
    """Projections [T, num_components] of rows on their leading principal axes, from the largest variance down.

    An axis has no sign of its own; here its largest entry is positive, so that a picture can be made twice. Components
    beyond the rank are 0. Exact, by an SVD: randomised ones draw from the global generator.
    """
    centered = rows_TD - rows_TD.mean(dim=0)
    if not torch.isfinite(centered).all():
        raise ValueError("the patch tokens are not finite: the encoder's weights or its precision are broken")
    left, scales, axes = torch.linalg.svd(centered, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))[:, 0]
    projections = (left * scales * torch.sign(largest))[:, :num_components]
    return F.pad(projections, (0, num_components - projections.shape[1]))


def _stretched(values_T3: Tensor) -> Tensor:
    """Each column to [0, 1] from its 1st to its 99th percentile; a constant column to the middle."""
    if len(values_T3) == 0:
        return values_T3
    low, high = torch.quantile(values_T3, torch.tensor([0.01, 0.99], dtype=values_T3.dtype), dim=0)
    span = high - low
    stretched = (values_T3 - low) / span.clamp_min(1e-12)
    return torch.where(span > 1e-9, stretched, torch.full_like(stretched, 0.5)).clamp(0, 1)


def _enlarged(maps_BGGC: Tensor, size_px: int) -> Tensor:
    maps_BCGG = maps_BGGC.permute(0, 3, 1, 2)
    return F.interpolate(maps_BCGG, size=(size_px, size_px), mode="bicubic", align_corners=False).clamp(0, 1)


def _to_uint8(image_3SS: Tensor) -> np.ndarray:
    return (image_3SS.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
