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
    return op.draw_crop_parameters(sizes_of(images), recipes, seed, torch.arange(len(images)) + first_position)


def identity(height: int, width: int, **columns: float) -> torch.Tensor:
    """Parameters [1, 1, P] of a crop of the whole image that changes nothing, with `columns` set by name."""
    parameters_BVP = torch.zeros(1, 1, op.NUM_PARAMETERS)
    values = dict(HEIGHT=height, WIDTH=width, BRIGHTNESS=1, CONTRAST=1, SATURATION=1, SOLARIZE_THRESHOLD=op.NO_SOLARIZE)
    parameters_BVP[..., op.ORDER : op.ORDER + 4] = torch.arange(4.0)
    for name, value in (values | columns).items():
        parameters_BVP[..., getattr(op, name)] = value
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


def test_accepts_an_empty_batch():
    crops = op.multi_crop([], torch.empty(0, 5, op.NUM_PARAMETERS), SIZES_PX)
    assert [tuple(c.shape) for c in crops] == [(2, 0, 3, 64, 64), (3, 0, 3, 27, 27)]
    assert draw([]).shape == (0, 5, op.NUM_PARAMETERS)


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
    monkeypatch.setattr(op, "reference_forced", lambda: True)
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
    top, left, height, width = row[op.TOP : op.WIDTH + 1]
    crop = Image.fromarray(image.numpy())
    if row[op.READ_OUTSIDE]:
        crop = crop.resize((size_px, size_px), Image.BICUBIC, box=(left, top, left + width, top + height))
    else:
        crop = crop.crop((left, top, left + width, top + height)).resize((size_px, size_px), Image.BICUBIC)
    if row[op.FLIP]:
        crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
    steps = {
        op.BRIGHTNESS_STEP: lambda x: ImageEnhance.Brightness(x).enhance(row[op.BRIGHTNESS]),
        op.CONTRAST_STEP: lambda x: ImageEnhance.Contrast(x).enhance(row[op.CONTRAST]),
        op.SATURATION_STEP: lambda x: ImageEnhance.Color(x).enhance(row[op.SATURATION]),
        op.HUE_STEP: lambda x: pillow_hue(x, row[op.HUE]) if row[op.HUE] else x,
    }
    for step in row[op.ORDER : op.ORDER + 4]:
        crop = steps[int(step)](crop)
    if row[op.GRAYSCALE]:
        crop = crop.convert("L").convert("RGB")
    if row[op.BLUR_SIGMA]:
        crop = Image.fromarray(np.rint(numpy_blur(np.asarray(crop), row[op.BLUR_SIGMA])).astype(np.uint8))
    if row[op.SOLARIZE_THRESHOLD] != op.NO_SOLARIZE:
        crop = ImageOps.solarize(crop, int(row[op.SOLARIZE_THRESHOLD]))
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
    everything = np.concatenate(errors)
    means, p999s = [e.mean() for e in errors], [np.quantile(e, 0.999) for e in errors]
    print(
        f"mean {everything.mean():.2f}, worst crop {max(means):.2f}; "
        f"p99.9 {np.quantile(everything, 0.999):.2f}, worst crop {max(p999s):.2f}"
    )
    assert everything.mean() <= 2 and np.quantile(everything, 0.999) <= 8


# ---------------------------------------------------------------- draws


def philox4x32(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 from the paper (Salmon et al., SC 2011, section 4)."""
    mask = 2**32 - 1
    k0, k1 = key & mask, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def torchvision_box(height, width, recipe, uniforms):
    """RandomResizedCrop.get_params, its random numbers from `uniforms(attempt)`: four in [0, 1)."""
    log_low, log_high = (math.log(r) for r in recipe.ratio)
    for attempt in range(10):
        u = uniforms(attempt)
        area = height * width * (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u[0])
        ratio = math.exp(log_low + (log_high - log_low) * u[1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < recipe.ratio[0]:
        h = round(w / recipe.ratio[0])
    elif width / height > recipe.ratio[1]:
        w = round(h * recipe.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def test_philox_known_answers():
    """Vectors published with Random123 (kat_vectors, philox 4x32 10)."""
    assert philox4x32(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 2**32 - 1
    assert philox4x32(2**64 - 1, (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 20), (7, 700)])
def test_draws_are_the_documented_function_of_their_counters(height, width):
    seed, positions = 2**63 + 12345, torch.tensor([0, 1, 2**32 + 5, 2**40])
    sizes_B2 = torch.tensor([[height, width]] * 4, dtype=torch.int32)
    parameters_BVP = op.draw_crop_parameters(sizes_B2, RECIPES, seed, positions)
    for image, position in enumerate(positions.tolist()):
        for crop, recipe in enumerate(RECIPES):

            def uniforms(operation, position=position, crop=crop):
                counter = (position % 2**32, position >> 32, crop, operation)
                return [word / 2**32 for word in philox4x32(seed, counter)]

            row = parameters_BVP[image, crop].tolist()
            assert tuple(row[op.TOP : op.WIDTH + 1]) == torchvision_box(height, width, recipe, uniforms)
            assert row[op.FLIP] == (uniforms(10)[0] < 0.5)
            factors = [u * 2 - 1 for u in uniforms(12)]
            jitters = uniforms(11)[0] < 0.8
            for column, strength, neutral in zip(range(6, 10), (0.4, 0.4, 0.2, 0.1), (1, 1, 1, 0), strict=True):
                expected = neutral + strength * factors[column - 6] if jitters else neutral
                assert row[column] == pytest.approx(expected, abs=1e-6)
            assert row[op.GRAYSCALE] == (uniforms(13)[0] < 0.2)
            blurs, sigma = uniforms(14)[0] < recipe.blur_probability, 0.1 + 1.9 * uniforms(14)[1]
            assert row[op.BLUR_SIGMA] == pytest.approx(sigma if blurs else 0, abs=1e-6)
            solarizes = uniforms(15)[0] < recipe.solarize_probability
            assert row[op.SOLARIZE_THRESHOLD] == (128 if solarizes else op.NO_SOLARIZE)


def test_draws_do_not_depend_on_the_batch():
    sizes_B2 = torch.tensor([[375, 500], [500, 333], [64, 64], [375, 500]], dtype=torch.int32)
    positions = torch.tensor([5, 900, 17, 6])
    together = op.draw_crop_parameters(sizes_B2, RECIPES, 1, positions)
    shuffle = torch.tensor([2, 0, 3])
    assert torch.equal(op.draw_crop_parameters(sizes_B2[shuffle], RECIPES, 1, positions[shuffle]), together[shuffle])
    assert not torch.equal(together[0], together[3])
    assert not torch.equal(together[:, 2], together[:, 3])
    assert not torch.equal(op.draw_crop_parameters(sizes_B2, RECIPES, 2, positions), together)


def test_an_operation_that_is_off_moves_no_other_draw():
    sizes_B2, positions = torch.tensor([[375, 500]] * 64, dtype=torch.int32), torch.arange(64)
    full = op.draw_crop_parameters(sizes_B2, [GLOBAL], 1, positions)
    quiet = op.draw_crop_parameters(sizes_B2, [replace(GLOBAL, jitter_probability=0.0)], 1, positions)
    changed = (full != quiet).any(0)[0].nonzero().flatten().tolist()
    assert changed == [op.BRIGHTNESS, op.CONTRAST, op.SATURATION, op.HUE]


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample statistic, scaled so that 1.95 is exceeded with probability 0.001 under equal distributions."""
    points = np.sort(np.concatenate([a, b]))
    cdf_a, cdf_b = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b))
    return float(np.abs(cdf_a - cdf_b).max() * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


@pytest.mark.parametrize("height, width", [(375, 500), (600, 200)])
def test_distribution_of_draws(height, width):
    num = 8000
    sizes_B2 = torch.tensor([[height, width]] * num, dtype=torch.int32)
    drawn = op.draw_crop_parameters(sizes_B2, [GLOBAL], 11, torch.arange(num))[:, 0].double().numpy()
    random = np.random.default_rng(0)
    boxes = np.array([torchvision_box(height, width, GLOBAL, lambda _: random.random(4)) for _ in range(num)])
    top, left, box_height, box_width = drawn[:, : op.WIDTH + 1].T
    jitters = drawn[:, op.BRIGHTNESS] != 1
    samples = {
        "area": (box_height * box_width, boxes[:, 2] * boxes[:, 3]),
        "ratio": (box_width / box_height, boxes[:, 3] / boxes[:, 2]),
        "top": (top, boxes[:, 0]),
        "left": (left, boxes[:, 1]),
        "hue": (drawn[jitters, op.HUE], random.uniform(-0.1, 0.1, num)),
        "brightness": (drawn[jitters, op.BRIGHTNESS], random.uniform(0.6, 1.4, num)),
        "sigma": (drawn[drawn[:, op.BLUR_SIGMA] > 0, op.BLUR_SIGMA], random.uniform(0.1, 2.0, num)),
    }
    for name, (ours, expected) in samples.items():
        assert kolmogorov_smirnov(ours, expected) < 2.2, name
    shares = {
        "flip": (drawn[:, op.FLIP].mean(), 0.5),
        "jitter": (jitters.mean(), 0.8),
        "grayscale": (drawn[:, op.GRAYSCALE].mean(), 0.2),
        "blur": ((drawn[:, op.BLUR_SIGMA] > 0).mean(), 0.9),
        "solarize": ((drawn[:, op.SOLARIZE_THRESHOLD] == 128).mean(), 0.2),
    }
    for name, (share, probability) in shares.items():
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / num), name
    orders, counts = np.unique(drawn[:, op.ORDER : op.ORDER + 4], axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - num / 24) ** 2 / (num / 24)).sum() < 60  # chi-squared, 23 degrees: 60 has probability 4e-5


# ---------------------------------------------------------------- evaluation crop


@pytest.mark.parametrize("height, width", [(300, 451), (512, 90), (40, 300)])
def test_center_crop_equals_resize_then_crop(photographs, height, width):
    image = photographs[0].repeat(1, 1, 1)[:height, :width].contiguous()
    parameters_BVP = op.center_crop_parameters(sizes_of([image]), 56)
    resize_px, shorter = 64, min(height, width)
    resized_height, resized_width = (resize_px * side // shorter for side in (height, width))
    resized = Image.fromarray(image.numpy()).resize((resized_width, resized_height), Image.BICUBIC)
    top, left = round((resized_height - 56) / 2), round((resized_width - 56) / 2)
    expected = np.asarray(resized.crop((left, top, left + 56, top + 56))).astype(np.float64)
    assert_agrees(pixels(image, parameters_BVP, 56), expected, mean=0.5, p999=2.0)


def test_center_crop_without_resize_is_the_image(photographs):
    image = photographs[1][:98, :98].contiguous()
    ours = pixels(image, op.center_crop_parameters(sizes_of([image]), 98, resize_px=98), 98)
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
        op.draw_crop_parameters(sizes_B2.long(), RECIPES, 0, positions_B)
    with pytest.raises(ValueError, match="image_sizes_B2 must be positive"):
        op.draw_crop_parameters(sizes_B2 * 0, RECIPES, 0, positions_B)
    with pytest.raises(ValueError, match="positions_B must be int64"):
        op.draw_crop_parameters(sizes_B2, RECIPES, 0, positions_B.int())
    with pytest.raises(ValueError, match="seed must be"):
        op.draw_crop_parameters(sizes_B2, RECIPES, -1, positions_B)
    with pytest.raises(ValueError, match="size_px <= resize_px"):
        op.center_crop_parameters(sizes_B2, 98, resize_px=64)
