"""Multi-crop augmentation of decoded photographs, against torchvision on Pillow images and albumentations on OpenCV.

    python -m benchmarks.ops.bench_multi_crop --images FOLDER --threads 1

Milliseconds to make ten normalised fp32 crops of one photograph with DINOv2's recipe (2 of 224 pixels, 8 of 98), the
drawing of their parameters included. Photographs are first brought to 500 x 375 pixels (375 x 500 upright). The rivals
take turns with ours on the same photographs, on one thread each; `torchvision_over_ours` and `albumentations_over_ours`
are their median times over ours, `.._cpu` the same of processor time, which says more where other programs run beside.

Before timing, ours must equal its reference and agree with torchvision's functions given the same parameters. The
pixels of albumentations cannot be compared: OpenCV's bicubic does not antialias, and so does less work than the others.

Both rivals are optional, and best kept in an environment of their own, with this checkout on PYTHONPATH:

    pip install torch==2.13.0 pydantic pyyaml tqdm safetensors numpy pillow
    pip install --no-deps torchvision==0.28.0
    pip install albumentations==2.0.8 opencv-python-headless
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.harness import emit, time_interleaved
from webssl_fast.ops import crop_parameters as params
from webssl_fast.ops import multi_crop as op
from webssl_fast.records import CropRecipe

LONG_PX, SHORT_PX = 500, 375
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
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # a normalisation that leaves pixels in [0, 255]


def photographs(folder: Path, num_images: int) -> list[np.ndarray]:
    """uint8 [375, 500, 3], or [500, 375, 3] for upright ones; other proportions lose their border."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg, .jpeg or .png below it; name a folder of photographs")
    images = []
    for path in (paths[i * len(paths) // num_images] for i in range(min(num_images, len(paths)))):
        image = Image.open(path).convert("RGB")
        size = (LONG_PX, SHORT_PX) if image.width >= image.height else (SHORT_PX, LONG_PX)
        images.append(np.array(ImageOps.fit(image, size, Image.Resampling.BICUBIC)))
    return images


def draw(images: Sequence[Tensor], seed: int, first_position: int) -> Tensor:
    sizes_B2 = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
    return params.draw_crop_parameters(sizes_B2, RECIPES, seed, torch.arange(len(images)) + first_position)


# ---------------------------------------------------------------- sides


def ours(images: Sequence[Tensor], num_threads: int) -> Callable[[], object]:
    first_position = 0

    def run() -> list[Tensor]:
        nonlocal first_position
        parameters_BVP = draw(images, 0, first_position)
        first_position += len(images)  # other draws at each call, as in training
        return op.multi_crop(images, parameters_BVP, SIZES_PX, num_threads=num_threads)

    return run


def torchvision_side(images: Sequence[np.ndarray]) -> Callable[[], object]:
    import_torchvision()
    from torchvision import transforms as T

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
                T.ToTensor(),
                T.Normalize(op.IMAGENET_MEAN, op.IMAGENET_STD),
            ]
        )

    chains = [chain(recipe) for recipe in RECIPES]
    pillow_images = [Image.fromarray(image) for image in images]
    return lambda: [crop(image) for image in pillow_images for crop in chains]


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
                A.Normalize(op.IMAGENET_MEAN, op.IMAGENET_STD),
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


# ---------------------------------------------------------------- correctness


def check_against_reference(image: Tensor) -> None:
    parameters_BVP = draw([image], 1, 0)
    expected = op.multi_crop_reference([image], parameters_BVP, SIZES_PX)
    for got, want in zip(op.multi_crop([image], parameters_BVP, SIZES_PX), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def check_against_torchvision(images: Sequence[Tensor]) -> dict[str, float]:
    """Mean and 99.9th percentile of the difference (of 255) given the same parameters, over all crops of two draws of
    each photograph, and the percentile of the crop where it is worst. Exits where the first two pass 2 and 8.
    """
    errors = []
    for position, image in enumerate([*images, *images]):
        parameters_BVP = draw([image], 1, position)
        groups = op.multi_crop([image], parameters_BVP, SIZES_PX, mean=NO_MEAN, std=NO_STD)
        crops_V = [crop_3SS for group_VB3SS in groups for crop_3SS in group_VB3SS[:, 0]]
        for crop_3SS, row_P, size_px in zip(crops_V, parameters_BVP[0].tolist(), SIZES_PX, strict=True):
            expected_SS3 = np.array(torchvision_crop(Image.fromarray(image.numpy()), row_P, size_px), dtype=np.float32)
            errors.append(np.abs(crop_3SS.permute(1, 2, 0).numpy() - expected_SS3).ravel())
    everything = np.concatenate(errors)
    mean, p999 = float(everything.mean()), float(np.quantile(everything, 0.999))
    if mean > 2 or p999 > 8:
        raise SystemExit(
            f"ours differs from torchvision by {mean:.2f} in the mean and {p999:.2f} at the 99.9th percentile "
            "(of 255; allowed: 2 and 8), so nothing was timed"
        )
    return {
        "torchvision_difference_mean": mean,
        "torchvision_difference_p999": p999,
        "torchvision_difference_p999_of_worst_crop": max(float(np.quantile(error, 0.999)) for error in errors),
    }


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


# ---------------------------------------------------------------- driver

RIVALS = {"torchvision": torchvision_side, "albumentations": albumentations_side}


def main() -> None:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops.bench_multi_crop",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs, any depth")
    parser.add_argument("--threads", type=int, default=1, help="of ours; the rivals have one each")
    parser.add_argument("--num-images", type=int, default=8, help="photographs of a timed call")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/multi_crop_cpu.jsonl too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    arrays = photographs(arguments.images, arguments.num_images)
    images = [torch.from_numpy(array) for array in arrays]

    check_against_reference(images[0])
    functions = {"ours": ours(images, arguments.threads)}
    for name, make in RIVALS.items():
        try:
            functions[name] = make(arrays)
        except ImportError as error:
            print(
                f"WARNING: {name} is left out, for it does not import here ({error}). "
                "`--help` shows how to install it in an environment of its own.",
                file=sys.stderr,
            )
    fields: dict[str, object] = {}
    if "torchvision" in functions:
        fields |= check_against_torchvision(images)

    timings = time_interleaved(functions, arguments.repeats, warmup=2)
    for name, timing in timings.items():
        prefix = "" if name == "ours" else f"{name}_"
        fields |= {
            f"{prefix}ms_per_image": timing.p50_ms / len(images),
            f"{prefix}p20_ms_per_image": timing.p20_ms / len(images),
            f"{prefix}p80_ms_per_image": timing.p80_ms / len(images),
            f"{prefix}cpu_ms_per_image": timing.cpu_ms / len(images),
        }
    for name in (rival for rival in RIVALS if rival in functions):
        fields |= {
            f"{name}_over_ours": timings[name].p50_ms / timings["ours"].p50_ms,
            f"{name}_over_ours_cpu": timings[name].cpu_ms / timings["ours"].cpu_ms,
            f"{name}_version": version(name),
        }
    emit(
        "multi_crop",
        record="multi_crop_cpu" if arguments.record else None,
        recipe="dinov2 2x224 + 8x98",
        image_px=f"{LONG_PX}x{SHORT_PX}",
        num_images=len(images),
        threads=arguments.threads,
        repeats=arguments.repeats,
        **fields,
    )


if __name__ == "__main__":
    main()
