"""From pixels to tokens: patch projection and position embedding.

Dimensions: B crops of one size, N patches, V visible ones, D width, P patch size, C = 3*P*P values of a patch, M side
of the native patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def forward(self, crops: Sequence[Tensor], visible: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """List of [B, 3, H, W] -> list of [B, N, D]; H and W must be multiples of the patch size (ValueError).

        visible  for each group None or int64 [B, V], the only patches that are projected: [B, V, D]
        """
        patches, shapes = [], []
        for i, crop in enumerate(crops):
            patch_BNC = patchify(crop, self.patch_size)
            if visible is not None and (visible_BV := visible[i]) is not None:
                patch_BNC = take_patches(patch_BNC, visible_BV)
            patches.append(patch_BNC.flatten(0, 1))
            shapes.append(patch_BNC.shape[:2])
        tokens = F.linear(torch.cat(patches), self.proj.weight.flatten(1), self.proj.bias)
        return [t.view(*shape, -1) for t, shape in zip(tokens.split([b * n for b, n in shapes]), shapes, strict=True)]


def patchify(crops_B3HW: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, N, C], patches row-major, the values of each as a convolution's weight has them.

    ValueError where H or W is not a multiple of the patch size.
    """
    B, C, H, W = crops_B3HW.shape
    p = patch_size
    if H % p or W % p:
        raise ValueError(f"crops of {H}x{W} pixels do not divide into patches of {p}x{p}")
    h, w = H // p, W // p
    return crops_B3HW.view(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * p * p)


def unpatchify(patches_BNC: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify` for a square image: [B, N, C] -> [B, 3, H, H]."""
    B, N, p = patches_BNC.shape[0], patches_BNC.shape[1], patch_size
    side = round(N**0.5)
    patches = patches_BNC.view(B, side, side, 3, p, p)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(B, 3, side * p, side * p)


def take_patches(x_BND: Tensor, index_BV: Tensor) -> Tensor:
    """[B, N, D], int64 [B, V] -> [B, V, D]: of each image the rows that its indices name."""
    B, N, D = x_BND.shape
    rows_BV = index_BV + torch.arange(0, B * N, N, device=index_BV.device)[:, None]
    return x_BND.reshape(B * N, D).index_select(0, rows_BV.flatten()).view(B, -1, D)


def sine_cosine_positions(width: int, side: int) -> Tensor:
    """The fixed embedding of a side x side grid: fp32 [1, 1 + side*side, width], 0 for the class token.

    One half of the channels tells the column, the other the row; of each, sin and then cos of position * 10000^(-2i/d),
    i < d/2, d = width / 2 (Vaswani et al., arXiv 1706.03762; in two dimensions as MAE has it, arXiv 2111.06377).
    ValueError where the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {width}")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width / 2]
    columns, rows = axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)
    patch = torch.cat([columns, rows], dim=1)
    return torch.cat([patch.new_zeros(1, width), patch])[None].float()


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
