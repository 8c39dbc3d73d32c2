"""What is done to a network's repeated blocks, in place and before they are sharded: checkpointing, then compilation.

Neither changes the names of modules or parameters, so a checkpoint does not tell whether they were on.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import webssl_fast.ops.attention  # noqa: F401  registers torch.ops.webssl.attention

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method

_aten = torch.ops.aten
# Results worth their memory: recomputing these takes nearly all of a block's time.
_KEPT_OPS = {
    op
    for packet in (
        _aten.mm,
        _aten.addmm,
        _aten.bmm,
        _aten._scaled_mm,
        _aten._scaled_dot_product_flash_attention,
        _aten._scaled_dot_product_efficient_attention,
        _aten._scaled_dot_product_cudnn_attention,
        _aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.webssl.attention,
    )
    for op in (getattr(packet, name) for name in packet.overloads())
}


def checkpoint_blocks(method: Method, mode: str) -> None:
    """Activation checkpointing of each trained block.

    mode  "none"; "selective": keeps the results of matrix products and attention and computes the rest (norms, SwiGLU,
          LayerScale, residuals) again in the backward; "full": keeps each block's input only
    """
    if mode == "none":
        return
    for block in _blocks(method, trained_only=True):
        # Another class and not another forward: torch.compile then sees one function for all blocks.
        block.__class__ = _checkpointed(type(block), mode)  # type: ignore[arg-type]


def compile_blocks(method: Method, backend: str | Any = "inductor") -> None:
    """Compiles each block's forward; FSDP2's hooks, which come later, stay outside of the compiled part."""
    for block in _blocks(method):
        block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]


def _blocks(method: Method, trained_only: bool = False) -> list[nn.Module]:
    blocks = [block for blocks in method.block_sequences() for block in blocks]
    return [b for b in blocks if not trained_only or any(p.requires_grad for p in b.parameters())]


@cache
def _checkpointed(cls: type[nn.Module], mode: str) -> type[nn.Module]:
    options: dict[str, Any] = {}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Blocks draw nothing at random, and saving a GPU's random state would wait for the device.
        run = partial(cls.forward, self, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return type(f"Checkpointed{cls.__name__}", (cls,), {"forward": forward})


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in _KEPT_OPS or getattr(op, "namespace", "") == "webssl"
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
