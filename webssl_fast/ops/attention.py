"""Self-attention over packed groups of equally long sequences, softmax(q k^T / sqrt(d)) v without a mask.

Vaswani et al., "Attention Is All You Need", 2017, equation 1. The crops of a batch travel as one token matrix; a group
is a run of sequences of one length (the global crops, the local crops), and tokens attend within their own sequence.

Dimensions: T packed tokens, N tokens of a sequence, H heads, d head width, D = H d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from webssl_fast.ops import _library

Groups = tuple[tuple[int, int], ...]

_LONGEST_EXPLICIT = 128  # tokens: beyond it, N x N temporaries cost what they save


def attention(qkv_T3Hd: Tensor, groups: Groups) -> Tensor:
    """Attention outputs [T, H d], in the dtype and on the device of `qkv_T3Hd`; differentiable.

    Each group is one call of torch's scaled_dot_product_attention on strided views: nothing is copied on the way in,
    and the groups' outputs are joined once. The exception is training in bf16 on a CPU, where sequences of up to 128
    tokens are computed from the formula.

    Args:
        qkv_T3Hd: queries, keys and values of each token, any floating dtype, as the qkv projection writes them.
        groups: ((num_sequences, length), ...) of consecutive sequences; they cover all T tokens.

    Raises:
        ValueError: `qkv_T3Hd` is not of shape [T, 3, H, d], a group is not positive, or the groups do not cover T.
    """
    _check(qkv_T3Hd, groups)
    if _library.reference_forced():
        return attention_reference(qkv_T3Hd, groups)
    outputs = []
    num_tokens = [num_sequences * length for num_sequences, length in groups]
    for qkv, (num_sequences, length) in zip(qkv_T3Hd.split(num_tokens), groups, strict=True):
        # unbind, not indexing: its backward writes the three gradients into one buffer.
        q, k, v = qkv.unflatten(0, (num_sequences, length)).transpose(1, 3).unbind(2)
        trains_in_bf16 = q.dtype == torch.bfloat16 and q.requires_grad and torch.is_grad_enabled()
        if trains_in_bf16 and q.device.type == "cpu" and length <= _LONGEST_EXPLICIT:
            out = _explicit_bf16(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        outputs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _explicit_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, H, N, d] from its formula: scores and softmax in fp32, probabilities in bf16 as in torch's SDPA.

    The backward of torch 2.13's SDPA is slow in bf16 on CPUs (benchmarks/ops/bench_attention.py times both); the errors
    are alike.
    """
    scores_BHNN = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(scores_BHNN, dim=-1).to(v.dtype) @ v


def _check(qkv_T3Hd: Tensor, groups: Groups) -> None:
    if qkv_T3Hd.ndim != 4 or qkv_T3Hd.shape[1] != 3:
        raise ValueError(f"qkv_T3Hd has shape {tuple(qkv_T3Hd.shape)}; it needs (tokens, 3, heads, head width)")
    if not groups or any(num_sequences < 1 or length < 1 for num_sequences, length in groups):
        raise ValueError(f"groups are {groups}; each needs at least 1 sequence of at least 1 token")
    num_tokens = sum(num_sequences * length for num_sequences, length in groups)
    if num_tokens != qkv_T3Hd.shape[0]:
        raise ValueError(f"groups {groups} hold {num_tokens} tokens, but qkv_T3Hd has {qkv_T3Hd.shape[0]}")


def attention_reference(qkv_T3Hd: Tensor, groups: Groups) -> Tensor:
    """The same from its formula in plain torch, softmax in fp32, with temporaries of N x N."""
    outputs = []
    begin = 0
    for num_sequences, length in groups:
        end = begin + num_sequences * length
        qkv_3BHNd = qkv_T3Hd[begin:end].unflatten(0, (num_sequences, length)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv_3BHNd.float()
        probability_BHNN = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        outputs.append((probability_BHNN @ v).transpose(1, 2).flatten(2).flatten(0, 1).to(qkv_T3Hd.dtype))
        begin = end
    return torch.cat(outputs)
