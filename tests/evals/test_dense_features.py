"""Block choices of the protocols, padding, and the order of channels."""

import pytest
import torch

from tests.evals.dense_encoder import PixelEncoder
from webssl_fast.evals.dense_features import FeatureMaps, centre_padded, spread_blocks
from webssl_fast.models.presets import PRESETS


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(12, [2, 5, 8, 11]), (24, [4, 11, 17, 23]), (32, [7, 15, 23, 31]), (40, [9, 19, 29, 39]), (26, [5, 12, 18, 25])],
)
def test_four_blocks_are_those_of_the_protocol(num_blocks, expected):
    assert spread_blocks(num_blocks, 4) == expected


@pytest.mark.parametrize("depth", sorted({preset.depth for preset in PRESETS.values()}))
def test_the_last_block_is_always_read(depth):
    for count in (1, 4):
        if count <= depth:
            blocks = spread_blocks(depth, count)
            assert blocks[-1] == depth - 1 and len(set(blocks)) == count
    with pytest.raises(ValueError, match="count must lie in"):
        spread_blocks(depth, depth + 1)


def test_padding_is_even_and_its_odd_pixel_goes_to_the_end():
    padded = centre_padded(torch.ones(1, 3, 9, 14), 4)  # 3 rows missing, 2 columns
    assert padded.shape == (1, 3, 12, 16)
    assert padded[0, 0].sum(1).tolist() == [0, *[14] * 9, 0, 0]
    assert padded[0, 0].sum(0).tolist() == [0, *[9] * 14, 0]
    whole = torch.rand(1, 3, 8, 16)
    assert torch.equal(centre_padded(whole, 4), whole)


def test_maps_hold_each_block_in_turn_at_its_place():
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    patches, cls = FeatureMaps(PixelEncoder(), [1, 3], final_norm=False)(images)
    means = torch.nn.functional.avg_pool2d(images, 4)
    torch.testing.assert_close(patches, torch.cat([2 * means, 4 * means], 1))
    torch.testing.assert_close(cls, torch.cat([2 * means, 4 * means], 1).mean((2, 3)))
    normed, _ = FeatureMaps(PixelEncoder(), [3], final_norm=True)(images)
    torch.testing.assert_close(normed, 4 * means + 10)
