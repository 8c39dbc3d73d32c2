"""Parts of a vision transformer with a GELU MLP and fixed positions in fp64, from their formulas and nothing of ours.

`p`: parameters in fp64, by name. Dimensions: B images, N tokens, D width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def blocks_fp64(p: dict[str, Tensor], prefix: str, x_BND: Tensor, num_heads: int) -> Tensor:
    """Pre-norm blocks and the last norm."""

    def linear(x, name):
        return x @ p[f"{prefix}{name}.weight"].T + p[f"{prefix}{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{prefix}{name}.weight"]
            + p[f"{prefix}{name}.bias"]
        )

    B, N, D = x_BND.shape
    for i in range(sum(name.startswith(f"{prefix}blocks.") and name.endswith("norm1.weight") for name in p)):
        block = f"blocks.{i}."
        q, k, v = (
            part.view(B, N, num_heads, -1).transpose(1, 2)
            for part in linear(norm(x_BND, f"{block}norm1"), f"{block}attn.qkv").chunk(3, dim=-1)
        )
        attended = torch.softmax(q @ k.mT / (D // num_heads) ** 0.5, dim=-1) @ v
        x_BND = x_BND + linear(attended.transpose(1, 2).reshape(B, N, D), f"{block}attn.proj")
        hidden = linear(norm(x_BND, f"{block}norm2"), f"{block}mlp.fc1")
        x_BND = x_BND + linear(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)), f"{block}mlp.fc2")
    return norm(x_BND, "norm")


def positions_fp64(width: int, side: int) -> Tensor:
    """Entry by entry: the column in the first half of the channels, the row in the second; sin, then cos."""
    table = torch.zeros(1 + side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                omega = 1 / 10000 ** (i / quarter)
                values = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
                for part, value in enumerate(values):
                    table[1 + row * side + column, part * quarter + i] = value
    return table


def patch_tokens_fp64(p: dict[str, Tensor], images: Tensor, prefix: str = "backbone.", patch: int = 14) -> Tensor:
    name = f"{prefix}patch_embed.proj."
    tokens = F.conv2d(images, p[f"{name}weight"], p[f"{name}bias"], stride=patch)
    return tokens.flatten(2).mT
