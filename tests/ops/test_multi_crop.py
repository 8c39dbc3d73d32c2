"""multi_crop against its fp64 reference, and against Pillow on real photographs.

Dimensions: B images, V crops, P parameters, S crop size in pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from webssl_fast.ops import crop_parameters as params
from webssl_fast.ops import multi_crop as op
from webssl_fast.records import CropRecipe

COLORS = dict(
    flip_probability=0.5, jitter_probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1,
    grayscale_probability=0.2,
)  # fmt: skip
GLOBAL = CropRecipe(64, (0.32, 1.0), blur_probability=0.9, solarize_probability=0.2, **COLORS)
LOCAL = CropRecipe(27, (0.05, 0.32), blur_probability=0.5, **COLORS)
RECIPES = [GLOBAL, GLOBAL, LOCAL, LOCAL, LOCAL]
SIZES_PX = [recipe.size_px for recipe in RECIPES]
PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # leaves pixels in [0, 255]


@pytest.fixture(scope="module")
def photographs() -> list[torch.Tensor]:
    """Two photographs and a tall slice of one, RGB."""
    astronaut, cat = torch.from_numpy(data.astronaut()), torch.from_numpy(data.chelsea())
    return [astronaut, cat, astronaut[:, 200:290].contiguous()]


def sizes_of(images: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int32).reshape(-1, 2)


def draw(images: list[torch.Tensor], recipes=RECIPES, seed: int = 3, first_position: int = 0) -> torch.Tensor:
    return params.draw_crop_parameters(sizes_of(images), recipes, seed, torch.arange(len(images)) + first_position)


def identity(height: int, width: int, **columns: float) -> torch.Tensor:
    """Parameters [1, 1, P] of a crop of the whole image that changes nothing, with `columns` set by name."""
    parameters_BVP = torch.zeros(1, 1, params.NUM_PARAMETERS)
    values = dict(
        HEIGHT=height, WIDTH=width, BRIGHTNESS=1, CONTRAST=1, SATURATION=1, SOLARIZE_THRESHOLD=params.NO_SOLARIZE
    )
    parameters_BVP[..., params.ORDER : params.ORDER + 4] = torch.arange(4.0)
    for name, value in (values | columns).items():
        parameters_BVP[..., getattr(params, name)] = value
    return parameters_BVP


def pixels(image: torch.Tensor, parameters_BVP: torch.Tensor, size_px: int) -> np.ndarray:
    """Our crop [S, S, 3] in [0, 255]."""
    (crops,) = op.multi_crop([image], parameters_BVP, [size_px], num_threads=1, **PLAIN)
    return crops[0, 0].permute(1, 2, 0).double().numpy()


# ---------------------------------------------------------------- contract


def assert_equals_reference(images, parameters_BVP, sizes_px, tolerance=2e-5):
    ours = op.multi_crop(images, parameters_BVP, sizes_px)
    reference = op.multi_crop_reference(images, parameters_BVP, sizes_px, dtype=torch.float64)
    assert [crops.shape for crops in ours] == [crops.shape for crops in reference]
    for crops, expected in zip(ours, reference, strict=True):
        error = (crops.double() - expected).abs()
        # Hue and solarisation jump: a pixel that fp32 puts on the other side of the jump differs. Such pixels are rare.
        assert (error > tolerance).double().mean() <= 2e-5, error.max()


@pytest.mark.parametrize("first_position", [0, 1000])
def test_matches_reference(photographs, first_position):
    parameters_BVP = draw(photographs, first_position=first_position)
    assert_equals_reference(photographs, parameters_BVP, SIZES_PX)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (2, 3), (3, 900), (900, 3), (17, 5)])
@pytest.mark.parametrize("size_px", [1, 2, 5, 27, 98])
def test_matches_reference_on_extreme_shapes(height, width, size_px):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    recipes = [replace(GLOBAL, size_px=size_px, blur_probability=p) for p in (0.0, 1.0)]
    assert_equals_reference([image], draw([image], recipes), [size_px, size_px])


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("height, width", [(1000, 1500), (40, 6000), (3000, 20)])
def test_matches_reference_on_large_images(height, width, flip):
    """Many taps on long rows are read as bytes, few or short ones from a window of floats: each the same pixels."""
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    for size_px in (19, 64):
        assert_equals_reference([image], identity(height, width, FLIP=flip), [size_px])
    box = identity(0.6 * height, 0.5 * width, TOP=0.25 * height, LEFT=0.4 * width, READ_OUTSIDE=1, FLIP=flip)
    assert_equals_reference([image], box, [33])


def test_accepts_an_empty_batch():
    crops = op.multi_crop([], torch.empty(0, 5, params.NUM_PARAMETERS), SIZES_PX)
    assert [tuple(c.shape) for c in crops] == [(2, 0, 3, 64, 64), (3, 0, 3, 27, 27)]
    assert draw([]).shape == (0, 5, params.NUM_PARAMETERS)


def test_accepts_non_contiguous_images(photographs):
    image = photographs[0]
    strided = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    window = torch.cat([image, image], dim=1)[:, : image.shape[1]]
    parameters_BVP = draw([image])
    expected = op.multi_crop([image], parameters_BVP, SIZES_PX)
    parameters_strided = torch.stack([parameters_BVP, parameters_BVP], dim=-1)[..., 0]
    for other in (strided, window):
        assert not other.is_contiguous()
        for a, b in zip(op.multi_crop([other], parameters_strided, SIZES_PX), expected, strict=True):
            assert torch.equal(a, b)


def test_bfloat16_is_the_rounded_fp32(photographs):
    parameters_BVP = draw(photographs)
    fp32 = op.multi_crop(photographs, parameters_BVP, SIZES_PX)
    for a, b in zip(op.multi_crop(photographs, parameters_BVP, SIZES_PX, dtype=torch.bfloat16), fp32, strict=True):
        assert a.dtype == torch.bfloat16
        # Two code paths may contract multiply-adds differently: at most one bf16 step apart, and nearly always equal.
        assert torch.allclose(a.float(), b, rtol=2**-7, atol=1e-6)
        assert (a == b.bfloat16()).float().mean() > 0.999


def test_is_deterministic(photographs):
    parameters_BVP = draw(photographs)
    once = op.multi_crop(photographs, parameters_BVP, SIZES_PX, num_threads=1)
    for num_threads in (1, 2, 3):
        again = op.multi_crop(photographs, parameters_BVP, SIZES_PX, num_threads=num_threads)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_crops_do_not_depend_on_the_batch(photographs):
    together = op.multi_crop(photographs, draw(photographs), SIZES_PX)
    alone = op.multi_crop(photographs[1:2], draw(photographs[1:2], first_position=1), SIZES_PX)
    assert all(torch.equal(a[:, 1:2], b) for a, b in zip(together, alone, strict=True))


def test_groups_consecutive_equal_sizes(photographs):
    recipes = [GLOBAL, LOCAL, GLOBAL]
    crops = op.multi_crop(photographs, draw(photographs, recipes), [64, 27, 64])
    assert [tuple(c.shape) for c in crops] == [(1, 3, 3, 64, 64), (1, 3, 3, 27, 27), (1, 3, 3, 64, 64)]


def test_opcheck(photographs):
    arguments = (photographs, draw(photographs), SIZES_PX, [0.5] * 3, [0.2] * 3)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.webssl.multi_crop, (*arguments, dtype, 1))


def test_compiles_fullgraph(photographs):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(images, parameters_BVP):
        crops = torch.ops.webssl.multi_crop(images, parameters_BVP, SIZES_PX, [0.5] * 3, [0.2] * 3, torch.float32, 1)
        return [c.mean() for c in crops]

    parameters_BVP = draw(photographs)
    expected = op.multi_crop(photographs, parameters_BVP, SIZES_PX, mean=[0.5] * 3, std=[0.2] * 3)
    for a, b in zip(compiled(photographs, parameters_BVP), expected, strict=True):
        assert torch.allclose(a, b.mean())


def test_forced_reference_is_used(photographs, monkeypatch):
    parameters_BVP = draw(photographs[:1], [LOCAL])
    monkeypatch.setattr(op._library, "reference_forced", lambda: True)
    (crops,) = op.multi_crop(photographs[:1], parameters_BVP, [27])
    assert torch.equal(crops, op.multi_crop_reference(photographs[:1], parameters_BVP, [27])[0])


# ---------------------------------------------------------------- agreement with Pillow


def pillow_hue(image: Image.Image, turns: float) -> Image.Image:
    """The hue shift of torchvision on Pillow images: uint8 arithmetic on the H channel."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.array(int(turns * 255) % 256, dtype=np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted, "L"), saturation, value)).convert("RGB")


def numpy_blur(pixels_SS3: np.ndarray, sigma: float) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(pixels_SS3.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    size = pixels_SS3.shape[0]
    rows = sum(w * padded[i : i + size] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + size] for i, w in enumerate(weights))


def pillow_crop(image: torch.Tensor, row: list[float], size_px: int) -> np.ndarray:
    """A whole chain as torchvision's v1 transforms run it on Pillow images, uint8 between operations."""
    top, left, height, width = row[params.TOP : params.WIDTH + 1]
    crop = Image.fromarray(image.numpy())
    if row[params.READ_OUTSIDE]:
        crop = crop.resize((size_px, size_px), Image.BICUBIC, box=(left, top, left + width, top + height))
    else:
        crop = crop.crop((left, top, left + width, top + height)).resize((size_px, size_px), Image.BICUBIC)
    if row[params.FLIP]:
        crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
    steps = {
        params.BRIGHTNESS_STEP: lambda x: ImageEnhance.Brightness(x).enhance(row[params.BRIGHTNESS]),
        params.CONTRAST_STEP: lambda x: ImageEnhance.Contrast(x).enhance(row[params.CONTRAST]),
        params.SATURATION_STEP: lambda x: ImageEnhance.Color(x).enhance(row[params.SATURATION]),
        params.HUE_STEP: lambda x: pillow_hue(x, row[params.HUE]) if row[params.HUE] else x,
    }
    for step in row[params.ORDER : params.ORDER + 4]:
        crop = steps[int(step)](crop)
    if row[params.GRAYSCALE]:
        crop = crop.convert("L").convert("RGB")
    if row[params.BLUR_SIGMA]:
        crop = Image.fromarray(np.rint(numpy_blur(np.asarray(crop), row[params.BLUR_SIGMA])).astype(np.uint8))
    if row[params.SOLARIZE_THRESHOLD] != params.NO_SOLARIZE:
        crop = ImageOps.solarize(crop, int(row[params.SOLARIZE_THRESHOLD]))
    return np.asarray(crop).astype(np.float64)


def assert_agrees(ours: np.ndarray, expected: np.ndarray, mean: float = 2.0, p999: float = 8.0) -> None:
    error = np.abs(ours - expected)
    assert error.mean() <= mean and np.quantile(error, 0.999) <= p999, (error.mean(), np.quantile(error, 0.999))


@pytest.mark.parametrize("size_px", [50, 224, 600])
@pytest.mark.parametrize("box", [(0, 0, 300, 451), (13, 77, 200, 150), (250, 401, 50, 50), (0, 200, 300, 7)])
def test_resize_agrees_with_pillow(photographs, box, size_px):
    parameters_BVP = identity(1, 1, **dict(zip(("TOP", "LEFT", "HEIGHT", "WIDTH"), box, strict=True)))
    row = parameters_BVP.flatten().tolist()
    image = photographs[1]
    assert_agrees(pixels(image, parameters_BVP, size_px), pillow_crop(image, row, size_px), mean=0.5, p999=2.0)


@pytest.mark.parametrize("box", [(10.25, 20.5, 250.3, 300.7), (0, 0, 300, 451), (100.4, 3.3, 20.2, 30.9)])
def test_fractional_box_agrees_with_pillow_resize_box(photographs, box):
    parameters_BVP = identity(1, 1, READ_OUTSIDE=1, **dict(zip(("TOP", "LEFT", "HEIGHT", "WIDTH"), box, strict=True)))
    row = parameters_BVP.flatten().tolist()
    image = photographs[1]
    assert_agrees(pixels(image, parameters_BVP, 98), pillow_crop(image, row, 98), mean=0.5, p999=2.0)


@pytest.mark.parametrize(
    "columns",
    [dict(BRIGHTNESS=f) for f in (0.0, 0.6, 1.4)]
    + [dict(CONTRAST=f) for f in (0.0, 0.6, 1.4)]
    + [dict(SATURATION=f) for f in (0.0, 0.8, 1.2, 3.0)]
    + [dict(GRAYSCALE=1), dict(FLIP=1), dict(SOLARIZE_THRESHOLD=128), dict(SOLARIZE_THRESHOLD=0)],
)
@pytest.mark.parametrize("photograph", [0, 1])
def test_color_operation_agrees_with_pillow(photographs, photograph, columns):
    image = photographs[photograph][:300, :300].contiguous()  # cropped to its own size: resampling changes nothing
    parameters_BVP = identity(300, 300, **columns)
    expected = pillow_crop(image, parameters_BVP.flatten().tolist(), 300)
    assert_agrees(pixels(image, parameters_BVP, 300), expected, mean=1.0, p999=2.0)


@pytest.mark.parametrize("turns", [-0.5, -0.1, -0.03, 0.01, 0.07, 0.1, 0.5])
@pytest.mark.parametrize("photograph", [0, 1])
def test_hue_agrees_with_pillow(photographs, photograph, turns):
    image = photographs[photograph][:300, :300].contiguous()
    parameters_BVP = identity(300, 300, HUE=turns)
    expected = pillow_crop(image, parameters_BVP.flatten().tolist(), 300)
    assert_agrees(pixels(image, parameters_BVP, 300), expected)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_agrees_with_numpy(photographs, sigma):
    image = photographs[0][:300, :300].contiguous()
    ours = pixels(image, identity(300, 300, BLUR_SIGMA=sigma), 300)
    np.testing.assert_allclose(ours, numpy_blur(image.numpy(), sigma), atol=1e-3)


def test_whole_chains_agree_with_pillow(photographs):
    """The DINOv2 recipe, every crop of 16 draws of each photograph: each crop within the limits, and all together."""
    recipes = [
        replace(GLOBAL, size_px=224, blur_probability=0.0, solarize_probability=0.0),
        replace(GLOBAL, size_px=224),
        *[replace(LOCAL, size_px=98)] * 4,
    ]
    sizes_px = [recipe.size_px for recipe in recipes]
    errors = []
    for first_position in range(0, 32, 2):
        images = photographs[:2]
        parameters_BVP = draw(images, recipes, first_position=first_position)
        groups = op.multi_crop(images, parameters_BVP, sizes_px, **PLAIN)
        crops_VB = [crops_B3SS for group in groups for crops_B3SS in group]
        for crop, crops_B3SS in enumerate(crops_VB):
            for image, crop_3SS in enumerate(crops_B3SS):
                row = parameters_BVP[image, crop].tolist()
                expected = pillow_crop(images[image], row, sizes_px[crop])
                errors.append(np.abs(crop_3SS.permute(1, 2, 0).double().numpy() - expected).ravel())
    means, p999s = [e.mean() for e in errors], [np.quantile(e, 0.999) for e in errors]
    print(f"\nworst crop: mean {max(means):.2f}, p99.9 {max(p999s):.2f}; over all: mean {np.mean(means):.2f}")
    assert max(means) <= 2 and max(p999s) <= 8
    assert np.mean(means) <= 0.7


# ---------------------------------------------------------------- evaluation crop


@pytest.mark.parametrize("height, width", [(300, 451), (512, 90), (40, 300)])
def test_center_crop_equals_resize_then_crop(photographs, height, width):
    image = photographs[0].repeat(1, 1, 1)[:height, :width].contiguous()
    parameters_BVP = params.center_crop_parameters(sizes_of([image]), 56)
    resize_px, shorter = 64, min(height, width)
    resized_height, resized_width = (resize_px * side // shorter for side in (height, width))
    resized = Image.fromarray(image.numpy()).resize((resized_width, resized_height), Image.BICUBIC)
    top, left = round((resized_height - 56) / 2), round((resized_width - 56) / 2)
    expected = np.asarray(resized.crop((left, top, left + 56, top + 56))).astype(np.float64)
    assert_agrees(pixels(image, parameters_BVP, 56), expected, mean=0.5, p999=2.0)


def test_center_crop_without_resize_is_the_image(photographs):
    image = photographs[1][:98, :98].contiguous()
    ours = pixels(image, params.center_crop_parameters(sizes_of([image]), 98, resize_px=98), 98)
    np.testing.assert_allclose(ours, image.numpy(), atol=1e-3)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=lambda i: [i[0].float()]), r"images\[0\] must be uint8"),
        (dict(images=lambda i: [i[0].permute(2, 0, 1)]), r"images\[0\] must be uint8"),
        (dict(images=lambda i: [i[0][:0]]), r"images\[0\] has no pixels"),
        (dict(images=lambda i: i * 2), "parameters_BVP must be float32"),
        (dict(parameters_BVP=lambda p: p.double()), "parameters_BVP must be float32"),
        (dict(parameters_BVP=lambda p: p[..., :5]), "parameters_BVP must be float32"),
        (dict(sizes_px=lambda s: [0]), "sizes_px must be positive"),
        (dict(dtype=lambda d: torch.float16), "dtype must be"),
        (dict(num_threads=lambda n: -1), "num_threads must be"),
        (dict(mean=lambda m: (0.5,)), "three values"),
        (dict(std=lambda s: (0.5, 0.0, 0.5)), "std positive"),
    ],
)
def test_rejects_bad_arguments(photographs, change, message):
    image = photographs[1]
    arguments = dict(
        images=[image], parameters_BVP=identity(*image.shape[:2]), sizes_px=[32], mean=(0.5,) * 3, std=(0.2,) * 3,
        dtype=torch.float32, num_threads=1,
    )  # fmt: skip
    for name, edit in change.items():
        arguments[name] = edit(arguments[name])
    with pytest.raises(ValueError, match=message):
        op.multi_crop(**arguments)


@pytest.mark.parametrize(
    "columns, message",
    [
        (dict(TOP=math.nan), "finite"),
        (dict(TOP=-1.0), "top, left >= 0"),
        (dict(HEIGHT=0.0), "height, width > 0"),
        (dict(WIDTH=452.0), "inside their image"),
        (dict(CONTRAST=-0.1), "factors >= 0"),
        (dict(HUE=1.5), "hue shift"),
        (dict(ORDER=3.0), "permutation"),
        (dict(BLUR_SIGMA=-1.0), "blur sigma"),
    ],
)
def test_rejects_bad_parameters(photographs, columns, message):
    with pytest.raises(ValueError, match=message):
        op.multi_crop([photographs[1]], identity(300, 451, **columns), [32])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scale=(0.0, 1.0)), "scale must be"),
        (dict(scale=(0.5, 1.5)), "scale must be"),
        (dict(ratio=(2.0, 1.0)), "ratio must be"),
        (dict(blur_sigma=(0.0, 1.0)), "blur_sigma must be"),
        (dict(flip_probability=1.5), "flip_probability"),
        (dict(brightness=-0.1), "brightness must not be negative"),
        (dict(hue=0.6), "hue must be"),
    ],
)
def test_rejects_bad_recipes(photographs, change, message):
    with pytest.raises(ValueError, match=rf"recipes\[1\]\.{message}"):
        draw(photographs, [GLOBAL, replace(GLOBAL, **change)])


def test_rejects_bad_draw_arguments():
    sizes_B2, positions_B = torch.tensor([[3, 4]], dtype=torch.int32), torch.tensor([0])
    with pytest.raises(ValueError, match="image_sizes_B2 must be int32"):
        params.draw_crop_parameters(sizes_B2.long(), RECIPES, 0, positions_B)
    with pytest.raises(ValueError, match="image_sizes_B2 must be positive"):
        params.draw_crop_parameters(sizes_B2 * 0, RECIPES, 0, positions_B)
    with pytest.raises(ValueError, match="positions_B must be int64"):
        params.draw_crop_parameters(sizes_B2, RECIPES, 0, positions_B.int())
    with pytest.raises(ValueError, match="seed must be"):
        params.draw_crop_parameters(sizes_B2, RECIPES, -1, positions_B)
    with pytest.raises(ValueError, match="size_px <= resize_px"):
        params.center_crop_parameters(sizes_B2, 98, resize_px=64)
