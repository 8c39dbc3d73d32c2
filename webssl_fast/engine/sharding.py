"""Where a method's weights live: whole on one process, in FSDP2 shards on several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from webssl_fast.config.schema import ShardingConfig, TrainConfig
from webssl_fast.engine.blocks import checkpoint_blocks, compile_blocks
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.float8 import convert_to_float8
from webssl_fast.shards import local_shard

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method


def materialize(method: Method, seed: int, distributed: Distributed, config: TrainConfig) -> None:
    """Gives `method`, which may have been made on the meta device, its first weights on its device, in place.

    Order: dtypes, FP8, activation checkpointing, compilation, sharding; then memory, for each rank's shards alone; then
    values, one whole tensor at a time on the host (models/init.py), the same for any number of ranks and any device.

    Raises ValueError where a parameter belongs to no shard unit, or is left without a value; UserError where FP8 is
    asked for and cannot be had.
    """
    assert isinstance(method, nn.Module)
    set_weight_dtypes(method, config)
    convert_to_float8(method, config.fp8, config.fp8_scaling, distributed.device)
    checkpoint_blocks(method, config.activation_checkpointing)
    if config.compile_blocks:
        compile_blocks(method)
    if distributed.world_size > 1:
        shard(method, distributed, config.precision, config.sharding)
    method.to_empty(device=distributed.device)
    _fill_with_nan(method)
    method.initialize(seed)
    _check_filled(method, distributed)


def set_weight_dtypes(method: Method, config: TrainConfig) -> None:
    """Gives student and teacher the dtypes that the config says, which are also those of their checkpoints."""
    assert isinstance(method, nn.Module)
    for parameter in method.parameters():
        if (config.student_weights if parameter.requires_grad else config.teacher_weights) == "bf16":
            parameter.data = parameter.data.to(torch.bfloat16)


def shard(method: Method, distributed: Distributed, precision: str, config: ShardingConfig) -> None:
    """Shards each of `method.shard_units()` over the ranks (FSDP2), in place; student and teacher alike, so that the
    EMA works on local shards.

    Raises ValueError if a parameter belongs to no unit.
    """
    assert isinstance(method, nn.Module)
    mesh = _mesh(distributed, config.num_replicas)
    gathered_dtype = _gathered_dtype(precision, distributed.device)
    # A network may well return a view; only the in-place operations on it that the warning is about would be wrong.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for unit in method.shard_units():
        trained = any(p.requires_grad for p in unit.parameters())
        # What a forward leaves gathered is sharded again by its backward. A teacher has none: the EMA would then update
        # shards that nobody reads. Said for each unit, since FSDP2 by itself leaves an outermost module gathered.
        reshard = config.reshard_after_forward or not trained
        # A unit without a matrix (a logit scale) is gathered as it is: that costs nothing, and bf16 has 8 bits.
        has_matrix = any(p.ndim > 1 for p in unit.parameters())
        policy = MixedPrecisionPolicy(gathered_dtype if has_matrix else None, reduce_dtype=torch.float32)
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    whole = [name for name, p in method.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise ValueError(f"parameters outside every module of {method.name}.shard_units(): {', '.join(whole[:5])}")
    for blocks in method.block_sequences():
        _prefetch(blocks, config.prefetch_blocks)


def _mesh(distributed: Distributed, num_replicas: int) -> DeviceMesh:
    """Neighbouring ranks, which share a host's fast links, hold shards of one copy; copies lie further apart (HSDP)."""
    device, world_size = distributed.device.type, distributed.world_size
    if num_replicas == 1:
        return init_device_mesh(device, (world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (num_replicas, world_size // num_replicas), mesh_dim_names=("replicate", "shard"))


def _gathered_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """A GPU gathers weights as bf16, which halves the traffic. A CPU gathers them as they are (None), and autocast
    rounds them where they are used: it then computes what one process computes, to the rounding of the gradients' sum.
    """
    return torch.bfloat16 if precision == "bf16" and device.type == "cuda" else None


def _prefetch(blocks: Sequence[nn.Module], num_ahead: int) -> None:
    if num_ahead == 0:
        return
    sharded: list[FSDPModule] = [block for block in blocks if isinstance(block, FSDPModule)]
    for i, block in enumerate(sharded):
        block.set_modules_to_forward_prefetch(sharded[i + 1 : i + 1 + num_ahead])
        block.set_modules_to_backward_prefetch(sharded[max(i - num_ahead, 0) : i][::-1])


def _fill_with_nan(method: nn.Module) -> None:
    for tensor in [*method.parameters(), *method.buffers()]:
        if tensor.is_floating_point():
            local_shard(tensor).fill_(torch.nan)


def _check_filled(method: Method, distributed: Distributed) -> None:
    assert isinstance(method, nn.Module)
    tensors = [*method.named_parameters(), *method.named_buffers()]
    unset = [name for name, tensor in tensors if local_shard(tensor).isnan().any()]
    everywhere = sorted({name for of_rank in distributed.gather(unset) for name in of_rank})
    if everywhere:
        raise ValueError(
            f"{method.name}.initialize left {len(everywhere)} tensors without a value: {', '.join(everywhere[:5])}. It "
            "must fill every parameter and buffer, since they may have been made on the meta device"
        )
