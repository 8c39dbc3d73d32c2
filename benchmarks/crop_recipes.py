"""The crops of DINOv2 that the benchmarks make: 2 of 224 and 8 of 98 pixels, augmented as published."""

from __future__ import annotations

from dataclasses import replace

from webssl_fast.records import CropRecipe

JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
COLORS = CropRecipe(
    size_px=0,
    flip_probability=0.5,
    jitter_probability=0.8,
    brightness=JITTER[0],
    contrast=JITTER[1],
    saturation=JITTER[2],
    hue=JITTER[3],
    grayscale_probability=0.2,
    blur_sigma=(0.1, 2.0),
    solarize_threshold=128,
)
GLOBAL, LOCAL = replace(COLORS, size_px=224, scale=(0.32, 1.0)), replace(COLORS, size_px=98, scale=(0.05, 0.32))
RECIPES = [
    replace(GLOBAL, blur_probability=0.0),
    replace(GLOBAL, blur_probability=0.9, solarize_probability=0.2),
    *[replace(LOCAL, blur_probability=0.5)] * 8,
]
SIZES_PX = [recipe.size_px for recipe in RECIPES]
