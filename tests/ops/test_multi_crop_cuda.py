"""The CUDA kernels of multi_crop against the CPU's: run on the host thread by thread, and on a GPU where there is one.

Dimensions: B images, V crops, P parameters, S crop size in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.ops.test_multi_crop import GLOBAL, LOCAL, PLAIN, identity
from webssl_fast.ops import crop_parameters as params
from webssl_fast.ops import multi_crop as op

OnCuda = Callable[..., list[torch.Tensor]]
IMAGENET = dict(mean=op.IMAGENET_MEAN, std=op.IMAGENET_STD)
ALL_COLORS = dict(BRIGHTNESS=1.3, CONTRAST=0.7, SATURATION=1.2, HUE=-0.07)


def on_emulated_cuda(images, parameters_BVP, sizes_px, *, mean, std, dtype=torch.float32):
    return op._multi_crop_cuda(images, parameters_BVP, sizes_px, list(mean), list(std), dtype, 0)


def on_gpu(images, parameters_BVP, sizes_px, *, mean, std, dtype=torch.float32):
    images = [image.cuda() for image in images]
    groups = op.multi_crop(images, parameters_BVP, sizes_px, mean=mean, std=std, dtype=dtype)
    assert all(crops.is_cuda for crops in groups) or not images
    return [crops.cpu() for crops in groups]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def on_cuda(request) -> OnCuda:
    if request.param == "gpu":
        return on_gpu
    request.getfixturevalue("cuda_on_host")
    return on_emulated_cuda


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth colors with some noise: a hue and a gray everywhere, edges nowhere sharper than in a photograph."""
    generator = torch.Generator().manual_seed(1000 * seed + 7 * height + width)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    noise = torch.randn(height, width, 3, generator=generator) * 10
    return (smooth + noise).clamp(0, 255).to(torch.uint8).contiguous()


def assert_equals_cpu(on_cuda: OnCuda, images, parameters_BVP, sizes_px) -> None:
    expected = op.multi_crop(images, parameters_BVP, sizes_px, num_threads=1, **PLAIN)
    got = on_cuda(images, parameters_BVP, sizes_px, **PLAIN)
    assert [crops.shape for crops in got] == [crops.shape for crops in expected]
    for crops, wanted in zip(got, expected, strict=True):
        error = (crops - wanted).abs()
        # Hue and solarisation jump: a pixel that rounding puts on the other side of the jump differs. Such are rare.
        assert (error > 5e-3).float().mean() <= 1e-4 and error.mean() <= 1e-3, (error.max(), error.mean())


# ---------------------------------------------------------------- equality with the CPU


def test_matches_the_cpu_on_drawn_crops(on_cuda):
    """Whole recipes: several images of odd sizes, crops of one tile, of several, and larger than their box."""
    images = [photograph(83, 61), photograph(57, 121), photograph(40, 40)]
    recipes = [replace(GLOBAL, size_px=67), replace(GLOBAL, size_px=32), LOCAL, replace(LOCAL, size_px=20)]
    parameters_BVP = params.draw_crop_parameters(
        torch.tensor([image.shape[:2] for image in images], dtype=torch.int32), recipes, 5, torch.arange(3)
    )
    assert_equals_cpu(on_cuda, images, parameters_BVP, [recipe.size_px for recipe in recipes])


def test_matches_the_cpu_on_crops_of_full_size(on_cuda):
    recipes = [replace(GLOBAL, size_px=224), replace(LOCAL, size_px=98), replace(LOCAL, size_px=98)]
    sizes_B2 = torch.tensor([[375, 500]], dtype=torch.int32)
    parameters_BVP = params.draw_crop_parameters(sizes_B2, recipes, 5, torch.tensor([9]))
    assert_equals_cpu(on_cuda, [photograph(375, 500)], parameters_BVP, [recipe.size_px for recipe in recipes])


def test_accepts_an_empty_batch(on_cuda):
    (crops,) = on_cuda([], torch.empty(0, 2, params.NUM_PARAMETERS), [20, 20], **IMAGENET)
    assert crops.shape == (2, 0, 3, 20, 20)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 161, 263),  # 8 times smaller, in several bands of source rows
        (100, 200, 61, 63),  # at the border
        (7, 11, 9, 13),  # magnified
        (0, 0, 1, 263),  # a line
    ],
)
def test_resampling(on_cuda, box, flip):
    names = dict(zip(("TOP", "LEFT", "HEIGHT", "WIDTH"), box, strict=True))
    assert_equals_cpu(on_cuda, [photograph(161, 263)], identity(1, 1, FLIP=flip, **names), [20])
    inside = identity(1, 1, FLIP=flip, READ_OUTSIDE=1, TOP=20.3, LEFT=31.7, HEIGHT=77.1, WIDTH=50.9)
    assert_equals_cpu(on_cuda, [photograph(161, 263)], inside, [33])


@pytest.mark.parametrize("height, width", [(1, 1), (1, 90), (90, 1), (2, 3), (900, 3)])
def test_extreme_shapes(on_cuda, height, width):
    image = photograph(height, width)
    parameters_B1P = identity(height, width, BLUR_SIGMA=1.5, **ALL_COLORS)
    for size_px in (1, 2, 5, 33):
        assert_equals_cpu(on_cuda, [image], parameters_B1P, [size_px])


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_every_order_of_the_colors(on_cuda, order):
    parameters_BVP = identity(45, 51, **ALL_COLORS)
    parameters_BVP[..., params.ORDER : params.ORDER + 4] = torch.tensor(order, dtype=torch.float32)
    assert_equals_cpu(on_cuda, [photograph(45, 51)], parameters_BVP, [20])


@pytest.mark.parametrize(
    "columns",
    [
        *({name: value} for name, value in ALL_COLORS.items()),
        dict(GRAYSCALE=1),
        dict(GRAYSCALE=1, CONTRAST=1.4),
        dict(BLUR_SIGMA=0.1),
        dict(BLUR_SIGMA=2.0, CONTRAST=0.6),
        dict(BLUR_SIGMA=1.0, SOLARIZE_THRESHOLD=128, GRAYSCALE=1),
        dict(SOLARIZE_THRESHOLD=128),
        dict(SOLARIZE_THRESHOLD=0, HUE=0.5),
    ],
    ids=str,
)
def test_each_operation(on_cuda, columns):
    assert_equals_cpu(on_cuda, [photograph(60, 75)], identity(60, 75, **columns), [40])


# ---------------------------------------------------------------- the rest of the contract


def test_bfloat16_is_the_rounded_fp32(on_cuda):
    image, parameters_BVP = photograph(50, 50), identity(50, 50, BLUR_SIGMA=0.8, **ALL_COLORS)
    (fp32,) = on_cuda([image], parameters_BVP, [33], **IMAGENET)
    (bf16,) = on_cuda([image], parameters_BVP, [33], dtype=torch.bfloat16, **IMAGENET)
    assert bf16.dtype == torch.bfloat16 and torch.equal(bf16, fp32.bfloat16())


def test_the_order_of_threads_does_not_matter(cuda_on_host, monkeypatch):
    image, parameters_BVP = photograph(70, 90), identity(70, 90, BLUR_SIGMA=0.8, **ALL_COLORS)
    results = []
    for order in ("forward", "backward", "shuffled"):
        monkeypatch.setenv("WEBSSL_EMULATED_ORDER", order)
        results += on_emulated_cuda([image], parameters_BVP, [40], **IMAGENET)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_many_images_go_in_several_passes(cuda_on_host, monkeypatch):
    images = [photograph(40, 30 + seed, seed) for seed in range(5)]
    parameters_BVP = torch.cat([identity(*image.shape[:2], BLUR_SIGMA=0.8, **ALL_COLORS) for image in images])
    workspace_floats = cuda_on_host.multi_crop_workspace_floats_cuda
    monkeypatch.setattr(
        cuda_on_host,
        "multi_crop_workspace_floats_cuda",
        lambda sizes, _, num_crops: workspace_floats(sizes, 2, num_crops),
    )
    assert_equals_cpu(on_emulated_cuda, images, parameters_BVP, [20])


def test_the_workspace_is_bounded(cuda_on_host):
    size_px = torch.tensor([950], dtype=torch.int32)
    floats = [cuda_on_host.multi_crop_workspace_floats_cuda(size_px.data_ptr(), num, 1) for num in (0, 1, 3, 1000)]
    assert floats[0] == 0 and floats[2] == floats[3] == 3 * floats[1] <= 8 * 2**20
    assert floats[1] >= 3 * 950**2


def test_more_crops_than_a_launch_takes_are_refused(on_cuda):
    parameters_BVP = identity(9, 9).repeat(1, 65, 1)
    with pytest.raises(ValueError, match="65 crops of an image; on CUDA at most 64"):
        on_cuda([photograph(9, 9)], parameters_BVP, [4] * 65, **IMAGENET)


def test_rejects_images_on_several_devices():
    image = photograph(9, 9)
    with pytest.raises(ValueError, match=r"images\[1\] on meta: move them to one device"):
        op.multi_crop([image, image.to("meta")], identity(9, 9).repeat(2, 1, 1), [4])


@pytest.mark.gpu
def test_gpu_is_deterministic_on_another_stream():
    images = [photograph(375, 500, seed).cuda() for seed in range(20)]  # more than one pass
    recipes = [replace(GLOBAL, size_px=224)] * 2 + [replace(LOCAL, size_px=98)] * 8
    sizes_B2 = torch.tensor([[375, 500]] * 20, dtype=torch.int32)
    parameters_BVP = params.draw_crop_parameters(sizes_B2, recipes, 0, torch.arange(20))
    sizes_px = [recipe.size_px for recipe in recipes]
    once = op.multi_crop(images, parameters_BVP, sizes_px)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = op.multi_crop(images, parameters_BVP, sizes_px)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    expected = op.multi_crop([image.cpu() for image in images], parameters_BVP, sizes_px)
    for a, b in zip(once, expected, strict=True):
        assert (a.cpu() - b).abs().mean() * min(op.IMAGENET_STD) <= 1 / 255


@pytest.mark.gpu
def test_gpu_accepts_non_contiguous_images():
    image, parameters_BVP = photograph(40, 50).cuda(), identity(40, 50, **ALL_COLORS)
    strided = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    (expected,), (crops,) = (op.multi_crop([x], parameters_BVP, [33]) for x in (image, strided))
    assert torch.equal(crops, expected)


@pytest.mark.gpu
def test_gpu_more_than_2_31_elements():
    num_images, size_px = 64, 3400
    images = [photograph(8, 8, seed).cuda() for seed in range(num_images)]
    parameters_BVP = identity(8, 8, CONTRAST=0.8).repeat(num_images, 1, 1)
    (crops,) = op.multi_crop(images, parameters_BVP, [size_px], dtype=torch.bfloat16)
    assert crops.numel() > 2**31
    (alone,) = op.multi_crop(images[-1:], parameters_BVP[-1:], [size_px], dtype=torch.bfloat16)
    (expected,) = op.multi_crop([images[-1].cpu()], parameters_BVP[-1:], [size_px])
    assert torch.equal(crops[:, -1:], alone)
    assert (alone.cpu().float() - expected).abs().mean() <= 0.01


@pytest.mark.gpu
def test_gpu_opcheck():
    arguments = ([photograph(40, 50).cuda()], identity(40, 50, **ALL_COLORS), [33], [0.5] * 3, [0.2] * 3)
    torch.library.opcheck(torch.ops.webssl.multi_crop, (*arguments, torch.float32, 1))


@pytest.mark.gpu
def test_gpu_forced_reference_stays_on_the_gpu(monkeypatch):
    monkeypatch.setattr(op._library, "reference_forced", lambda: True)
    (crops,) = op.multi_crop([photograph(40, 50).cuda()], identity(40, 50, BLUR_SIGMA=1.0, **ALL_COLORS), [33])
    assert crops.is_cuda


@pytest.mark.gpu
def test_gpu_rejects_a_mix_of_devices():
    image = photograph(9, 9)
    with pytest.raises(ValueError, match=r"images\[0\] is on cuda:0, images\[1\] on cpu"):
        op.multi_crop([image.cuda(), image], identity(9, 9).repeat(2, 1, 1), [4])
