"""A sharded tensor (FSDP2's DTensor) as the rows that this rank holds. A plain tensor is its own and only shard."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's rows of `tensor`, sharing its memory, outside of autograd."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def first_element(tensor: Tensor) -> int:
    """Where this rank's shard begins in the whole tensor, in elements. FSDP2 cuts dim 0 as torch.chunk does."""
    if not isinstance(tensor, DTensor):
        return 0
    rows, row = tensor.shape[0], 0
    for axis, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            continue
        if not isinstance(placement, Shard) or placement.dim != 0 or row:
            raise ValueError(f"a tensor placed as {tensor.placements} is not cut once along dim 0")
        num_shards = tensor.device_mesh.size(axis)
        row = min(tensor.device_mesh.get_local_rank(axis) * -(-rows // num_shards), rows)
    return row * tensor.shape[1:].numel()


def num_copies(tensor: Tensor) -> int:
    """On how many ranks each element of `tensor` stands (HSDP replicates shards)."""
    copies = 1
    if isinstance(tensor, DTensor):
        for axis, placement in enumerate(tensor.placements):
            if isinstance(placement, Replicate):
                copies *= tensor.device_mesh.size(axis)
    return copies
