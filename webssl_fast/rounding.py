"""Stochastic rounding from fp32 to bf16: up or down with the probability that makes the mean right.

bf16 has 8 significant bits: an update below half of their spacing (2^-9 of a weight, or less) is lost when rounded to
nearest, every time. The random bits are a hash of (key, element): a run resumes bit for bit and rounds alike on any
number of ranks, and no generator's state exists.

Dimensions: E elements of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def rounding_key(seed: int, purpose: str, step: int, name: str) -> Tensor:
    """The 32-bit key of one rounding of one tensor (int64 scalar on the host)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{name}".encode(), digest_size=4).digest()
    return torch.tensor(int.from_bytes(digest, "little"))


def stochastic_bf16(x_E: Tensor, key: Tensor, first_element: int) -> Tensor:
    """fp32 [E] -> bf16 [E], where E starts at `first_element` of the whole tensor. Infinities and NaN stay so.

    Exact where bf16 can hold the value; otherwise one of its two neighbours, away from zero with a probability equal to
    the dropped bits' share of their distance.
    """
    element_E = torch.arange(x_E.numel(), device=x_E.device) + first_element
    noise_E = (_hash((element_E & 0xFFFFFFFF) ^ key) >> 16).to(torch.int32)
    bits_E = x_E.view(torch.int32)
    rounded_E = ((bits_E + noise_E) & -0x10000).view(torch.float32)
    return torch.where(x_E.isfinite(), rounded_E, x_E).to(torch.bfloat16)


def _hash(x_E: Tensor) -> Tensor:
    """Mixes 32-bit integers held in int64 (constants of Chris Wellons's hash-prospector; products stay below 2^63)."""
    x_E = ((x_E ^ (x_E >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x_E = ((x_E ^ (x_E >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return x_E ^ (x_E >> 15)


def fused_on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a chain of elementwise operations where its first argument is on a GPU, so that their temporaries never
    reach memory; scalars that change from call to call must be tensors on the host."""

    @cache
    def compiled() -> Callable[P, R]:
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        return (compiled() if first.is_cuda else function)(*args, **kwargs)

    return call
