"""Drawing features from an encoder: order, values, and no trace left behind."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from webssl_fast.errors import UserError
from webssl_fast.evals.base import extract_features, labelled
from webssl_fast.records import Features


class TinyEncoder(nn.Module):
    """Mean colour as the class token, 2x2 pooled patches as patch tokens; noise in training mode only."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 4, bias=False)
        self.frozen = nn.Dropout(0.9)
        self.frozen.eval()

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images, images.shape[-1] // 2).flatten(2).mT
        if self.training:
            patches = patches + torch.randn_like(patches)
        tokens = self.project(patches)
        return Features(cls_token=self.project(images.mean((2, 3))), patch_tokens=self.frozen(tokens))


def batches_of(images, labels, size=3):
    ids = torch.arange(len(images))
    return [(images[i : i + size], labels[i : i + size], ids[i : i + size]) for i in range(0, len(images), size)]


@pytest.fixture
def images():
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_features_match_their_definition(images):
    encoder = TinyEncoder()
    labels = torch.arange(7)
    features, found_labels = extract_features(encoder, batches_of(images, labels), "cpu")
    weight = encoder.project.weight.detach().double()
    mean_colour = images.double().mean((2, 3)) @ weight.T
    torch.testing.assert_close(features["cls"].double(), mean_colour, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features["patch_mean"].double(), mean_colour, rtol=1e-5, atol=1e-6)
    assert torch.equal(found_labels, labels)
    assert all(f.dtype == torch.float32 and not f.requires_grad for f in features.values())


def test_only_the_named_features_are_kept(images):
    features, _ = extract_features(TinyEncoder(), batches_of(images, torch.arange(7)), "cpu", features=("patch_mean",))
    assert list(features) == ["patch_mean"]


def test_autocast_changes_the_compute_and_not_the_result_dtype(images):
    encoder = TinyEncoder()
    batches = batches_of(images, torch.arange(7))
    full, _ = extract_features(encoder, batches, "cpu")
    half, _ = extract_features(encoder, batches, "cpu", autocast_dtype=torch.bfloat16)
    assert half["cls"].dtype == torch.float32
    difference = (half["cls"] - full["cls"]).abs().max()
    assert 0 < difference < 0.02


def test_mode_of_every_submodule_is_restored(images):
    encoder = TinyEncoder().train()
    encoder.frozen.eval()
    extract_features(encoder, batches_of(images, torch.arange(7)), "cpu")
    assert encoder.training and encoder.project.training and not encoder.frozen.training


def test_mode_is_restored_after_an_error(images):
    encoder = TinyEncoder().train()
    encoder.frozen.eval()

    def broken():
        yield batches_of(images, torch.arange(7))[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        extract_features(encoder, broken(), "cpu")
    assert encoder.training and not encoder.frozen.training


def test_global_random_state_is_untouched_even_by_a_data_loader(images):
    samples = [(image, label, label) for label, image in enumerate(images)]
    loader = DataLoader(samples, batch_size=2, shuffle=True)  # draws its order from the global generator
    encoder = TinyEncoder().train()
    before = torch.random.get_rng_state()
    extract_features(encoder, loader, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    list(loader)
    assert not torch.equal(torch.random.get_rng_state(), before)  # what the guard is there for


def test_unlabelled_samples_are_an_error_that_names_them(images):
    labels = torch.tensor([0, 1, 0, 1, -1, 0, -1])
    stream = labelled(batches_of(images, labels), "photos/train")
    assert next(stream)[1].tolist() == [0, 1, 0]
    with pytest.raises(UserError, match=r"photos/train: 1 images .*sample ids 4\).*subfolder a class"):
        next(stream)


def test_rejects_unknown_features_and_empty_sources(images):
    with pytest.raises(ValueError, match="got 'clss', allowed are 'cls', 'patch_mean'"):
        extract_features(TinyEncoder(), batches_of(images, torch.arange(7)), "cpu", features=("clss",))
    with pytest.raises(ValueError, match="at least one image"):
        extract_features(TinyEncoder(), [], "cpu")
