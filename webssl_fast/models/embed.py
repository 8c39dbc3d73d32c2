"""From pixels to tokens: patch projection and position embedding.

Dimensions: B crops of one size, N patches, D width, P patch size, M side of the native patch grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping P x P patches, projected to the width.

    The weight has the shape of a convolution (checkpoints of the field store it so); the product is a plain GEMM, so
    that crops of every size share one call.
    """

    def __init__(self, width: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, crops: list[Tensor]) -> list[Tensor]:
        """List of [B, 3, H, W] -> list of [B, N, D]; H and W must be multiples of the patch size (ValueError)."""
        p = self.patch_size
        patches, shapes = [], []
        for crop in crops:
            B, C, H, W = crop.shape
            if H % p or W % p:
                raise ValueError(f"crops of {H}x{W} pixels do not divide into patches of {p}x{p}")
            h, w = H // p, W // p
            patches.append(crop.view(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B * h * w, C * p * p))
            shapes.append((B, h * w))
        tokens = F.linear(torch.cat(patches), self.proj.weight.flatten(1), self.proj.bias)
        return [t.view(*shape, -1) for t, shape in zip(tokens.split([b * n for b, n in shapes]), shapes, strict=True)]


def interpolate_pos_embed(pos_embed_1ND: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Position embedding of a native M x M grid (CLS first) for a grid of height x width patches: [1, 1 + h*w, D].

    Bicubic in fp32, no antialiasing. `scale_offset` is the original's way: the sampling scale is (size + 0.1) / M,
    which is not size / M, and shifts every sample a little. `size` is Hugging Face's: the output size sets the scale.
    The two agree at the native resolution only.
    """
    cls, patch = pos_embed_1ND[:, :1], pos_embed_1ND[:, 1:]
    M = round(patch.shape[1] ** 0.5)
    if (height, width) == (M, M):
        return pos_embed_1ND
    grid = patch.float().reshape(1, M, M, -1).permute(0, 3, 1, 2)
    if mode == "scale_offset":
        scale = ((height + 0.1) / M, (width + 0.1) / M)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
    else:
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    if grid.shape[-2:] != (height, width):
        raise ValueError(f"position embedding came out as {tuple(grid.shape[-2:])}, not {(height, width)}")
    return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2).to(cls.dtype)], dim=1)
