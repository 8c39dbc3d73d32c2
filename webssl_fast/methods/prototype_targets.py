"""From teacher logits to target distributions, without ever writing them: potentials for `prototype_cross_entropy`.

Dimensions: R rows, K prototypes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from webssl_fast.config.schema import DinoV2Config
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp, softmax_potentials


class Targets(NamedTuple):
    """Target distributions exp(logits / temperature + row potential + prototype potential), never written out."""

    logits_RK: Tensor
    row_potential_R: Tensor
    prototype_potential_K: Tensor


class PrototypeTargets(nn.Module):
    """Sinkhorn-Knopp (arXiv 2006.09882 as DINOv2 uses it), or DINO's centering (arXiv 2104.14294), by config."""

    center_K: Tensor

    def __init__(self, config: DinoV2Config, num_prototypes: int):
        super().__init__()
        self.config = config
        if config.target == "centering":
            self.register_buffer("center_K", torch.zeros(num_prototypes))

    def reset(self) -> None:
        if self.config.target == "centering":
            self.center_K.zero_()

    @torch.no_grad()
    def forward(self, logits_RK: Tensor, temperature: float, row_mask_R: Tensor | None = None) -> Targets:
        """Targets of logits [R, K] at a temperature. `row_mask_R`: bool, False for rows that only fill up a shape; they
        take no part, and their own targets mean nothing."""
        if self.config.target == "sinkhorn_knopp":
            potentials = sinkhorn_knopp(
                logits_RK, temperature, num_iterations=self.config.sinkhorn_iterations, row_mask_R=row_mask_R
            )
        else:
            potentials = softmax_potentials(logits_RK, temperature, self.center_K)
            self._update_center(logits_RK, row_mask_R)
        return Targets(logits_RK, *potentials)

    def _update_center(self, logits_RK: Tensor, row_mask_R: Tensor | None) -> None:
        num_rows = logits_RK.new_full((1,), len(logits_RK), dtype=torch.float32)
        if row_mask_R is not None:
            logits_RK = logits_RK.masked_fill(~row_mask_R[:, None], 0)
            num_rows = row_mask_R.sum(dtype=torch.float32)[None]
        sums = torch.cat([logits_RK.sum(0, dtype=torch.float32), num_rows])
        if dist.is_initialized():
            dist.all_reduce(sums)
        mean_K = sums[:-1] / sums[-1].clamp(min=1)
        # A step that the engine will skip for a non-finite value must not poison the center either.
        mean_K = torch.where(mean_K.isfinite().all(), mean_K, self.center_K)
        self.center_K.lerp_(mean_K, 1 - self.config.center_momentum)
