"""Multi-crop augmentation of decoded photographs, against torchvision on Pillow images and albumentations on OpenCV.

    python -m benchmarks.ops.bench_multi_crop --images FOLDER --threads 1

Milliseconds to make ten normalised fp32 crops of one photograph with DINOv2's recipe (2 of 224 pixels, 8 of 98), the
drawing of their parameters included. Photographs are first brought to 500 x 375 pixels (375 x 500 upright). The rivals
take turns with ours on the same photographs, on one thread each; `torchvision_over_ours` and `albumentations_over_ours`
are their median times over ours, `.._cpu` the same of processor time, which says more where other programs run beside.

Before timing, ours must equal its reference and agree with torchvision's functions given the same parameters. The
pixels of albumentations cannot be compared: OpenCV's bicubic does not antialias, and so does less work than the others.

With `--device cuda` the images lie on the GPU, the rival is torchvision's v2 transforms on GPU tensors, and ours must
agree with the CPU's crops before anything is timed.

All rivals are optional, and best kept in an environment of their own, with this checkout on PYTHONPATH:

    pip install torch==2.13.0 pydantic pyyaml tqdm safetensors numpy pillow
    pip install --no-deps torchvision==0.28.0
    pip install albumentations==2.0.8 opencv-python-headless
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.crop_recipes import RECIPES, SIZES_PX
from benchmarks.crop_rivals import albumentations_side, torchvision_crop, torchvision_gpu_side, torchvision_side
from benchmarks.harness import Timing, argument_parser, copy_gb_per_s, emit, time_interleaved
from webssl_fast.ops import crop_parameters as params
from webssl_fast.ops import multi_crop as op

LONG_PX, SHORT_PX = 500, 375
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # a normalisation that leaves pixels in [0, 255]


def photographs(folder: Path | None, num_images: int) -> list[np.ndarray]:
    """uint8 [375, 500, 3], or [500, 375, 3] for upright ones; other proportions lose their border. Few are repeated."""
    folder = folder or _scikit_image_folder()
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg, .jpeg or .png below it; name a folder of photographs")
    images = []
    for path in (paths[i * len(paths) // num_images] for i in range(num_images)):
        image = Image.open(path).convert("RGB")
        size = (LONG_PX, SHORT_PX) if image.width >= image.height else (SHORT_PX, LONG_PX)
        images.append(np.array(ImageOps.fit(image, size, Image.Resampling.BICUBIC)))
    return images


def _scikit_image_folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("--images: name a folder of photographs, or pip install 'webssl_fast[sample]' for some")
    return Path(spec.origin).parent / "data"


def draw(images: Sequence[Tensor], seed: int, first_position: int) -> Tensor:
    sizes_B2 = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
    return params.draw_crop_parameters(sizes_B2, RECIPES, seed, torch.arange(len(images)) + first_position)


# ---------------------------------------------------------------- sides


def ours(images: Sequence[Tensor], num_threads: int, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    first_position = 0

    def run() -> list[Tensor]:
        nonlocal first_position
        parameters_BVP = draw(images, 0, first_position)
        first_position += len(images)  # other draws at each call, as in training
        return op.multi_crop(images, parameters_BVP, SIZES_PX, dtype=dtype, num_threads=num_threads)

    return run


def kernels(images: Sequence[Tensor], dtype: torch.dtype) -> Callable[[], object]:
    mean, std = list(op.IMAGENET_MEAN), list(op.IMAGENET_STD)
    return partial(torch.ops.webssl.multi_crop, images, draw(images, 0, 0), SIZES_PX, mean, std, dtype, 0)


# ---------------------------------------------------------------- correctness


def check_against_reference(image: Tensor) -> None:
    parameters_BVP = draw([image], 1, 0)
    expected = op.multi_crop_reference([image], parameters_BVP, SIZES_PX)
    for got, want in zip(op.multi_crop([image], parameters_BVP, SIZES_PX), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def check_against_cpu(images: Sequence[Tensor], on_host: Sequence[Tensor]) -> None:
    """Exits where the GPU's crops differ from the CPU's by more than 1/255 in the mean."""
    parameters_BVP = draw(on_host, 1, 0)
    expected = op.multi_crop(on_host, parameters_BVP, SIZES_PX, mean=NO_MEAN, std=NO_STD)
    crops = op.multi_crop(images, parameters_BVP, SIZES_PX, mean=NO_MEAN, std=NO_STD)
    for got, want in zip(crops, expected, strict=True):
        difference = (got.cpu() - want).abs().mean().item()
        if not difference <= 1:
            raise SystemExit(f"the GPU's crops differ from the CPU's by {difference:.3f}/255, so nothing was timed")


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


# ---------------------------------------------------------------- driver


def with_importable(rivals: Mapping[str, Callable[[], Callable[[], object]]]) -> dict[str, Callable[[], object]]:
    sides = {}
    for name, make in rivals.items():
        try:
            sides[name] = make()
        except ImportError as error:
            print(
                f"WARNING: {name} is left out, for it does not import here ({error}). "
                "`--help` shows how to install it in an environment of its own.",
                file=sys.stderr,
            )
    return sides


def timing_fields(prefix: str, timing: Timing, num_images: int) -> dict[str, float]:
    return {
        f"{prefix}ms_per_image": timing.p50_ms / num_images,
        f"{prefix}p20_ms_per_image": timing.p20_ms / num_images,
        f"{prefix}p80_ms_per_image": timing.p80_ms / num_images,
        f"{prefix}cpu_ms_per_image": timing.cpu_ms / num_images,
    }


def on_cpu(arrays: Sequence[np.ndarray], arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    images = [torch.from_numpy(array) for array in arrays]
    check_against_reference(images[0])
    rivals = with_importable(
        {"torchvision": lambda: torchvision_side(arrays), "albumentations": lambda: albumentations_side(arrays)}
    )
    fields: dict[str, Any] = check_against_torchvision(images) if "torchvision" in rivals else {}
    timings = time_interleaved({"ours": ours(images, arguments.threads), **rivals}, arguments.repeats, warmup=2)
    for name, timing in timings.items():
        fields |= timing_fields("" if name == "ours" else f"{name}_", timing, len(images))
    for name in rivals:
        fields |= {
            f"{name}_over_ours": timings[name].p50_ms / timings["ours"].p50_ms,
            f"{name}_over_ours_cpu": timings[name].cpu_ms / timings["ours"].cpu_ms,
            f"{name}_version": version(name),
        }
    emit("multi_crop", record=arguments.record, threads=arguments.threads, **common_fields(images, arguments), **fields)


def on_gpu(arrays: Sequence[np.ndarray], arguments: argparse.Namespace) -> None:
    """One line each for fp32 and bf16. `ours` draws and checks parameters on the host at each call, as in training;
    `kernels` has them drawn and checked before. `gb_per_s` counts every image read once and every crop written once."""
    on_host = [torch.from_numpy(array) for array in arrays]
    images = [image.cuda() for image in on_host]
    check_against_cpu(images, on_host)
    rivals = with_importable({"torchvision": lambda: torchvision_gpu_side(images)})
    ceiling = copy_gb_per_s()
    for dtype in (torch.float32, torch.bfloat16):
        sides = {"ours": ours(images, 0, dtype), "kernels": kernels(images, dtype), **rivals}
        timings = time_interleaved(sides, arguments.repeats, warmup=2, device="cuda")
        fields: dict[str, Any] = {}
        for name, timing in timings.items():
            fields |= timing_fields("" if name == "ours" else f"{name}_", timing, len(images))
        for name in rivals:
            fields |= {f"{name}_over_ours": timings[name].p50_ms / timings["ours"].p50_ms}
            fields |= {f"{name}_version": version(name)}
        num_bytes = sum(image.nbytes for image in images)
        num_bytes += len(images) * sum(3 * size_px**2 * dtype.itemsize for size_px in SIZES_PX)
        gb_per_s = num_bytes / timings["kernels"].p50_ms / 1e6
        emit(
            "multi_crop_gpu",
            record=arguments.record,
            device="cuda",
            dtype=str(dtype).removeprefix("torch."),
            images_per_second=1e3 * len(images) / timings["ours"].p50_ms,
            kernels_images_per_second=1e3 * len(images) / timings["kernels"].p50_ms,
            gb_per_s=gb_per_s,
            ceiling_gb_per_s=ceiling,
            ceiling_share=gb_per_s / ceiling,
            **common_fields(images, arguments),
            **fields,
        )


def common_fields(images: Sequence[Tensor], arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "recipe": "dinov2 2x224 + 8x98",
        "image_px": f"{LONG_PX}x{SHORT_PX}",
        "num_images": len(images),
        "repeats": arguments.repeats,
    }


def main() -> None:
    parser = argument_parser(__doc__, repeats=15)
    parser.epilog = (__doc__ or "").partition("\n\n")[2]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=Path, help="a folder of photographs, any depth (default: scikit-image's)")
    parser.add_argument("--num-images", type=int, help="photographs of a timed call (default: CPU 8, GPU 64)")
    arguments = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    num_images = arguments.num_images or (64 if arguments.device == "cuda" else 8)
    arrays = photographs(arguments.images, num_images)
    (on_gpu if arguments.device == "cuda" else on_cpu)(arrays, arguments)


if __name__ == "__main__":
    main()
