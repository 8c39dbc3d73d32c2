"""Exponential moving average of a module's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def _local(tensors) -> list[Tensor]:
    # Teacher and student are sharded alike, so the average works on each rank's shards.
    return [t.to_local() if isinstance(t, DTensor) else t.data for t in tensors]


@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average = momentum * average + (1 - momentum) * source, in place, parameter by parameter, in one foreach call."""
    torch._foreach_lerp_(_local(average.parameters()), _local(source.parameters()), 1.0 - momentum)


@torch.no_grad()
def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    torch._foreach_copy_(_local(target.parameters()), _local(source.parameters()))
