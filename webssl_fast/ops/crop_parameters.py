"""What `multi_crop` does to each crop, as rows of numbers: drawn for training, computed for evaluation, checked.

A row of parameters_BVP is all that a crop depends on besides its image, so draws can be tested, logged and replayed.
The draws share their formulas with C++ (csrc/multi_crop/multi_crop_math.h).

Dimensions: B images, V crops of each image, P parameters of a crop, S crop size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from webssl_fast.ops._library import C
from webssl_fast.records import CropRecipe

# Columns of parameters_BVP; csrc/multi_crop/multi_crop_math.h has the same list.
TOP, LEFT, HEIGHT, WIDTH = 0, 1, 2, 3  # the box, in pixels of the image; fractions are allowed
READ_OUTSIDE = 4  # 1: the filter may read beyond the box (Pillow's resize(box=)); 0: crop first, then resize
FLIP = 5  # 1: mirrored left to right
BRIGHTNESS, CONTRAST, SATURATION = 6, 7, 8  # factors, 1 leaves the image as it is
HUE = 9  # shift in turns, applied in whole 255ths as torchvision does; 0 leaves the image as it is
ORDER = 10  # four columns: the places below, in the order in which they are applied
GRAYSCALE = 14  # 1: replaced by its luma
BLUR_SIGMA = 15  # in pixels of the crop, 0 for none
SOLARIZE_THRESHOLD = 16  # pixels (0..255) from here on are inverted; NO_SOLARIZE for none
NUM_PARAMETERS = 17

BRIGHTNESS_STEP, CONTRAST_STEP, SATURATION_STEP, HUE_STEP = 0, 1, 2, 3  # values of the ORDER columns
NO_SOLARIZE = 256.0


def draw_crop_parameters(
    image_sizes_B2: Tensor, recipes: Sequence[CropRecipe], seed: int, positions_B: Tensor
) -> Tensor:
    """Draws the parameters of every crop of every image: fp32 [B, V, P], columns as the constants of this module.

    A row is a pure function of (seed, position, crop index) and of that image's size and recipe: it does not depend on
    the other images of the batch. Each operation has a Philox4x32-10 counter of its own, (position low and high word,
    crop index, operation number) under the key `seed`, so a recipe that turns an operation off moves no other draw.

    Boxes follow torchvision's RandomResizedCrop (ten tries of a uniform area and a log-uniform aspect ratio with
    integer sides, then the largest centered box of an allowed ratio); factors follow its ColorJitter.

    image_sizes_B2  int32 [B, 2], (height, width) in pixels, CPU
    recipes         one for each crop
    seed            0 <= seed < 2**64
    positions_B     int64 [B], place of each image in the global order, CPU
    Raises ValueError for anything else.
    """
    _check_image_sizes(image_sizes_B2)
    num_images = image_sizes_B2.shape[0]
    if positions_B.dtype != torch.int64 or positions_B.shape != (num_images,) or positions_B.device.type != "cpu":
        raise ValueError(f"positions_B must be int64 [{num_images}] on the CPU, got {describe(positions_B)}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    for index, recipe in enumerate(recipes):
        recipe.check(f"recipes[{index}]")
    recipes_VR = torch.tensor([_recipe_row(recipe) for recipe in recipes], dtype=torch.float64)
    image_sizes_B2, positions_B = image_sizes_B2.contiguous(), positions_B.contiguous()
    parameters_BVP = torch.empty(num_images, len(recipes), NUM_PARAMETERS)
    C.draw_crop_parameters(
        image_sizes_B2.data_ptr(), recipes_VR.data_ptr(), seed, positions_B.data_ptr(),
        num_images, len(recipes), parameters_BVP.data_ptr(),
    )  # fmt: skip
    return parameters_BVP


def center_crop_parameters(image_sizes_B2: Tensor, size_px: int, resize_px: int | None = None) -> Tensor:
    """Parameters of the deterministic evaluation crop, fp32 [B, 1, P]: no random draw, colors as they are.

    The same pixels as resizing the shorter side to `resize_px` (default: size_px * 256 / 224) and cutting the central
    size_px x size_px square, as torchvision's Resize and CenterCrop place it, but as ONE resampling: the box is that
    square traced back to the image, so sides may be fractions of a pixel, and the filter reads around it.

    image_sizes_B2  int32 [B, 2], (height, width) in pixels, CPU
    Raises ValueError where resize_px < size_px.
    """
    _check_image_sizes(image_sizes_B2)
    resize_px = round(size_px * 256 / 224) if resize_px is None else resize_px
    if size_px < 1 or resize_px < size_px:
        raise ValueError(f"need 1 <= size_px <= resize_px, got size_px={size_px}, resize_px={resize_px}")
    rows = []
    for height, width in image_sizes_B2.tolist():
        shorter = min(height, width)
        box = []
        for side in (height, width):
            resized = resize_px if side == shorter else int(resize_px * side / shorter)
            box.append((round((resized - size_px) / 2) * side / resized, size_px * side / resized))
        (top, box_height), (left, box_width) = box
        rows.append([top, left, box_height, box_width])
    parameters_BVP = torch.zeros(len(rows), 1, NUM_PARAMETERS)
    if rows:
        parameters_BVP[:, 0, TOP : WIDTH + 1] = torch.tensor(rows)
    parameters_BVP[..., READ_OUTSIDE] = 1
    parameters_BVP[..., BRIGHTNESS : SATURATION + 1] = 1
    parameters_BVP[..., ORDER : ORDER + 4] = torch.arange(4.0)
    parameters_BVP[..., SOLARIZE_THRESHOLD] = NO_SOLARIZE
    return parameters_BVP


def check_parameters(parameters_BVP: Tensor, images: Sequence[Tensor], sizes_px: Sequence[int]) -> None:
    """Raises ValueError that says what is wrong with these arguments of `multi_crop`, and in which crop."""
    if any(size_px < 1 for size_px in sizes_px):
        raise ValueError(f"sizes_px must be positive, got {list(sizes_px)}")
    x, shape = parameters_BVP, (len(images), len(sizes_px), NUM_PARAMETERS)
    if x.dtype != torch.float32 or tuple(x.shape) != shape or x.device.type != "cpu":
        raise ValueError(
            f"parameters_BVP must be float32 {list(shape)} (images, crops, parameters) on the CPU, got {describe(x)}"
        )
    if x.numel() == 0:
        return
    image_ends_B12 = torch.tensor([image.shape[:2] for image in images])[:, None, :]
    begins, lengths = x[..., TOP : LEFT + 1], x[..., HEIGHT : WIDTH + 1]
    rounding_px = 1e-6 * image_ends_B12
    requirements = (
        (x.isfinite().all(-1), "finite values"),
        (((begins >= 0) & (lengths > 0)).all(-1), "boxes with top, left >= 0 and height, width > 0"),
        ((begins + lengths <= image_ends_B12 + rounding_px).all(-1), "boxes inside their image"),
        ((x[..., BRIGHTNESS : SATURATION + 1] >= 0).all(-1), "brightness, contrast and saturation factors >= 0"),
        (x[..., HUE].abs() <= 1, "a hue shift in [-1, 1] turns"),
        ((x[..., ORDER : ORDER + 4].sort(-1).values == torch.arange(4)).all(-1), "an order that is a permutation"),
        (x[..., BLUR_SIGMA] >= 0, "a blur sigma >= 0"),
    )
    for holds_BV, what in requirements:
        if not holds_BV.all():
            image, crop = (~holds_BV).nonzero()[0].tolist()
            raise ValueError(
                f"parameters_BVP needs {what}; crop {crop} of image {image} "
                f"({list(images[image].shape[:2])} pixels) has {x[image, crop].tolist()}"
            )


def _recipe_row(recipe: CropRecipe) -> list[float]:
    """The fields of `Recipe` in csrc/multi_crop/multi_crop_math.h, in order."""
    return [
        *recipe.scale, *recipe.ratio, recipe.flip_probability,
        recipe.jitter_probability, recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue,
        recipe.grayscale_probability, recipe.blur_probability, *recipe.blur_sigma,
        recipe.solarize_probability, recipe.solarize_threshold,
    ]  # fmt: skip


def describe(x: Tensor) -> str:
    """dtype, shape and device, for messages."""
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def _check_image_sizes(image_sizes_B2: Tensor) -> None:
    x = image_sizes_B2
    if x.dtype != torch.int32 or x.dim() != 2 or x.shape[1] != 2 or x.device.type != "cpu":
        raise ValueError(f"image_sizes_B2 must be int32 [B, 2] (height, width) on the CPU, got {describe(x)}")
    if x.numel() and x.min() < 1:
        raise ValueError(f"image_sizes_B2 must be positive, got {x[(x < 1).any(1)][0].tolist()} (height, width)")
