"""Pictures of patch features: like colours for like patches, the same picture twice, nothing drawn from the run."""

import numpy as np
import pytest
import torch
from torch import nn

from webssl_fast.records import Features
from webssl_fast.report.features import feature_pictures, pca_pictures, principal_components


class PatchEncoder(nn.Module):
    """Patch tokens are a random linear map of the patch's pixels."""

    def __init__(self, patch_px=4, width=24, seed=0):
        super().__init__()
        self.conv = nn.Conv2d(3, width, patch_px, patch_px)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        tokens = self.conv(images).flatten(2).mT
        return Features(cls_token=tokens.mean(1), patch_tokens=tokens)


def halves(num_images=3, size_px=32):
    """A dark left half and a bright right half, with a little noise."""
    images = 0.02 * torch.rand(num_images, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))
    images[..., size_px // 2 :] += 0.9
    return images


@pytest.fixture
def encoder():
    return PatchEncoder().eval()


def test_like_patches_get_like_colours_in_every_photograph(encoder):
    pictures = pca_pictures(encoder, halves())
    assert len(pictures) == 3
    reference = pictures[0].astype(float)
    left, right = reference[8:24, 2:10, 0].mean(), reference[8:24, 22:30, 0].mean()
    assert abs(left - right) > 150, "the first component must tell the halves apart"
    for picture in pictures:
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert picture[8:24, 2:10, 0].mean() == pytest.approx(left, abs=25)
        assert picture[8:24, 22:30, 0].mean() == pytest.approx(right, abs=25)


def test_is_deterministic_and_leaves_the_random_state_alone(encoder):
    before = torch.random.get_rng_state()
    first, second = pca_pictures(encoder, halves()), pca_pictures(encoder, halves())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_components_match_an_eigendecomposition():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * torch.arange(6, 0, -1)
    found = principal_components(rows, 3)
    centered = rows - rows.mean(0)
    variances, axes = torch.linalg.eigh(centered.T @ centered)
    for i in range(3):
        expected = centered @ axes[:, -1 - i]
        assert torch.allclose(found[:, i].abs(), expected.abs(), atol=1e-9)
        assert found[:, i].square().sum() == pytest.approx(variances[-1 - i].item())


def test_components_beyond_the_rank_are_zero():
    assert principal_components(torch.ones(5, 2, dtype=torch.float64), 3).abs().max() < 1e-12
    assert principal_components(torch.randn(5, 2, dtype=torch.float64), 3)[:, 2].abs().max() == 0


def test_foreground_paints_the_border_side_grey(encoder):
    images = 0.02 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    images[..., 8:24, 8:24] += torch.linspace(0.6, 1.0, 16)
    for picture in pca_pictures(encoder, images, foreground=True):
        assert np.abs(picture[:4, :4].astype(int) - 128).max() <= 2
        assert np.abs(picture[12:20, 12:20].astype(int) - 128).max() > 40


def test_pictures_stand_beside_their_photographs(encoder):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    photographs = halves()
    normalised = (photographs - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    untrained = PatchEncoder(seed=1).eval()
    found = feature_pictures(["a", "b", "c"], normalised, encoder, untrained, mean=mean, std=std)
    assert [p.name for p in found] == ["a", "b", "c"]
    expected = (photographs[1].permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(found[1].photograph - expected).max() <= 1
    assert not np.array_equal(found[1].trained, found[1].untrained)
    assert feature_pictures(["a", "b", "c"], normalised, encoder, mean=mean, std=std)[0].untrained is None


def test_rejects_training_mode_broken_weights_and_other_grids(encoder):
    with pytest.raises(ValueError, match=r"call encoder\.eval\(\)"):
        pca_pictures(encoder.train(), halves())
    encoder.eval()
    with pytest.raises(ValueError, match="32 patch tokens an image, which is no square grid"):
        pca_pictures(encoder, torch.rand(1, 3, 16, 32))
    encoder.conv.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        pca_pictures(encoder, halves())
