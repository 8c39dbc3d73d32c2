"""Projection heads of DINO and iBOT.

Dimensions: R rows, D width, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast.config.schema import HeadConfig
from webssl_fast.models.init import constant, truncated_normal


class WeightNormLinear(nn.Module):
    """Linear without bias whose rows are `weight_g * weight_v / |weight_v|` (Salimans & Kingma, arXiv 1602.07868)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(out_features, 1))
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x_RD: Tensor) -> Tensor:
        return F.linear(x_RD, torch._weight_norm(self.weight_v, self.weight_g, 0))


class PrototypeHead(nn.Module):
    """Three-layer MLP, L2 normalisation, weight-normed prototypes (DINO, arXiv 2104.14294)."""

    def __init__(self, width: int, config: HeadConfig):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.bottleneck_dim),
        )
        self.last_layer = WeightNormLinear(config.bottleneck_dim, config.num_prototypes)

    def forward(self, x_RD: Tensor) -> Tensor:
        """[R, D] -> logits [R, K] in [-g, g], g the prototypes' learned norms (1 at first)."""
        return self.last_layer(F.normalize(self.mlp(x_RD), dim=-1, eps=1e-12))

    def initialize(self, seed: int, prefix: str) -> None:
        for name, p in self.named_parameters():
            if name.endswith("weight_g"):
                constant(p, 1.0)
            elif p.ndim == 2:
                truncated_normal(p, (seed, f"{prefix}.{name}"), std=0.02)
            else:
                constant(p, 0.0)
