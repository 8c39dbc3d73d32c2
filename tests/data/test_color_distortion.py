"""Colour augmentation: the ranges that are drawn from, and pixels against colorsys and the plain formulas."""

import colorsys

import numpy as np
import pytest
import torch

from webssl_fast.data.color_distortion import gamma_brightness_color, photometric_distortion


class Script:
    """A generator whose `random` answers from a list and whose draws take a share of their range; keeps the ranges."""

    def __init__(self, answers=(), share=0.5):
        self.answers, self.share, self.asked = list(answers), share, []

    def random(self):
        return 0.0 if self.answers.pop(0) else 1.0

    def uniform(self, low, high, size=None):
        self.asked.append((low, high))
        value = low + self.share * (high - low)
        return value if size is None else np.full(size, value)

    def integers(self, low, high):
        self.asked.append((low, high))
        return low + int(self.share * (high - 1 - low))


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 9, 11), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


# photometric_distortion asks, in this order: brightness? contrast first? [contrast?] saturation? hue? [contrast?]
NOTHING, BRIGHTNESS = [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]
CONTRAST_FIRST, CONTRAST_LAST = [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]
SATURATION, HUE = [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]


def test_each_part_draws_from_its_range(image):
    for answers, expected in (
        (NOTHING, []),
        (BRIGHTNESS, [(-32, 32)]),
        (CONTRAST_FIRST, [(0.5, 1.5)]),
        (CONTRAST_LAST, [(0.5, 1.5)]),
        (SATURATION, [(0.5, 1.5)]),
        (HUE, [(-18, 18)]),  # the upper end is excluded, as numpy has it
    ):
        rng = Script(answers)
        photometric_distortion(image, rng)
        assert rng.asked == expected and not rng.answers


def test_without_any_part_the_image_is_as_it_was(image):
    assert torch.equal(photometric_distortion(image, Script(NOTHING)), image)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_brightness_adds_and_contrast_multiplies(image, share):
    x = image.double()
    brighter = (x - 32 + 64 * share).clamp(0, 255).floor().to(torch.uint8)
    assert torch.equal(photometric_distortion(image, Script(BRIGHTNESS, share)), brighter)
    stronger = (x * (0.5 + share)).clamp(0, 255).floor()
    for answers in (CONTRAST_FIRST, CONTRAST_LAST):
        found = photometric_distortion(image, Script(answers, share)).double()
        assert (found - stronger).abs().max() <= 1  # 0.5 + share in fp32


def by_colorsys(image, change):
    pixels = image.permute(1, 2, 0).reshape(-1, 3).double() / 255
    turned = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel.tolist()))) for pixel in pixels]
    return torch.tensor(turned).reshape(*image.shape[1:], 3).permute(2, 0, 1) * 255


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_saturation_and_hue_match_colorsys(image, share):
    factor, degrees = 0.5 + share, (-18 + int(share * 35)) * 2
    assert -36 <= degrees <= 34
    saturated = by_colorsys(image, lambda h, s, v: (h, min(1.0, s * factor), v))
    found = photometric_distortion(image, Script(SATURATION, share)).double()
    assert (found - saturated).abs().max() <= 0.51
    turned = by_colorsys(image, lambda h, s, v: ((h + degrees / 360) % 1.0, s, v))
    found = photometric_distortion(image, Script(HUE, share)).double()
    assert (found - turned).abs().max() <= 0.51


def test_grey_has_no_hue_and_no_saturation():
    grey = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    for answers in (SATURATION, HUE):
        assert torch.equal(photometric_distortion(grey, Script(answers, 0.9)), grey)


def test_parts_come_half_of_the_time():
    grey = torch.full((3, 1, 1), 100, dtype=torch.uint8)  # only brightness and contrast change it
    changed = sum(
        not torch.equal(photometric_distortion(grey, np.random.default_rng(seed)), grey) for seed in range(400)
    )
    assert changed / 400 == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_depth_colours_follow_their_formula(image, share):
    rng = Script(share=share)
    found = gamma_brightness_color(image, rng)
    assert rng.asked == [(0.9, 1.1), (0.75, 1.25), (0.9, 1.1)]
    gamma, brightness, color = 0.9 + 0.2 * share, 0.75 + 0.5 * share, 0.9 + 0.2 * share
    expected = (image.double() ** gamma * brightness * color).clamp(0, 255)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
