"""The few objects that cross layers.

Dimensions: B images, V crops, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CropRecipe:
    """How one crop of an image is drawn. Probabilities in [0, 1]; sizes in pixels; defaults leave the image as it is.

    Strengths follow torchvision's ColorJitter: a factor of brightness, contrast and saturation is drawn from
    [max(0, 1-s), 1+s], the hue shift from [-hue, hue] (in turns), and the four are applied in random order.
    """

    size_px: int
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    jitter_probability: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0
    solarize_threshold: int = 128

    def check(self, name: str) -> None:
        """Raises ValueError that names the field, where a recipe cannot be drawn from."""
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name}.scale must be (low, high) with 0 < low <= high <= 1, got {self.scale}")
        for key in ("ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}.{key} must be (low, high) with 0 < low <= high, got {getattr(self, key)}")
        for key in ("flip", "jitter", "grayscale", "blur", "solarize"):
            probability = getattr(self, f"{key}_probability")
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}.{key}_probability must be in [0, 1], got {probability}")
        for key in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{name}.{key} must not be negative, got {getattr(self, key)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"{name}.hue must be in [0, 0.5] turns, got {self.hue}")


@dataclass
class Batch:
    """One micro-batch of one rank: on the host, save for crops that were made on a GPU.

    positions   int64 [B]: place of each image in the global order, the key of every random draw that concerns it
    sample_ids  int64 [B]: the sample that stands there (its replacement, where the file could not be decoded)
    crops       one tensor [V, B, 3, S, S] for each group of crops of equal size, in the order of the recipes; none
                where a method has no recipes
    labels      int64 [B], -1 where a sample has none
    captions    the text of each sample, where the method asks for them; they stay on the host
    host        what the method or its loader made of this batch on the host (masks, tokens): Tensors move to the device
    num_bad     samples that had to be replaced
    """

    positions: np.ndarray
    sample_ids: np.ndarray
    crops: list[Tensor]
    labels: Tensor
    host: dict[str, Tensor] = field(default_factory=dict)
    num_bad: int = 0
    captions: list[str] | None = None

    @property
    def num_images(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Batch:
        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return Batch(
            self.positions,
            self.sample_ids,
            [move(c) for c in self.crops],
            move(self.labels),
            {k: move(v) for k, v in self.host.items()},
            self.num_bad,
            self.captions,
        )

    def pinned(self) -> Batch:
        """What is on the host in page-locked memory: a copy from any other makes the host wait for the GPU."""

        def pin(t: Tensor) -> Tensor:
            return t.pin_memory() if t.device.type == "cpu" else t

        return Batch(
            self.positions,
            self.sample_ids,
            [pin(c) for c in self.crops],
            pin(self.labels),
            {k: pin(v) for k, v in self.host.items()},
            self.num_bad,
            self.captions,
        )


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects of an image: RGB in [0, 1], resized, cut to its central square, (x - mean) / std.

    resize_px      length of the shorter side after the resize; where `keep_aspect` is False, of both sides
    crop_px        side of the central square that is cut out then; at most resize_px
    interpolation  Pillow's filter of that name, with its antialiasing
    keep_aspect    False: the image is squeezed into a square (SigLIP, CLIP models of some makers)
    """

    resize_px: int
    crop_px: int
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    keep_aspect: bool = True

    def at(self, crop_px: int) -> Preprocessing:
        """The same for another size of crop; the resize keeps its ratio to it."""
        return replace(self, crop_px=crop_px, resize_px=round(crop_px * self.resize_px / self.crop_px))


@dataclass(frozen=True)
class Features:
    """What an encoder says about a batch of crops.

    cls_token     [B, D]; for a network without a class token what stands in its place (models.encoders.Encoder)
    patch_tokens  [B, N, D], row-major over the patch grid
    """

    cls_token: Tensor
    patch_tokens: Tensor


@dataclass(frozen=True)
class DenseSample:
    """An image whose every pixel is to be judged.

    index   its place in the data set
    image   uint8 [3, H, W], as it was read
    views   fp32 [3, h, w] each: the image at every scale that it is tested at, normalised for the encoder
    target  [H, W]: int64 classes, 255 where none counts; or fp32 depths in metres, 0 where none was measured
    """

    index: int
    image: Tensor
    views: tuple[Tensor, ...]
    target: Tensor


@dataclass(frozen=True)
class EvalResult:
    """Scores of one evaluation, e.g. EvalResult("knn", {"cls_top1": 0.71, "patch_mean_top1": 0.78}).

    data  what was judged, beside its config: numbers of images, whether the set is whole
    """

    name: str
    scores: dict[str, float]
    data: Mapping[str, str | int | bool] = field(default_factory=dict)
