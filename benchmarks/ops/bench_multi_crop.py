"""Multi-crop augmentation of decoded photographs, against torchvision on Pillow images and albumentations on OpenCV.

    python -m benchmarks.ops.bench_multi_crop --images sample_data/train --threads 1

The recipe is DINOv2 as it was trained (2 crops of 224 pixels, 8 of 98) on photographs of 500 x 375. The rivals run one
after the other on the same photographs, on one thread each; `ratio` is their time over ours, pair by pair. Both rivals
are optional: `pip install torchvision albumentations opencv-python-headless`, best in an environment of its own, which
needs only this checkout on PYTHONPATH besides.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import emit, time_interleaved
from webssl_fast.ops.multi_crop import IMAGENET_MEAN, IMAGENET_STD, draw_crop_parameters, multi_crop
from webssl_fast.ops.multi_crop import multi_crop_reference as reference
from webssl_fast.records import CropRecipe

WIDTH, HEIGHT = 500, 375
BLUR = (0.0, 0.9, 0.5)  # of the first and second global crop and the local crops
COLORS = CropRecipe(
    size_px=0,
    flip_probability=0.5,
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grayscale_probability=0.2,
)
GLOBAL, LOCAL = replace(COLORS, size_px=224, scale=(0.32, 1.0)), replace(COLORS, size_px=98, scale=(0.05, 0.32))
RECIPES = [
    replace(GLOBAL, blur_probability=BLUR[0]),
    replace(GLOBAL, blur_probability=BLUR[1], solarize_probability=0.2),
    *[replace(LOCAL, blur_probability=BLUR[2])] * 8,
]
SIZES = [recipe.size_px for recipe in RECIPES]


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    """uint8 [375, 500, 3]; photographs of other sizes are resized."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg, .jpeg or .png below it")
    spread = [paths[i * len(paths) // count] for i in range(min(count, len(paths)))]
    return [np.asarray(Image.open(p).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for p in spread]


def ours(images: Sequence[Tensor], threads: int) -> Callable[[], object]:
    sizes_B2 = torch.tensor([[HEIGHT, WIDTH]] * len(images), dtype=torch.int32)
    first = [0]

    def run() -> list[Tensor]:
        positions_B = torch.arange(first[0], first[0] + len(images))
        first[0] += len(images)  # other draws at each call, as in training
        parameters_BVP = draw_crop_parameters(sizes_B2, RECIPES, 0, positions_B)
        return multi_crop(images, parameters_BVP, SIZES, num_threads=threads)

    return run


def torchvision_rival(images: Sequence[np.ndarray]) -> Callable[[], object]:
    from torchvision import transforms as T

    def chain(size: int, scale: tuple[float, float], blur: float, solarize: float) -> T.Compose:
        jitter = T.ColorJitter(0.4, 0.4, 0.2, 0.1)
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(0.5),
                T.RandomApply([jitter], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([T.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur),
                T.RandomSolarize(128, p=solarize),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    views = [chain(224, (0.32, 1.0), BLUR[0], 0.0), chain(224, (0.32, 1.0), BLUR[1], 0.2)]
    views += [chain(98, (0.05, 0.32), BLUR[2], 0.0)] * 8
    pillow = [Image.fromarray(image) for image in images]
    return lambda: [view(image) for image in pillow for view in views]


def albumentations_rival(images: Sequence[np.ndarray]) -> Callable[[], object]:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)

    def chain(size: int, scale: tuple[float, float], blur: float, solarize: float) -> A.Compose:
        return A.Compose(
            [
                A.RandomResizedCrop((size, size), scale=scale, interpolation=cv2.INTER_CUBIC),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=(9, 9), sigma_limit=(0.1, 2.0), p=blur),
                A.Solarize(threshold_range=(0.5, 0.5), p=solarize),
                A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                ToTensorV2(),
            ]
        )

    views = [chain(224, (0.32, 1.0), BLUR[0], 0.0), chain(224, (0.32, 1.0), BLUR[1], 0.2)]
    views += [chain(98, (0.05, 0.32), BLUR[2], 0.0)] * 8
    return lambda: [view(image=image) for image in images for view in views]


def check(images: Sequence[Tensor]) -> None:
    """Ours equals the plain-torch reference on two photographs."""
    sizes_B2 = torch.tensor([[HEIGHT, WIDTH]] * 2, dtype=torch.int32)
    parameters_BVP = draw_crop_parameters(sizes_B2, RECIPES, 1, torch.arange(2))
    expected = reference(images[:2], parameters_BVP, SIZES)
    for got, want in zip(multi_crop(images[:2], parameters_BVP, SIZES), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs, any depth")
    parser.add_argument("--threads", type=int, default=1, help="of ours; the rivals have one each")
    parser.add_argument("--count", type=int, default=8, help="photographs a call")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    arrays = photographs(arguments.images, arguments.count)
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    check(tensors)

    functions = {"ours": ours(tensors, arguments.threads)}
    for name, make in {"torchvision": torchvision_rival, "albumentations": albumentations_rival}.items():
        try:
            functions[name] = make(arrays)
        except (ImportError, RuntimeError) as error:  # beside a CPU build of torch, torchvision raises RuntimeError
            print(f"{name} is left out, it does not import here: {error}", file=sys.stderr)
    timings = time_interleaved(functions, arguments.repeats, warmup=2)
    for name, timing in timings.items():
        emit(
            "multi_crop",
            implementation=name,
            recipe="dinov2 2x224 + 8x98 from 500x375",
            threads=arguments.threads if name == "ours" else 1,
            images=len(arrays),
            ms_per_image=timing.p50_ms / len(arrays),
            p20_ms_per_image=timing.p20_ms / len(arrays),
            p80_ms_per_image=timing.p80_ms / len(arrays),
            cpu_ms_per_image=timing.cpu_ms / len(arrays),
            ratio=timing.p50_ms / timings["ours"].p50_ms,
            cpu_ratio=timing.cpu_ms / timings["ours"].cpu_ms,
        )


if __name__ == "__main__":
    main()
