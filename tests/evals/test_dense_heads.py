"""Heads against torch's own layers and against their definition, in the order in which it is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from webssl_fast.evals.dense_heads import DepthHead, SegmentationHead, SyncedBatchNorm, upsampled


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(37, 21), (4, 3), (8, 9), (3, 2)])
def test_upsampled_is_bilinear_with_its_gradient(size):
    maps = random(2, 5, 4, 3).double().requires_grad_()
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    weight = random(*expected.shape, seed=1).double()
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), maps)
    single = maps.detach().float().requires_grad_()
    found = upsampled(single, size)
    (gradient,) = torch.autograd.grad((found * weight.float()).sum(), single)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-4)


def test_batch_norm_matches_torch_over_steps_and_in_eval():
    ours, theirs = SyncedBatchNorm(6, lambda x: x), nn.BatchNorm2d(6).double()
    for module in (ours, theirs):
        nn.init.constant_(module.weight, 1.5)
        nn.init.constant_(module.bias, -0.5)
    for seed in range(3):
        x = 100 + random(4, 6, 5, 7, seed=seed) * torch.arange(1, 7)[:, None, None]
        weight = random(4, 6, 5, 7, seed=seed + 10)
        found, expected = ours(x), theirs(x.double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad((found * weight).sum(), [ours.weight, ours.bias])
        expected_gradients = torch.autograd.grad((expected * weight).sum(), [theirs.weight, theirs.bias])
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient.double(), other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.running_mean.double(), theirs.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x).double(), theirs.eval()(x.double()), rtol=1e-4, atol=1e-4)


def test_batch_norm_refuses_features_that_are_trained():
    with pytest.raises(ValueError, match="must not need gradients"):
        SyncedBatchNorm(3, lambda x: x)(torch.ones(1, 3, 2, 2, requires_grad=True))


def test_segmentation_head_starts_near_nothing_and_equal_for_a_seed():
    heads = [SegmentationHead(8, 5, seed, lambda x: x) for seed in (0, 0, 1)]
    weights = [head.classifier.weight for head in heads]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert heads[0].classifier.bias.abs().max() == 0 and weights[0].std().item() == pytest.approx(0.01, rel=0.3)
    assert heads[0](random(2, 8, 3, 4), (21, 28)).shape == (2, 5, 21, 28)


def test_depth_head_matches_its_definition():
    head = DepthHead(num_channels=6, num_bins=16, depth_range_m=(1e-3, 10.0), seed=3)
    patches, cls = random(2, 6, 3, 4), random(2, 6, seed=1)
    # As it is written: class token beside every patch, four times the resolution, one layer, bins.
    both = torch.cat([patches, cls[:, :, None, None].expand_as(patches)], dim=1).double()
    both = F.interpolate(both, scale_factor=4, mode="bilinear", align_corners=False)
    weight = torch.cat([head.patches.weight[:, :, 0, 0], head.cls.weight], dim=1).double()
    scores = torch.einsum("bdhw,kd->bkhw", both, weight) + head.patches.bias.double()[:, None, None]
    weights = scores.relu() + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    depth = torch.einsum("bkhw,k->bhw", weights, torch.linspace(1e-3, 10.0, 16).double())
    expected = F.interpolate(depth[:, None], (42, 56), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(head((patches, cls), (42, 56)).double(), expected, rtol=1e-4, atol=1e-4)


def test_depth_head_starts_as_one_layer_of_torch_would():
    head = DepthHead(num_channels=100, num_bins=200, depth_range_m=(1e-3, 10.0), seed=0)
    bound = (2 * 100) ** -0.5
    for parameter in head.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound
    assert torch.equal(head.cls.weight, DepthHead(100, 200, (1e-3, 10.0), 0).cls.weight)
