"""Features of other ranks, with gradients that find their way back. One process alone gets its own.

Dimensions: B rows of this rank, G rows of all ranks, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """Of the default process group, if there is one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(x_BD: Tensor) -> Tensor:
    """The ranks' rows in rank order, [G, D], on every rank; each rank has as many. A row's gradient is the sum of what
    all ranks have for it."""
    return x_BD if rank_and_world_size()[1] == 1 else _Gather.apply(x_BD)


def from_next_rank(x_BD: Tensor) -> Tensor:
    """The next rank's tensor of that shape, the last rank getting the first one's; its gradient goes back there."""
    return _Rotate.apply(x_BD, 1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        x_GD = x_BD.new_empty(dist.get_world_size() * len(x_BD), *x_BD.shape[1:])
        dist.all_gather_into_tensor(x_GD, x_BD.contiguous())
        return x_GD

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> Tensor:  # type: ignore[override]
        grad_BD = grad_GD.new_empty(len(grad_GD) // dist.get_world_size(), *grad_GD.shape[1:])
        dist.reduce_scatter_tensor(grad_BD, grad_GD.contiguous())
        return grad_BD


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, offset: int) -> Tensor:
        ctx.offset = offset
        return _rotated(x_BD, offset)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _rotated(grad_BD, -ctx.offset), None


def _rotated(x_BD: Tensor, offset: int) -> Tensor:
    """What rank + offset holds."""
    rank, world_size = rank_and_world_size()
    rows_to, rows_from = [0] * world_size, [0] * world_size
    rows_to[(rank - offset) % world_size] = rows_from[(rank + offset) % world_size] = len(x_BD)
    received_BD = torch.empty_like(x_BD, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received_BD, x_BD.contiguous(), rows_from, rows_to)
    return received_BD
