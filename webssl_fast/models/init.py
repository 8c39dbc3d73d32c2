"""Filling parameters: each value is a function of a key (seed, name), never of the order or the sharding.

A sharded parameter (DTensor) computes the whole tensor on the host and keeps its shard, so that any number of ranks
starts equal, and a rank holds one whole tensor at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Key = tuple[int, str]
Arrange = Callable[[Tensor], Tensor]


def _generator(key: Key) -> torch.Generator:
    digest = hashlib.blake2b(f"{key[0]}/{key[1]}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@torch.no_grad()
def assign(parameter: Tensor, whole: Tensor) -> None:
    """parameter = whole, of which a sharded parameter keeps its shard; every rank passes the same values."""
    if isinstance(parameter, DTensor):
        whole = whole.to(parameter.device_mesh.device_type, parameter.dtype)
        # Every rank has computed the same tensor: nothing needs to be sent.
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


def truncated_normal(
    parameter: Tensor, key: Key, std: float, shape: tuple[int, ...] | None = None, arrange: Arrange = lambda x: x
) -> None:
    """Normal of that standard deviation, cut at +-2 (absolute, as torch.nn.init.trunc_normal_ has it).

    `arrange` makes the parameter out of a tensor of `shape` that is drawn (default: the parameter's own).
    """
    drawn = torch.empty(shape or parameter.shape)
    assign(parameter, arrange(nn.init.trunc_normal_(drawn, std=std, generator=_generator(key))))


def normal(parameter: Tensor, key: Key, std: float) -> None:
    assign(parameter, torch.empty(parameter.shape).normal_(std=std, generator=_generator(key)))


def uniform(parameter: Tensor, key: Key, bound: float) -> None:
    assign(parameter, torch.empty(parameter.shape).uniform_(-bound, bound, generator=_generator(key)))


@torch.no_grad()
def constant(parameter: Tensor, value: float) -> None:
    parameter.fill_(value)


def xavier_uniform(parameter: Tensor, key: Key) -> None:
    """Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010); a patch's projection is seen as a matrix."""
    num_outputs, num_inputs = parameter.shape[0], math.prod(parameter.shape[1:])
    uniform(parameter, key, bound=math.sqrt(6 / (num_inputs + num_outputs)))


def initialize_as_mae(module: nn.Module, seed: int, prefix: str) -> None:
    """MAE's rules (arXiv 2111.06377, App. A.1, and its code): matrices Xavier, tokens normal, norms 1, biases 0."""
    for name, p in module.named_parameters():
        key = (seed, f"{prefix}.{name}")
        if name.endswith("token"):
            normal(p, key, std=0.02)
        elif p.ndim > 1:
            xavier_uniform(p, key)
        else:
            constant(p, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
