"""The random draws of multi_crop: a documented function of Philox counters, with torchvision's distribution.

Dimensions: B images, V crops, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.ops.test_multi_crop import GLOBAL, RECIPES
from webssl_fast.ops import crop_parameters as params


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
    parameters_BVP = params.draw_crop_parameters(sizes_B2, RECIPES, seed, positions)
    for image, position in enumerate(positions.tolist()):
        for crop, recipe in enumerate(RECIPES):

            def uniforms(operation, position=position, crop=crop):
                counter = (position % 2**32, position >> 32, crop, operation)
                return [word / 2**32 for word in philox4x32(seed, counter)]

            row = parameters_BVP[image, crop].tolist()
            assert tuple(row[params.TOP : params.WIDTH + 1]) == torchvision_box(height, width, recipe, uniforms)
            assert row[params.FLIP] == (uniforms(10)[0] < 0.5)
            factors = [u * 2 - 1 for u in uniforms(12)]
            jitters = uniforms(11)[0] < 0.8
            for column, strength, neutral in zip(range(6, 10), (0.4, 0.4, 0.2, 0.1), (1, 1, 1, 0), strict=True):
                expected = neutral + strength * factors[column - 6] if jitters else neutral
                assert row[column] == pytest.approx(expected, abs=1e-6)
            assert row[params.GRAYSCALE] == (uniforms(13)[0] < 0.2)
            blurs, sigma = uniforms(14)[0] < recipe.blur_probability, 0.1 + 1.9 * uniforms(14)[1]
            assert row[params.BLUR_SIGMA] == pytest.approx(sigma if blurs else 0, abs=1e-6)
            solarizes = uniforms(15)[0] < recipe.solarize_probability
            assert row[params.SOLARIZE_THRESHOLD] == (128 if solarizes else params.NO_SOLARIZE)


def test_draws_do_not_depend_on_the_batch():
    sizes_B2 = torch.tensor([[375, 500], [500, 333], [64, 64], [375, 500]], dtype=torch.int32)
    positions = torch.tensor([5, 900, 17, 6])
    together = params.draw_crop_parameters(sizes_B2, RECIPES, 1, positions)
    shuffle = torch.tensor([2, 0, 3])
    assert torch.equal(
        params.draw_crop_parameters(sizes_B2[shuffle], RECIPES, 1, positions[shuffle]), together[shuffle]
    )
    assert not torch.equal(together[0], together[3])
    assert not torch.equal(together[:, 2], together[:, 3])
    assert not torch.equal(params.draw_crop_parameters(sizes_B2, RECIPES, 2, positions), together)


def test_an_operation_that_is_off_moves_no_other_draw():
    sizes_B2, positions = torch.tensor([[375, 500]] * 64, dtype=torch.int32), torch.arange(64)
    full = params.draw_crop_parameters(sizes_B2, [GLOBAL], 1, positions)
    quiet = params.draw_crop_parameters(sizes_B2, [replace(GLOBAL, jitter_probability=0.0)], 1, positions)
    changed = (full != quiet).any(0)[0].nonzero().flatten().tolist()
    assert changed == [params.BRIGHTNESS, params.CONTRAST, params.SATURATION, params.HUE]


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample statistic, scaled so that 1.95 is exceeded with probability 0.001 under equal distributions."""
    points = np.sort(np.concatenate([a, b]))
    cdf_a, cdf_b = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b))
    return float(np.abs(cdf_a - cdf_b).max() * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


@pytest.mark.parametrize("height, width", [(375, 500), (600, 200)])
def test_distribution_of_draws(height, width):
    num = 8000
    sizes_B2 = torch.tensor([[height, width]] * num, dtype=torch.int32)
    drawn = params.draw_crop_parameters(sizes_B2, [GLOBAL], 11, torch.arange(num))[:, 0].double().numpy()
    random = np.random.default_rng(0)
    boxes = np.array([torchvision_box(height, width, GLOBAL, lambda _: random.random(4)) for _ in range(num)])
    top, left, box_height, box_width = drawn[:, : params.WIDTH + 1].T
    jitters = drawn[:, params.BRIGHTNESS] != 1
    samples = {
        "area": (box_height * box_width, boxes[:, 2] * boxes[:, 3]),
        "ratio": (box_width / box_height, boxes[:, 3] / boxes[:, 2]),
        "top": (top, boxes[:, 0]),
        "left": (left, boxes[:, 1]),
        "hue": (drawn[jitters, params.HUE], random.uniform(-0.1, 0.1, num)),
        "brightness": (drawn[jitters, params.BRIGHTNESS], random.uniform(0.6, 1.4, num)),
        "sigma": (drawn[drawn[:, params.BLUR_SIGMA] > 0, params.BLUR_SIGMA], random.uniform(0.1, 2.0, num)),
    }
    for name, (ours, expected) in samples.items():
        assert kolmogorov_smirnov(ours, expected) < 2.2, name
    shares = {
        "flip": (drawn[:, params.FLIP].mean(), 0.5),
        "jitter": (jitters.mean(), 0.8),
        "grayscale": (drawn[:, params.GRAYSCALE].mean(), 0.2),
        "blur": ((drawn[:, params.BLUR_SIGMA] > 0).mean(), 0.9),
        "solarize": ((drawn[:, params.SOLARIZE_THRESHOLD] == 128).mean(), 0.2),
    }
    for name, (share, probability) in shares.items():
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / num), name
    orders, counts = np.unique(drawn[:, params.ORDER : params.ORDER + 4], axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - num / 24) ** 2 / (num / 24)).sum() < 60  # chi-squared, 23 degrees: 60 has probability 4e-5
