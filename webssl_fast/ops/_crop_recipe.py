"""A CropRecipe as the kernels of multi_crop read it."""

from __future__ import annotations

import math

from webssl_fast.records import CropRecipe


def recipe_row(recipe: CropRecipe) -> list[float]:
    """The fields of `Recipe` in csrc/multi_crop/multi_crop_math.h, in order."""
    return [
        *recipe.scale, *recipe.ratio, recipe.flip_probability,
        recipe.jitter_probability, recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue,
        recipe.grayscale_probability, recipe.blur_probability, *recipe.blur_sigma,
        recipe.solarize_probability, recipe.solarize_threshold,
    ]  # fmt: skip


def check_recipe(recipe: CropRecipe, name: str) -> None:
    """Raises ValueError that names the field, where a recipe cannot be drawn from."""
    low, high = recipe.scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"{name}.scale must be (low, high) with 0 < low <= high <= 1, got {recipe.scale}")
    for field in ("ratio", "blur_sigma"):
        low, high = getattr(recipe, field)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{name}.{field} must be (low, high) with 0 < low <= high, got {getattr(recipe, field)}")
    for field in ("flip", "jitter", "grayscale", "blur", "solarize"):
        probability = getattr(recipe, f"{field}_probability")
        if not 0 <= probability <= 1:
            raise ValueError(f"{name}.{field}_probability must be in [0, 1], got {probability}")
    for field in ("brightness", "contrast", "saturation"):
        if not 0 <= getattr(recipe, field) < math.inf:
            raise ValueError(f"{name}.{field} must not be negative, got {getattr(recipe, field)}")
    if not 0 <= recipe.hue <= 0.5:
        raise ValueError(f"{name}.hue must be in [0, 0.5] turns, got {recipe.hue}")
