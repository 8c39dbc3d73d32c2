"""What attention is timed against: public kernels on q, k, v of [B, N, H, d], softmax(q k^T / sqrt(d)) v."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(backend: SDPBackend, q_BNHd: Tensor, k_BNHd: Tensor, v_BNHd: Tensor) -> Tensor:
    """torch's scaled_dot_product_attention by one of its backends; RuntimeError where it does not take the tensors."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHd, k_BNHd, v_BNHd))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def flex(q_BNHd: Tensor, k_BNHd: Tensor, v_BNHd: Tensor) -> Tensor:
    """torch's FlexAttention, compiled, without a score function or a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHd, k_BNHd, v_BNHd))
    return _compiled_flex()(q, k, v).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flash_attention_4(q_BNHd: Tensor, k_BNHd: Tensor, v_BNHd: Tensor) -> Tensor:
    """flash-attn-4, compiled from its Python at the first call; ImportError without `pip install flash-attn-4`."""
    from flash_attn.cute import flash_attn_func

    result = flash_attn_func(q_BNHd, k_BNHd, v_BNHd)
    return result[0] if isinstance(result, tuple) else result


GPU_RIVALS: dict[str, Attend] = {
    "sdpa_flash": partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "sdpa_cudnn": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "flex": flex,
    "flash_attn_4": flash_attention_4,
}
