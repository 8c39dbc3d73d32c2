"""The transformer block on packed tokens, with drop-path that skips what it drops.

Dimensions: T packed tokens of all crops, D width, H heads, d head width, F hidden width of the MLP.
A packed batch is one matrix `x_TD` and its `groups`: ((num_sequences, length), ...), sequences back to back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast.ops.attention import attention

Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class KeptSequences:
    """What drop-path left of a packed batch for one residual branch.

    token_index_T  int64, the tokens of the kept sequences
    groups         the kept sequences, packed as `token_index_T` lists them
    scale_T1       num_sequences / num_kept of each token's group, which keeps the expectation
    """

    token_index_T: Tensor
    groups: Groups
    scale_T1: Tensor


def num_kept_sequences(num_sequences: int, drop_path_rate: float) -> int:
    """Sequences that drop-path leaves of so many: DINOv2's max(int(b * (1 - rate)), 1)."""
    return max(int(num_sequences * (1 - drop_path_rate)), 1)


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_TD: Tensor, groups: Groups) -> Tensor:
        qkv_T3Hd = self.qkv(x_TD).view(x_TD.shape[0], 3, self.num_heads, -1)
        return self.proj(attention(qkv_T3Hd, groups))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x), with w1 and w2 in one matrix (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden_dim: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, value_TF = self.w12(x_TD).chunk(2, dim=-1)
        return self.w3(F.silu(gate_TF) * value_TF)


class GeluMLP(nn.Module):
    """fc2(gelu(fc1 x)), without the approximation by tanh."""

    def __init__(self, width: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_TD)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD * self.gamma


class Block(nn.Module):
    """`mlp`: "swiglu" or "gelu"."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden_dim: int,
        norm_eps: float = 1e-6,
        *,
        mlp: str = "swiglu",
        layer_scale: bool = True,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = (SwiGLU if mlp == "swiglu" else GeluMLP)(width, hidden_dim)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x_TD: Tensor, groups: Groups, kept: tuple[KeptSequences, KeptSequences] | None = None) -> Tensor:
        """[T, D] -> [T, D]. `kept`: for the attention and the MLP branch, what drop-path leaves; None computes all."""
        if kept is None:
            x_TD = x_TD + self.ls1(self.attn(self.norm1(x_TD), groups))
            return x_TD + self.ls2(self.mlp(self.norm2(x_TD)))
        attn_kept, mlp_kept = kept
        kept_TD = self.norm1(x_TD.index_select(0, attn_kept.token_index_T))
        x_TD = _add_residual(x_TD, self.ls1(self.attn(kept_TD, attn_kept.groups)), attn_kept)
        kept_TD = self.norm2(x_TD.index_select(0, mlp_kept.token_index_T))
        return _add_residual(x_TD, self.ls2(self.mlp(kept_TD)), mlp_kept)


def _add_residual(x_TD: Tensor, residual_TD: Tensor, kept: KeptSequences) -> Tensor:
    return x_TD.index_add(0, kept.token_index_T, (residual_TD * kept.scale_T1).to(x_TD.dtype))
