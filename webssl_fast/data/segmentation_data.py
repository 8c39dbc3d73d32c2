"""ADE20K as its makers lay it out, and what its linear protocol does to an image.

    ADEChallengeData2016/images/{training,validation}/*.jpg
    ADEChallengeData2016/annotations/{training,validation}/*.png    0: nothing that counts, 1 to 150: the class

Source: Zhou et al. 2017, "Scene Parsing through ADE20K Dataset"; augmentation as MMSegmentation 0.27 has it, which
DINOv2's linear evaluation (arXiv 2304.07193, App. B) runs on.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import SegmentationConfig
from webssl_fast.data.color_distortion import photometric_distortion
from webssl_fast.data.complete_sets import check_complete
from webssl_fast.data.dense_loading import read_image, read_pixels
from webssl_fast.data.dense_transforms import (
    cut,
    fitted_size,
    normalized,
    padded,
    random_corner,
    resized,
    resized_labels,
)
from webssl_fast.errors import UserError
from webssl_fast.records import DenseSample

FULL_SIZES = {"training": 20_210, "validation": 2_000}
IGNORED = 255
MAX_CROP_DRAWS = 10


@dataclass(frozen=True)
class SegmentationSplit:
    """Image and annotation files of one split, by name."""

    pairs: tuple[tuple[Path, Path], ...]
    num_classes: int
    is_complete: bool

    @classmethod
    def open(cls, source: str | Path, split: str, num_classes: int, allow_subset: bool) -> SegmentationSplit:
        """Every image of `split` ("training", "validation") with its annotation.

        Raises UserError where a folder is missing, an image has no annotation, or, unless `allow_subset`, images are
        fewer or more than the whole set has; it says which, how many were found, and the way out.
        """
        root, expected = Path(source).expanduser(), FULL_SIZES[split]
        folders = [root / kind / split for kind in ("images", "annotations")]
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(
                f"eval.segmentation.source: no folder {' and no '.join(missing)}. Name the folder that holds "
                f"images/{{training,validation}} and annotations/{{training,validation}} (ADEChallengeData2016)"
            )
        images = sorted(path for path in folders[0].iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        annotations = {path.stem: path for path in folders[1].iterdir() if path.suffix.lower() == ".png"}
        without = [image.name for image in images if image.stem not in annotations]
        found = f"{len(images)} images in {folders[0]} and {len(annotations)} annotations in {folders[1]}"
        if not images or without:
            named = f"; {len(without)} images have no annotation, the first: {without[0]}" if without else ""
            raise UserError(
                f"eval.segmentation.source: found {found}{named}. The whole set has {expected:,} of each in {split}"
            )
        is_complete = check_complete(
            "eval.segmentation", split, f"found {found}", len(images), expected, "ADE20K", allow_subset=allow_subset
        )
        return cls(tuple((image, annotations[image.stem]) for image in images), num_classes, is_complete)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, H, W] and labels uint8 [H, W], classes from 0, 255 where none counts."""
        image_path, label_path = self.pairs[index]
        image, labels = read_image(image_path), torch.from_numpy(read_pixels(label_path))
        if labels.dtype != torch.uint8 or labels.shape != image.shape[1:]:
            raise UserError(
                f"{label_path} must be 8-bit with one value a pixel, of {image.shape[1]}x{image.shape[2]} as its "
                f"image, got {labels.dtype} {list(labels.shape)}; the scene parsing set (ADEChallengeData2016) has "
                "such files, the full ADE20K release has not"
            )
        if (highest := int(labels.max())) > self.num_classes:
            raise UserError(
                f"{label_path} holds class {highest}, but eval.segmentation.num_classes is {self.num_classes}; allowed "
                "are 1 to that number, and 0 for what does not count"
            )
        return image, labels - 1  # uint8: 0, which counts for nothing, becomes 255


@dataclass(frozen=True)
class SegmentationTransforms:
    """What training and testing make of a split's images, for an encoder's mean and std."""

    config: SegmentationConfig
    mean: Sequence[float]
    std: Sequence[float]

    def training_crop(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """fp32 [3, crop, crop] and int64 [crop, crop]: scale, crop, flip, colour, normalise, pad (0 and 255)."""
        crop = (self.config.crop_px, self.config.crop_px)
        size = self._size(image, rng.uniform(*self.config.train_scales))
        image, labels = resized(image, size), resized_labels(labels, size)
        for _ in range(1 + MAX_CROP_DRAWS):
            corner = random_corner(size, crop, rng)
            if _is_mixed(cut(labels, corner, crop), self.config.max_class_share):
                break
        image, labels = cut(image, corner, crop), cut(labels, corner, crop)
        if rng.random() < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        image = normalized(photometric_distortion(image, rng), self.mean, self.std)
        return padded(image, crop, 0.0), padded(labels, crop, IGNORED).long()

    def test_sample(self, index: int, image: Tensor, labels: Tensor) -> DenseSample:
        views = tuple(
            normalized(resized(image, self._size(image, scale)), self.mean, self.std)
            for scale in self.config.test_scales
        )
        return DenseSample(index, image, views, labels.long())

    def _size(self, image: Tensor, scale: float) -> tuple[int, int]:
        longest = self.config.max_long_side_px
        return fitted_size(
            image.shape[-2],
            image.shape[-1],
            int(self.config.short_side_px * scale),
            math.inf if longest is None else int(longest * scale),
        )


def _is_mixed(labels: Tensor, max_share: float) -> bool:
    """Two classes or more, none of which has `max_share` of the pixels that count."""
    counts = torch.bincount(labels.flatten(), minlength=256)[:IGNORED]
    return int((counts > 0).sum()) > 1 and int(counts.max()) < max_share * int(counts.sum())
