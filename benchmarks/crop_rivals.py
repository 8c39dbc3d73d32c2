"""What bench_multi_crop compares with: torchvision on Pillow images and on GPU tensors, albumentations on OpenCV.

Each side is a function that makes the ten crops of `RECIPES` of every image. The packages are optional: a missing one
is an ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.crop_recipes import JITTER, RECIPES
from webssl_fast.ops import crop_parameters as params
from webssl_fast.ops.multi_crop import IMAGENET_MEAN, IMAGENET_STD
from webssl_fast.records import CropRecipe


def torchvision_chains(api: str = "v1") -> list[Callable[[Image.Image], Tensor]]:
    """The transforms that make each crop of `RECIPES` of a Pillow image, by torchvision's first API, as DINOv2's code
    uses it, or by its second one ("v2"), as DINOv3's does."""
    import_torchvision()
    if api == "v1":
        from torchvision import transforms as T

        to_float = [T.ToTensor()]
    else:
        from torchvision.transforms import v2 as T

        to_float = [T.ToImage(), T.ToDtype(torch.float32, scale=True)]

    def chain(recipe: CropRecipe) -> T.Compose:
        blur = T.GaussianBlur(9, sigma=recipe.blur_sigma)
        return T.Compose(
            [
                T.RandomResizedCrop(recipe.size_px, scale=recipe.scale, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(recipe.flip_probability),
                T.RandomApply([T.ColorJitter(*JITTER)], p=recipe.jitter_probability),
                T.RandomGrayscale(recipe.grayscale_probability),
                T.RandomApply([blur], p=recipe.blur_probability),
                T.RandomSolarize(recipe.solarize_threshold, p=recipe.solarize_probability),
                *to_float,
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    return [chain(recipe) for recipe in RECIPES]


def torchvision_side(images: Sequence[np.ndarray]) -> Callable[[], object]:
    chains = torchvision_chains()
    pillow_images = [Image.fromarray(image) for image in images]
    return lambda: [crop(image) for image in pillow_images for crop in chains]


def torchvision_gpu_side(images: Sequence[Tensor]) -> Callable[[], object]:
    """torchvision's transforms on tensors of the GPU, one image and crop at a time, as its v2 API offers them."""
    import_torchvision()
    from torchvision.transforms import v2 as T

    def chain(recipe: CropRecipe) -> T.Compose:
        return T.Compose(
            [
                T.RandomResizedCrop(
                    recipe.size_px, scale=recipe.scale, interpolation=T.InterpolationMode.BICUBIC, antialias=True
                ),
                T.RandomHorizontalFlip(recipe.flip_probability),
                T.RandomApply([T.ColorJitter(*JITTER)], p=recipe.jitter_probability),
                T.RandomGrayscale(recipe.grayscale_probability),
                T.RandomApply([T.GaussianBlur(9, sigma=recipe.blur_sigma)], p=recipe.blur_probability),
                T.RandomSolarize(recipe.solarize_threshold, p=recipe.solarize_probability),
                T.ToDtype(torch.float32, scale=True),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    chains = [chain(recipe) for recipe in RECIPES]
    planar_images = [image.permute(2, 0, 1).contiguous() for image in images]
    return lambda: [crop(image) for image in planar_images for crop in chains]


def albumentations_side(images: Sequence[np.ndarray]) -> Callable[[], object]:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)
    around_one = [(1 - strength, 1 + strength) for strength in JITTER[:3]]

    def chain(recipe: CropRecipe) -> A.Compose:
        size = (recipe.size_px, recipe.size_px)
        threshold = recipe.solarize_threshold / 255
        return A.Compose(
            [
                A.RandomResizedCrop(size, scale=recipe.scale, interpolation=cv2.INTER_CUBIC),
                A.HorizontalFlip(p=recipe.flip_probability),
                A.ColorJitter(*around_one, (-JITTER[3], JITTER[3]), p=recipe.jitter_probability),
                A.ToGray(p=recipe.grayscale_probability),
                A.GaussianBlur(blur_limit=(9, 9), sigma_limit=recipe.blur_sigma, p=recipe.blur_probability),
                A.Solarize(threshold_range=(threshold, threshold), p=recipe.solarize_probability),
                A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ToTensorV2(),
            ]
        )

    chains = [chain(recipe) for recipe in RECIPES]
    return lambda: [crop(image=image)["image"] for image in images for crop in chains]


def import_torchvision() -> None:
    """Imports torchvision, also PyPI's beside a CPU build of torch.

    There its compiled operators do not load, and its import fails over the schemas that they would have defined. The
    transforms on Pillow images call none of them, so empty schemas are enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def torchvision_crop(image: Image.Image, row_P: list[float], size_px: int) -> Image.Image:
    """The crop that torchvision makes from one row of `multi_crop`'s parameters."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    top, left, height, width = (round(side) for side in row_P[params.TOP : params.WIDTH + 1])
    image = F.resized_crop(image, top, left, height, width, [size_px, size_px], InterpolationMode.BICUBIC)
    if row_P[params.FLIP]:
        image = F.hflip(image)
    steps = {
        params.BRIGHTNESS_STEP: (F.adjust_brightness, row_P[params.BRIGHTNESS]),
        params.CONTRAST_STEP: (F.adjust_contrast, row_P[params.CONTRAST]),
        params.SATURATION_STEP: (F.adjust_saturation, row_P[params.SATURATION]),
        params.HUE_STEP: (F.adjust_hue, row_P[params.HUE]),
    }
    for step in row_P[params.ORDER : params.ORDER + 4]:
        adjust, factor = steps[int(step)]
        if factor != (0 if step == params.HUE_STEP else 1):
            image = adjust(image, factor)
    if row_P[params.GRAYSCALE]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if row_P[params.BLUR_SIGMA]:
        image = F.gaussian_blur(image, [9, 9], [row_P[params.BLUR_SIGMA]] * 2)
    if row_P[params.SOLARIZE_THRESHOLD] != params.NO_SOLARIZE:
        image = F.solarize(image, row_P[params.SOLARIZE_THRESHOLD])
    return image
