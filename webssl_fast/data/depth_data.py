"""NYU depth v2 as BTS lays it out, and what its linear protocol does to an image.

    nyu_train.txt, nyu_test.txt    lines "image depth focal_length", paths relative to the folder of the two lists
    *.png                          depth in millimetres, 16 bits; 0 where none was measured

Sources: Silberman et al. 2012; lists and sampling of Lee et al. 2019 (BTS), which the
Monocular-Depth-Estimation-Toolbox and DINOv2's depth evaluation (arXiv 2304.07193, App. B) use.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import DepthConfig
from webssl_fast.data.color_distortion import gamma_brightness_color
from webssl_fast.data.complete_sets import check_complete
from webssl_fast.data.dense_loading import read_image, read_pixels
from webssl_fast.data.dense_transforms import cut, normalized, random_corner, rotated
from webssl_fast.errors import UserError
from webssl_fast.records import DenseSample

FULL_SIZES = {"train": 24_231, "test": 654}
MILLIMETRES_PER_METRE = 1000


@dataclass(frozen=True)
class DepthSplit:
    """Image and depth files of one split, in the order of its list."""

    pairs: tuple[tuple[Path, Path], ...]
    is_complete: bool

    @classmethod
    def open(cls, source: str | Path, split: str, allow_subset: bool) -> DepthSplit:
        """Every pair of nyu_{split}.txt ("train", "test").

        Raises UserError where the list or a file of it is missing, a line cannot be read, or, unless `allow_subset`,
        the list is shorter or longer than the whole set's; it says which, how many were found, and the way out.
        """
        root, expected = Path(source).expanduser(), FULL_SIZES[split]
        path = root / f"nyu_{split}.txt"
        if not path.is_file():
            raise UserError(
                f"eval.depth.source: no file {path}. Name the folder that holds nyu_train.txt and nyu_test.txt, with "
                "lines 'image depth focal_length' whose paths start there"
            )
        pairs = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) < 2:
                raise UserError(f"{path}, line {number}: expected 'image depth focal_length', got {line!r}")
            # In the published lists some paths begin with a slash and still start at the folder.
            pairs.append((root / words[0].lstrip("/"), root / words[1].lstrip("/")))
        missing = [file for pair in pairs for file in pair if not file.is_file()]
        if missing or not pairs:
            named = f"{len(missing)} files of it are missing, the first: {missing[0]}" if missing else "it is empty"
            raise UserError(
                f"eval.depth.source: {path} lists {len(pairs):,} pairs and {named}. The whole set has {expected:,}"
            )
        found = f"{path} lists {len(pairs):,} pairs"
        is_complete = check_complete(
            "eval.depth", split, found, len(pairs), expected, "NYUd v2", allow_subset=allow_subset
        )
        return cls(tuple(pairs), is_complete)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, H, W] and depths fp32 [H, W] in metres, 0 where none was measured."""
        image_path, depth_path = self.pairs[index]
        image, samples = read_image(image_path), read_pixels(depth_path)
        # Pillow gives 16-bit PNGs as int32 ("I") or uint16 ("I;16"); 8-bit files are something else than millimetres.
        if samples.dtype not in (np.uint16, np.int32) or samples.shape != image.shape[1:]:
            raise UserError(
                f"{depth_path} must be a 16-bit PNG of millimetres, of {image.shape[1]}x{image.shape[2]} as its image, "
                f"got {samples.dtype} {list(samples.shape)}"
            )
        return image, torch.from_numpy(samples.astype(np.float32) / MILLIMETRES_PER_METRE)


@dataclass(frozen=True)
class DepthTransforms:
    """What training and testing make of a split's images, for an encoder's mean and std."""

    config: DepthConfig
    mean: Sequence[float]
    std: Sequence[float]

    def training_crop(self, image: Tensor, depth: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """fp32 [3, *crop] and fp32 [*crop]: cut the frame off, turn, flip, crop, colour, normalise."""
        if self.config.train_box_px is not None:
            top, bottom, left, right = self.config.train_box_px
            image, depth = image[:, top:bottom, left:right], depth[top:bottom, left:right]
        crop = self.config.crop_px
        if image.shape[-2] < crop[0] or image.shape[-1] < crop[1]:
            raise UserError(
                f"eval.depth.crop_px is {crop[0]}x{crop[1]}, but an image has {image.shape[-2]}x{image.shape[-1]} "
                "pixels after eval.depth.train_box_px; lower one of them"
            )
        if rng.random() < 0.5:
            limit = self.config.max_rotation_degrees
            image, depth = rotated(image, depth, rng.uniform(-limit, limit))
        if rng.random() < 0.5:
            image, depth = image.flip(-1), depth.flip(-1)
        corner = random_corner(depth.shape, crop, rng)
        image, depth = cut(image, corner, crop), cut(depth, corner, crop)
        if rng.random() < 0.5:
            image = gamma_brightness_color(image, rng)
        return normalized(image, self.mean, self.std), depth.contiguous()

    def test_sample(self, index: int, image: Tensor, depth: Tensor) -> DenseSample:
        return DenseSample(index, image, (normalized(image, self.mean, self.std),), depth)
