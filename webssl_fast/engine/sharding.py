"""Where a method's weights live: whole on one process, in FSDP2 shards on several."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from webssl_fast.engine.distributed import Distributed

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method


def materialize(method: Method, seed: int, distributed: Distributed, precision: str) -> None:
    """Gives `method` its first weights on its device, in place; on several processes each rank keeps its shard.

    Weights are drawn whole and on the host, then cut: so they are the same for every number of ranks and every device.
    A rank needs host memory for one fp32 copy of the method while this runs (52 GiB for a 7B student and teacher).
    """
    assert isinstance(method, nn.Module)
    if any(t.is_meta for t in [*method.parameters(), *method.buffers()]):
        method.to_empty(device="cpu")
    method.initialize(seed)
    if distributed.world_size == 1:
        method.to(distributed.device)
        return
    shard(method, distributed, precision)


def shard(method: Method, distributed: Distributed, precision: str) -> None:
    """Shards each of `method.shard_units()` over all ranks (FSDP2), in place; student and teacher alike, so that the
    EMA works on local shards.

    Raises ValueError if a parameter belongs to no unit.
    """
    assert isinstance(method, nn.Module)
    mesh = init_device_mesh(distributed.device.type, (distributed.world_size,))
    # A GPU gathers weights as bf16, which halves the traffic. A CPU run gathers them as fp32 and autocast rounds them
    # where they are used: it then computes what a single process computes, to the rounding of the gradients' sum.
    half = precision == "bf16" and distributed.device.type == "cuda"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    # A network may well return a view; only the in-place operations on it that the warning is about would be wrong.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for unit in method.shard_units():
        # Left to itself, an outermost module stays whole after its forward and is sharded again by its backward; a
        # teacher has none, and the EMA would then update shards that nobody reads.
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    whole = [name for name, p in method.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise ValueError(f"parameters outside every module of {method.name}.shard_units(): {', '.join(whole[:5])}")
    for buffer in method.buffers():
        buffer.data = buffer.data.to(distributed.device)
