import numpy as np
import pytest

from webssl_fast import draws
from webssl_fast.methods.masking import block_mask, group_masks


def test_masked_share_is_what_dinov2_measures():
    """Batches of 32 images at 16x16 patches: 38.1 masked patches a global crop, nearly constant, below the bound 39."""
    means = [
        group_masks(draws.generator(0, "mask", i), 64, (16, 16), 0.5, (0.1, 0.5)).sum(axis=1).mean() for i in range(40)
    ]
    assert np.mean(means) == pytest.approx(38.1, abs=0.4)
    assert np.std(means) / np.mean(means) < 0.01
    assert np.max(means) <= 39.0


def test_half_of_the_crops_carry_a_mask_with_spread_ratios():
    masks = group_masks(draws.generator(3, "mask", 0), 32, (16, 16), 0.5, (0.1, 0.5))
    counts = np.sort(masks.sum(axis=1))
    assert (counts[:16] == 0).all() and (counts[16:] > 0).all()
    edges = (np.linspace(0.1, 0.5, 17) * 256).astype(int)
    assert (counts[16:] <= edges[1:]).all()


@pytest.mark.parametrize("wanted", [0, 1, 4, 20, 128, 200])
def test_block_mask_never_exceeds_what_is_wanted(wanted):
    for i in range(20):
        mask = block_mask(draws.generator(1, "mask", i), (16, 16), wanted)
        assert mask.sum() <= min(wanted, 128)
    if wanted >= 20:
        assert mask.sum() > 0.8 * min(wanted, 128)


def test_tiny_grids_end():
    assert block_mask(draws.generator(1, "mask", 0), (1, 1), 1).sum() == 0
    assert group_masks(draws.generator(1, "mask", 0), 2, (2, 2), 0.5, (0.1, 0.5)).shape == (2, 4)
