"""SwiGLU hidden sizes with units added for FP8's GEMMs, which want multiples of 16 (9560 and 10928 are none).

A unit whose weights are all zero stays so: silu(0) * 0 = 0 has zero derivatives in both factors, and w3 sees a zero
input. So padding changes no output, and taking it away again is exact.

Dimensions: F hidden size, G padded hidden size, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

_W12 = ("mlp.w12.weight", "mlp.w12.bias")
_W3 = "mlp.w3.weight"


def pad(name: str, tensor: Tensor, hidden_dim: int, padded_dim: int) -> Tensor:
    """Parameter `name` of a block with `padded_dim` hidden units, from the same of `hidden_dim`; others as they are."""
    if name.endswith(_W12):  # [2F, ...] -> [2G, ...]
        gate_value = tensor.unflatten(0, (2, hidden_dim))
        padded = tensor.new_zeros(2, padded_dim, *tensor.shape[1:])
        padded[:, :hidden_dim] = gate_value
        return padded.flatten(0, 1)
    if name.endswith(_W3):  # [D, F] -> [D, G]
        padded = tensor.new_zeros(tensor.shape[0], padded_dim)
        padded[:, :hidden_dim] = tensor
        return padded
    return tensor


def unpad(name: str, tensor: Tensor, hidden_dim: int, padded_dim: int) -> Tensor:
    """The inverse of `pad`. ValueError if a unit that is taken away is not zero."""
    if name.endswith(_W12):
        gate_value = tensor.unflatten(0, (2, padded_dim))
        kept, dropped = gate_value[:, :hidden_dim].flatten(0, 1), gate_value[:, hidden_dim:]
    elif name.endswith(_W3):
        kept, dropped = tensor[:, :hidden_dim].contiguous(), tensor[:, hidden_dim:]
    else:
        return tensor
    if dropped.any():
        raise ValueError(f"{name} has padding units that are not zero; was the model built with another hidden size?")
    return kept


def map_state(
    change: Callable[[str, Tensor, int, int], Tensor], state: Mapping[str, Tensor], hidden_dim: int, padded_dim: int
) -> dict[str, Tensor]:
    """`pad` or `unpad` over a backbone's state dict of whole (not sharded) tensors."""
    return {name: change(name, tensor, hidden_dim, padded_dim) for name, tensor in state.items()}
