"""Predicted maps beside the truth, as PNG files that the report shows.

    {name}_{index}_image.png, {name}_{index}_truth.png, {name}_{index}_prediction.png

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image

IGNORED = 255
# From near to far: colours of even steps in lightness, so that the picture also reads in grey.
_DEPTH_COLORS = np.array([(252, 253, 191), (254, 159, 109), (222, 73, 104), (140, 41, 129), (59, 15, 112), (0, 0, 4)])


def save_segmentation(
    folder: Path, index: int, image_HW3: np.ndarray, truth: np.ndarray, predicted: np.ndarray
) -> None:
    """uint8 image, and classes [H, W]; 255 is black in both maps, since what does not count need not be predicted."""
    shown = np.where(truth == IGNORED, IGNORED, predicted)
    _save(folder, "segmentation", index, image_HW3, class_colors(truth), class_colors(shown))


def save_depth(folder: Path, index: int, image_HW3: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """uint8 image, and depths [H, W] in one unit, 0 where unknown; both maps share the colours of the truth's range."""
    known = truth[truth > 0]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    _save(folder, "depth", index, image_HW3, depth_colors(truth, low, high), depth_colors(predicted, low, high))


def class_colors(classes_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: a colour a class (steps of the golden ratio around the hue circle), black for 255."""
    hues = (np.arange(IGNORED) * 0.6180339887) % 1.0
    palette = [colorsys.hsv_to_rgb(hue, 0.55 + 0.15 * (i % 3), 0.95 - 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return (np.array([*palette, (0, 0, 0)]) * 255).round().astype(np.uint8)[classes_HW]


def depth_colors(depth_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 [H, W, 3]: light where near, dark where far, mid-grey where the depth is 0."""
    place = np.clip((depth_HW - low) / max(high - low, 1e-9), 0, 1) * (len(_DEPTH_COLORS) - 1)
    steps = np.arange(len(_DEPTH_COLORS))
    colors = np.stack([np.interp(place, steps, channel) for channel in _DEPTH_COLORS.T], axis=-1)
    return np.where((depth_HW > 0)[..., None], colors, 128).round().astype(np.uint8)


def _save(folder: Path, name: str, index: int, image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, pixels in (("image", image), ("truth", truth), ("prediction", predicted)):
        Image.fromarray(pixels).save(folder / f"{name}_{index}_{kind}.png")
