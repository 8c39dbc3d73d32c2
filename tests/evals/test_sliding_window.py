"""Windows cover every pixel, and stitching gives back a field that depends on place, whatever the overlap."""

import pytest
import torch

from webssl_fast.evals.sliding_window import slide, window_starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (683, 512, 341, [0, 171]),
        (512, 512, 341, [0]),
        (300, 512, 341, [0]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (1280, 640, 320, [0, 320, 640]),
    ],
)
def test_window_starts(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


def test_a_stride_that_leaves_pixels_out_is_refused():
    with pytest.raises(ValueError, match="stride must lie in"):
        window_starts(10, 4, 5)


SIZES = [(31, 47), (16, 16), (9, 40), (7, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("windows_per_pass", [1, 3, 100])
def test_a_constant_field_stays_constant(size, windows_per_pass):
    def predict(windows):
        return torch.tensor([2.5, -1.0])[None, :, None, None].expand(len(windows), 2, *windows.shape[-2:])

    stitched = slide(predict, torch.rand(3, *size), 16, 7, windows_per_pass)
    assert torch.equal(stitched, torch.tensor([2.5, -1.0])[:, None, None].expand(2, *size))


@pytest.mark.parametrize("size", SIZES)
def test_a_field_that_depends_on_place_is_given_back(size):
    field = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    stitched = slide(lambda windows: windows * 3 + 1, field, 16, 7, 4)
    torch.testing.assert_close(stitched, field * 3 + 1, rtol=1e-6, atol=1e-6)


def test_overlaps_are_means_of_their_windows():
    numbers = iter([1.0, 2.0, 4.0])  # what each window says, over a side of 10 with windows of 4 from 0, 3, 6

    def predict(windows):
        return torch.stack([torch.full((1, 4, 4), next(numbers)) for _ in windows])

    row = slide(predict, torch.zeros(3, 4, 10), 4, 3, 2)[0, 2]
    assert row.tolist() == [1, 1, 1, 1.5, 2, 2, 3, 4, 4, 4]
