"""Augmented crops of decoded images, as DINO trains on them (arXiv 2104.14294, section 3; arXiv 2304.07193).

`draw_crop_parameters` (in crop_parameters.py) says what happens to each crop, `multi_crop` does it, in this order:
resampling of a box (antialiased bicubic), flip, color jitter, grayscale, Gaussian blur, solarisation, normalisation.

Dimensions: B images, V crops of each image, P parameters of a crop, S crop size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from webssl_fast.ops import _library
from webssl_fast.ops.crop_parameters import (
    BLUR_SIGMA,
    BRIGHTNESS,
    BRIGHTNESS_STEP,
    CONTRAST,
    CONTRAST_STEP,
    FLIP,
    GRAYSCALE,
    HEIGHT,
    HUE,
    LEFT,
    ORDER,
    READ_OUTSIDE,
    SATURATION,
    SATURATION_STEP,
    SOLARIZE_THRESHOLD,
    TOP,
    WIDTH,
    check_parameters,
    describe,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ROUNDED_DOWN = 0.5  # what rounding down to an integer costs on average
_BLUR_RADIUS = 4  # DINO's GaussianBlur has nine taps at every crop size
_OUTPUT_DTYPES = (torch.float32, torch.bfloat16)


def multi_crop(
    images: Sequence[Tensor],
    parameters_BVP: Tensor,
    sizes_px: Sequence[int],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    num_threads: int = 0,
) -> list[Tensor]:
    """Cuts and augments V crops of each image: one tensor [V_g, B, 3, S, S] for each run of equal `sizes_px`.

    images          B tensors, uint8 [height, width, 3] (RGB), all on the CPU or all on one GPU, where the crops will be
                    too; any strides (others than contiguous are copied)
    parameters_BVP  fp32 [B, V, P], CPU; from draw_crop_parameters or center_crop_parameters
    sizes_px        V crop sizes S in pixels
    mean, std       of each channel, for pixels in [0, 1]
    dtype           of the result: torch.float32 or torch.bfloat16
    num_threads     on the CPU; 0: as many as torch.get_num_threads(). The result does not depend on it, bit for bit.
    Raises ValueError for anything else, on a GPU also for more than 64 crops of an image; NotImplementedError for
    images on a GPU in a build without CUDA kernels. There is no gradient. On a GPU the work is enqueued on the current
    stream and not waited for, in two launches for every 32 MiB of fp32 pixels; the result is deterministic, and differs
    from the CPU's by rounding errors of fp32.

    Each operation is the one that torchvision's v1 transforms do on Pillow images, with these differences. Pixels are
    floats from the resampling to the normalisation, where Pillow rounds to uint8 after each operation. Where Pillow
    rounds down, what that costs on average is subtracted instead: half a level in the blends of brightness, contrast
    and saturation, half a 255th of a turn in hue; its rounding of HSV saturation has no counterpart. Both clamp to
    [0, 255] in the same places, save that Pillow also does between the two passes of a resampling. The mean gray of the
    contrast operation is not rounded to an integer. Equal parameters given, the two differ by at most 2/255
    in the mean and 8/255 at the 99.9th percentile of a crop.
    The blur has nine taps and mirrors the crop at its border (without repeating the border pixel).
    """
    _check_images(images)
    if len(mean) != 3 or len(std) != 3 or any(s <= 0 for s in std):
        raise ValueError(f"mean and std must have three values each, std positive; got mean={mean}, std={std}")
    if dtype not in _OUTPUT_DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if num_threads < 0:
        raise ValueError(f"num_threads must be 0 (torch's own number) or positive, got {num_threads}")
    check_parameters(parameters_BVP, images, sizes_px)
    images = [image.contiguous() for image in images]
    if _library.reference_forced():
        return multi_crop_reference(images, parameters_BVP, sizes_px, mean=mean, std=std, dtype=dtype)
    num_threads = num_threads or torch.get_num_threads()
    return torch.ops.webssl.multi_crop(
        images, parameters_BVP.contiguous(), list(sizes_px), list(mean), list(std), dtype, num_threads
    )


# ---------------------------------------------------------------- reference


def multi_crop_reference(
    images: Sequence[Tensor],
    parameters_BVP: Tensor,
    sizes_px: Sequence[int],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """`multi_crop` written from the definitions in fp64, one crop at a time; slow."""
    with torch.device(_device_of(images)):
        return _reference_groups(images, parameters_BVP, sizes_px, mean, std, dtype)


def _reference_groups(
    images: Sequence[Tensor],
    parameters_BVP: Tensor,
    sizes_px: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> list[Tensor]:
    mean_3, std_3 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    crops_VB = [
        [
            (_reference_crop(image, row_P.tolist(), size_px) / 255 - mean_3[:, None, None]) / std_3[:, None, None]
            for image, row_P in zip(images, parameters_BVP[:, crop], strict=True)
        ]
        for crop, size_px in enumerate(sizes_px)
    ]
    groups = []
    for start, stop in _runs_of_equal(sizes_px):
        size_px = sizes_px[start]
        flat = [crop.to(dtype) for crops_B in crops_VB[start:stop] for crop in crops_B]
        stacked = torch.stack(flat) if flat else torch.empty(0, 3, size_px, size_px, dtype=dtype)
        groups.append(stacked.view(stop - start, len(images), 3, size_px, size_px))
    return groups


def _reference_crop(image_HWC: Tensor, row: list[float], size_px: int) -> Tensor:
    """One crop before normalisation: fp64 [3, S, S] in [0, 255]."""
    height, width = image_HWC.shape[:2]
    read_outside = row[READ_OUTSIDE] != 0
    rows_SH = _cubic_matrix(row[TOP], row[HEIGHT], height, read_outside, size_px)
    columns_SW = _cubic_matrix(row[LEFT], row[WIDTH], width, read_outside, size_px)
    if row[FLIP]:
        columns_SW = columns_SW.flip(0)
    crop = (rows_SH @ image_HWC.permute(2, 0, 1).double() @ columns_SW.T).clamp(0, 255)
    for operation in row[ORDER : ORDER + 4]:
        if operation == BRIGHTNESS_STEP:
            crop = _blend(torch.zeros_like(crop), crop, row[BRIGHTNESS])
        elif operation == CONTRAST_STEP:
            crop = _blend(_luma(crop).mean(), crop, row[CONTRAST])
        elif operation == SATURATION_STEP:
            crop = _blend(_luma(crop), crop, row[SATURATION])
        elif row[HUE] != 0:
            crop = _shift_hue(crop, row[HUE])
    if row[GRAYSCALE]:
        crop = _luma(crop).expand(3, -1, -1)
    if row[BLUR_SIGMA] > 0:
        crop = _gaussian_blur(crop, row[BLUR_SIGMA])
    return torch.where(crop < row[SOLARIZE_THRESHOLD], crop, 255 - crop)


def _cubic_matrix(begin: float, length: float, source_size: int, read_outside: bool, size_px: int) -> Tensor:
    """Weights [S, source] of one axis: Keys' cubic (a = -0.5), stretched by the scale to shrink, as Pillow does."""
    scale = length / size_px
    stretch = max(scale, 1.0)
    low = 0 if read_outside else math.floor(begin)
    high = source_size if read_outside else min(source_size, math.ceil(begin + length))
    center = begin + (torch.arange(size_px, dtype=torch.float64)[:, None] + 0.5) * scale
    x = ((torch.arange(source_size, dtype=torch.float64) + 0.5 - center) / stretch).abs()
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))
    weights[:, :low] = 0
    weights[:, high:] = 0
    return weights / weights.sum(1, keepdim=True)


def _luma(crop: Tensor) -> Tensor:
    return (0.299 * crop[0] + 0.587 * crop[1] + 0.114 * crop[2])[None]


def _blend(degenerate: Tensor, crop: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return crop
    return (degenerate + factor * (crop - degenerate) - _ROUNDED_DOWN).clamp(0, 255)


def _shift_hue(crop: Tensor, turns: float) -> Tensor:
    """RGB to HSV, hue shifted, and back; HSV as in A. R. Smith, "Color gamut transform pairs", 1978.

    torchvision shifts Pillow's H channel, 255 steps to the turn, by whole steps, and wraps at 256 of them.
    """
    red, green, blue = crop
    value = crop.amax(0)
    chroma = value - crop.amin(0)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # Half a level of slack below red, since the wrap makes hues jump there: reds with green = blue are to stay reds.
    sector = torch.where(sector * chroma < -0.5, sector + 6, sector)
    sector = (sector + 6 / 255 * (math.trunc(turns * 255) - _ROUNDED_DOWN)) % (6 * 256 / 255)
    # Channel n is value - chroma * max(0, min(k, 4 - k, 1)) with k = n + sector mod 6, n = 5, 3, 1 for R, G, B.
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=crop.dtype)[:, None, None] + sector.clamp(max=6)) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _gaussian_blur(crop: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel = kernel / kernel.sum()
    size_px = crop.shape[-1]
    period = max(2 * (size_px - 1), 1)
    index = torch.arange(-_BLUR_RADIUS, size_px + _BLUR_RADIUS) % period
    index = torch.minimum(index, period - index) if size_px > 1 else torch.zeros_like(index)
    padded = crop[:, index][:, :, index]
    rows = F.conv2d(padded[:, None], kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]


# ---------------------------------------------------------------- op

_library.LIBRARY.define(
    "multi_crop(Tensor[] images, Tensor parameters_BVP, int[] sizes_px, float[] mean, float[] std, ScalarType dtype, "
    "int num_threads) -> Tensor[]"
)


def _multi_crop_fake(
    images: Sequence[Tensor],
    parameters_BVP: Tensor,
    sizes_px: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    num_threads: int,
) -> list[Tensor]:
    device = _device_of(images)
    return [
        parameters_BVP.new_empty(
            (stop - start, len(images), 3, sizes_px[start], sizes_px[start]), dtype=dtype, device=device
        )
        for start, stop in _runs_of_equal(sizes_px)
    ]


def _run(kernel: Callable, arguments: tuple, *last_arguments: int) -> list[Tensor]:
    """Calls the kernel of the CPU, whose last argument is a number of threads, or of CUDA: a workspace, a stream."""
    images, parameters_BVP, sizes_px, mean, std, dtype, _ = arguments
    groups = _multi_crop_fake(*arguments)
    tables = (
        torch.tensor([image.data_ptr() for image in images], dtype=torch.int64),
        torch.tensor([image.shape[:2] for image in images], dtype=torch.int32),
        parameters_BVP,
    )
    tables_of_images = [_beside(images, table) for table in tables]
    # Names keep the arrays alive until the kernel returns.
    crop_pointers_V = torch.tensor([crops_B.data_ptr() for group in groups for crops_B in group], dtype=torch.int64)
    sizes_px_V = torch.tensor(sizes_px, dtype=torch.int32)
    mean_3, std_3 = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
    kernel(
        *(table.data_ptr() for table in tables_of_images), sizes_px_V.data_ptr(), crop_pointers_V.data_ptr(),
        len(images), len(sizes_px), mean_3.data_ptr(), std_3.data_ptr(), dtype == torch.bfloat16, *last_arguments,
    )  # fmt: skip
    return groups


def _multi_crop_cpu(*arguments) -> list[Tensor]:
    return _run(_library.C.multi_crop_cpu, arguments, arguments[-1])


def _multi_crop_cuda(*arguments) -> list[Tensor]:
    kernel = _library.cuda_kernel("multi_crop_cuda")
    images, sizes_px_V = arguments[0], torch.tensor(arguments[2], dtype=torch.int32)
    num_floats = _library.C.multi_crop_workspace_floats_cuda(sizes_px_V.data_ptr(), len(images), len(sizes_px_V))
    with _library.cuda_stream(_device_of(images)) as stream:
        workspace = torch.empty(num_floats, dtype=torch.float32, device=_device_of(images))
        return _run(kernel, arguments, workspace.data_ptr(), num_floats, stream)


def _device_of(images: Sequence[Tensor]) -> torch.device:
    return images[0].device if images else torch.device("cpu")


def _beside(images: Sequence[Tensor], table: Tensor) -> Tensor:
    """A host table where the images are; from pinned memory, so that the host does not wait for the stream."""
    device = _device_of(images)
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


torch.library.register_fake("webssl::multi_crop", _multi_crop_fake, lib=_library.LIBRARY)
_library.LIBRARY.impl("multi_crop", _multi_crop_cpu, "CPU")
_library.LIBRARY.impl("multi_crop", _multi_crop_cuda, "CUDA")


# ---------------------------------------------------------------- checks


def _runs_of_equal(values: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) of each run of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _check_images(images: Sequence[Tensor]) -> None:
    for index, image in enumerate(images):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3:
            raise ValueError(
                f"images[{index}] must be uint8 [height, width, 3], got {describe(image)}; "
                "decode to RGB and move the channels last first"
            )
        if image.device.type not in ("cpu", "cuda") or image.device != images[0].device:
            raise ValueError(
                f"images must all be on the CPU or all on one GPU; images[0] is on {images[0].device}, "
                f"images[{index}] on {image.device}: move them to one device first"
            )
        if image.numel() == 0:
            raise ValueError(f"images[{index}] has no pixels: {list(image.shape)}")
