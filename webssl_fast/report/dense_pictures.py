"""Predicted maps beside the truth, as PNG files that the report shows.

    {name}_{index}_image.png, {name}_{index}_truth.png, {name}_{index}_prediction.png

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

IGNORED = 255
KINDS = ("image", "truth", "prediction")
MAX_SIDE_PX = 480  # of a picture in the report
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


@dataclass(frozen=True)
class DensePicture:
    """An image and its two maps, uint8 [H, W, 3] each, their longer side at most MAX_SIDE_PX."""

    index: int
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def load_pictures(folder: Path, name: str, notes: list[str]) -> list[DensePicture]:
    """Those that `save_segmentation` or `save_depth` left, in order of their index. Files that are missing or broken
    are told of in `notes`, and their picture is left out."""
    names = (re.fullmatch(rf"{name}_(\d+)_image\.png", path.name) for path in folder.glob(f"{name}_*_image.png"))
    pictures = []
    for index in sorted(int(found[1]) for found in names if found):
        paths = [folder / f"{name}_{index}_{kind}.png" for kind in KINDS]
        try:
            pictures.append(DensePicture(index, *(_load(path) for path in paths)))
        except ValueError as error:
            run = folder.resolve().parent.name
            notes.append(f"A picture of {run}/eval is left out: {error}.")
    return pictures


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
    for kind, pixels in zip(KINDS, (image, truth, predicted), strict=True):
        Image.fromarray(pixels).save(folder / f"{name}_{index}_{kind}.png")


def _load(path: Path) -> np.ndarray:
    """Maps are cut down by picking pixels: a mixture of two colours would be a third class or depth."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, SyntaxError) as error:  # the latter is Pillow's word for a broken PNG
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise ValueError(f"{path.name} {reason}") from error
    picture.thumbnail(
        (MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS if "_image" in path.name else Image.Resampling.NEAREST
    )
    return np.asarray(picture)
