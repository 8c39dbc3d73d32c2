"""Evaluation crops against Pillow and torch, for each kind of preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image

from webssl_fast.data.crops import evaluation_crop
from webssl_fast.records import Preprocessing

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def photo(height, width):
    """Smooth, so that filters and rounding differ by little and geometry by much."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 9) * np.cos(y / 7), np.sin(y / 5), np.cos((x + y) / 11)]
    return np.uint8(np.stack(channels, -1) * 100 + 128)


def by_pillow(pixels, p: Preprocessing):
    """Resize, then crop, in two steps, as torchvision and transformers do."""
    image = Image.fromarray(pixels)
    W, H = image.size
    size = (p.resize_px, p.resize_px)
    if p.keep_aspect:
        size = (p.resize_px, int(p.resize_px * H / W)) if W <= H else (int(p.resize_px * W / H), p.resize_px)
    image = image.resize(size, Image.Resampling[p.interpolation.upper()])
    left, top = round((size[0] - p.crop_px) / 2), round((size[1] - p.crop_px) / 2)
    image = image.crop((left, top, left + p.crop_px, top + p.crop_px))
    scaled = np.asarray(image, np.float64) / 255
    return torch.from_numpy(((scaled - p.mean) / p.std).transpose(2, 0, 1)).float()


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("resize_px", "crop_px"), [(32, 28), (28, 28), (70, 56)])
def test_follows_the_preprocessing(resize_px, crop_px, interpolation, keep_aspect):
    preprocessing = Preprocessing(resize_px, crop_px, interpolation, MEAN, STD, keep_aspect)
    photos = [photo(60, 90), photo(130, 50), photo(40, 40)]
    crops = evaluation_crop([torch.from_numpy(p) for p in photos], preprocessing, dtype=torch.float32, num_threads=2)
    assert crops.shape == (3, 3, crop_px, crop_px) and crops.is_contiguous()
    for crop, pixels in zip(crops, photos, strict=True):
        apart = (crop - by_pillow(pixels, preprocessing)).abs() * torch.tensor(STD)[:, None, None] * 255
        assert apart.mean() < 0.6, "in levels of 255"
        assert apart.max() < 6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_batch_may_be_empty(interpolation):
    crops = evaluation_crop([], Preprocessing(32, 28, interpolation), dtype=torch.bfloat16, num_threads=1)
    assert crops.shape == (0, 3, 28, 28) and crops.dtype == torch.bfloat16
