"""Exponential moving average of a module's parameters, on each rank's shards (both are sharded alike).

Dimensions: E elements of a shard.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from webssl_fast.rounding import fused_on_gpu, rounding_key, stochastic_bf16
from webssl_fast.shards import first_element, local_shard


@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float, *, seed: int, step: int) -> None:
    """average = momentum * average + (1 - momentum) * source, in place.

    fp32 on both sides is one foreach call. A bf16 average is computed in fp32 and rounded stochastically, by a function
    of (seed, step, parameter): to nearest, steps of (1 - momentum) would be lost.
    """
    averages = [local_shard(p) for p in average.parameters()]
    sources = [local_shard(p) for p in source.parameters()]
    if all(t.dtype == torch.float32 for t in averages + sources):
        torch._foreach_lerp_(averages, sources, 1.0 - momentum)
        return
    weight = torch.tensor(1.0 - momentum)
    for (name, parameter), into, new in zip(average.named_parameters(), averages, sources, strict=True):
        if into.dtype == torch.bfloat16:
            key = rounding_key(seed, "ema", step, name)
            _lerp_bf16_(into.view(-1), new.view(-1), weight, key, first_element(parameter))
        else:  # one parameter at a time, so that one fp32 copy of one source exists
            into.lerp_(new.to(into.dtype), 1.0 - momentum)


@fused_on_gpu
def _lerp_bf16_(average_E: Tensor, source_E: Tensor, weight: Tensor, key: Tensor, first: int) -> None:
    old_E = average_E.float()
    average_E.copy_(stochastic_bf16(old_E + weight * (source_E.float() - old_E), key, first))


@torch.no_grad()
def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    """target = source, parameter by parameter; dtypes may differ."""
    for into, new in zip(target.parameters(), source.parameters(), strict=True):
        local_shard(into).copy_(local_shard(new))
