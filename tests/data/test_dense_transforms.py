"""Geometry of image and map, against formulas in fp64."""

import math

import numpy as np
import pytest
import torch

from webssl_fast.data import dense_transforms as transforms


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 12, 17), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "short", "long", "expected"),
    [
        (683, 512, 512, 2048, (683, 512)),
        (480, 640, 512, 2048, (512, 683)),  # 682.67
        (480, 640, 256, 1024, (256, 341)),
        (200, 2000, 512, 2048, (205, 2048)),  # the long side decides: 204.8
        (480, 640, 1920, math.inf, (1920, 2560)),
    ],
)
def test_fitted_size(height, width, short, long, expected):
    assert transforms.fitted_size(height, width, short, long) == expected


@pytest.mark.parametrize("size", [(5, 7), (24, 34), (12, 40), (12, 17)])
def test_resized_is_bilinear_between_pixel_centres(image, size):
    def weights(length, new_length):
        place = np.clip((np.arange(new_length) + 0.5) * length / new_length - 0.5, 0, length - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(length)))

    rows, columns = weights(12, size[0]), weights(17, size[1])
    expected = rows @ image.double().numpy() @ columns.T
    found = transforms.resized(image, size)
    assert found.dtype == torch.uint8 and found.shape == (3, *size)
    assert np.abs(found.numpy() - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(5, 7), (24, 34), (12, 17)])
def test_resized_labels_take_one_pixel_each(image, size):
    labels = image[0]
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, labels.shape, strict=True))
    assert np.array_equal(transforms.resized_labels(labels, size), labels.numpy()[np.ix_(rows, columns)])


def test_random_corner_covers_where_a_crop_fits():
    rng = np.random.default_rng(0)
    corners = {transforms.random_corner((7, 3), (5, 4), rng) for _ in range(200)}
    assert corners == {(0, 0), (1, 0), (2, 0)}


def test_cut_and_padded(image):
    part = transforms.cut(image, (10, 3), (5, 6))
    assert torch.equal(part, image[:, 10:12, 3:9])
    whole = transforms.padded(part, (5, 6), 255)
    assert whole.shape == (3, 5, 6) and torch.equal(whole[:, :2], part) and (whole[:, 2:] == 255).all()
    assert transforms.padded(whole, (5, 6), 0) is whole


def test_rotated_image_and_depth_stay_together():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    ramp = 50 + 2 * y + x
    image, depth = transforms.rotated(ramp.to(torch.uint8).expand(3, -1, -1), ramp, 2.5)
    known = depth > 0
    assert 0.9 < known.float().mean() < 1 and (depth[0, :5] == 0).any()
    inside = torch.zeros_like(known)
    inside[4:-4, 4:-4] = True
    assert (image[0].float() - depth)[inside].abs().max() <= 2.6  # half a pixel either way of the nearest one
    angle = math.radians(2.5)  # turned against the clock about the centre
    centre_y, centre_x = 19.5, 29.5
    source_y = centre_y + math.cos(angle) * (y - centre_y) + math.sin(angle) * (x - centre_x)
    source_x = centre_x + math.cos(angle) * (x - centre_x) - math.sin(angle) * (y - centre_y)
    assert (image[0].float() - (50 + 2 * source_y + source_x))[inside].abs().max() <= 1.1


def test_normalized(image):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    expected = (image.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(transforms.normalized(image, mean, std).double(), expected, rtol=1e-5, atol=1e-6)
