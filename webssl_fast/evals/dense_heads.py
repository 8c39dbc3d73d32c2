"""The linear heads of the dense protocols (DINOv2, arXiv 2304.07193, App. B).

Dimensions: B images, D channels of the features, h rows and w columns of patches, C classes, K bins of depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from webssl_fast.models.init import normal, uniform

UPSAMPLING = 4  # of patch features, before depth is read from them
BIN_FLOOR = 0.1  # added to each bin's score, so that a sum over bins is never zero


class SyncedBatchNorm(nn.Module):
    """Batch norm over the images of all ranks, for inputs that need no gradient.

    Frozen features carry none, so the statistics are constants for autograd: sums over the ranks are all the
    communication, and it runs on any device (torch's SyncBatchNorm wants CUDA). As in torch, the biased variance
    normalises and the unbiased one is tracked.

    sum_over_ranks  adds a tensor up over the ranks, in place
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, sum_over_ranks: Callable[[Tensor], Tensor], momentum: float = 0.1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self._sum, self.momentum, self.eps = sum_over_ranks, momentum, 1e-5

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """[B, D, h, w] of the same h and w on every rank -> the same, normalised."""
        if x_BDhw.requires_grad:
            raise ValueError("features must not need gradients: this layer's statistics are constants for autograd")
        mean, var = self._batch_statistics(x_BDhw) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        return x_BDhw * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    @torch.no_grad()
    def _batch_statistics(self, x_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        count = self._sum(torch.tensor(float(x_BDhw.numel() // x_BDhw.shape[1]), device=x_BDhw.device))
        mean = self._sum(x_BDhw.sum((0, 2, 3))) / count
        # Of differences to the mean: a mean of squares minus a squared mean cancels where means are large.
        var = self._sum((x_BDhw - mean[:, None, None]).square().sum((0, 2, 3))) / count
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1).clamp_min(1), self.momentum)
        return mean, var


class SegmentationHead(nn.Module):
    """Batch norm and one linear layer for each patch."""

    def __init__(self, num_channels: int, num_classes: int, seed: int, sum_over_ranks: Callable[[Tensor], Tensor]):
        super().__init__()
        self.norm = SyncedBatchNorm(num_channels, sum_over_ranks)
        self.classifier = nn.Conv2d(num_channels, num_classes, kernel_size=1)
        normal(self.classifier.weight, (seed, "segmentation_head"), std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, D, h, w] -> logits [B, C, *size], resized bilinear from the patches."""
        return upsampled(self.classifier(self.norm(features_BDhw)), size)


class DepthHead(nn.Module):
    """Depth as the expectation over bins of evenly spaced depths, whose weights are linear in the features, then relu.

    Features are patch tokens, upsampled four times, beside the image's class token. A linear layer and the bilinear
    upsampling change places here without changing the result: the layer runs on a sixteenth of the positions, and the
    class token's part is one vector an image.

    num_channels  of the patch features, and as many of the class token
    """

    bins_K: Tensor

    def __init__(self, num_channels: int, num_bins: int, depth_range_m: tuple[float, float], seed: int):
        super().__init__()
        self.patches = nn.Conv2d(num_channels, num_bins, kernel_size=1)
        self.cls = nn.Linear(num_channels, num_bins, bias=False)
        bound = 1 / math.sqrt(2 * num_channels)  # torch's default for one layer over both
        for name, parameter in self.named_parameters():
            uniform(parameter, (seed, f"depth_head.{name}"), bound)
        self.depth_range_m = depth_range_m
        self.register_buffer("bins_K", torch.linspace(*depth_range_m, num_bins))

    def forward(self, features: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
        """([B, D, h, w], [B, D]) -> depths in metres [B, *size]."""
        patches_BDhw, cls_BD = features
        scores_BKhw = self.patches(patches_BDhw) + self.cls(cls_BD)[:, :, None, None]
        h, w = patches_BDhw.shape[-2:]
        weights_BKhw = upsampled(scores_BKhw, (UPSAMPLING * h, UPSAMPLING * w)).relu() + BIN_FLOOR
        depth_Bhw = torch.einsum("bkhw,k->bhw", weights_BKhw, self.bins_K) / weights_BKhw.sum(1)
        return upsampled(depth_Bhw, size)


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., h, w] -> [..., *size]: bilinear between pixel centres, as two matrix products.

    torch's `interpolate` adds its gradient up by atomics on CUDA, in an order that differs from run to run.
    """
    rows, columns = (_interpolation(a, b, maps.device) for a, b in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


def _interpolation(length: int, new_length: int, device: torch.device) -> Tensor:
    """[new_length, length]: each new place's weights of the two old ones around it."""
    place = ((torch.arange(new_length, device=device) + 0.5) * (length / new_length) - 0.5).clamp(0, length - 1)
    return (1 - (place[:, None] - torch.arange(length, device=device)).abs()).clamp_min(0)
