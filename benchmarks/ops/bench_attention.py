"""Packed attention, forward and backward, against torch's SDPA on contiguous copies of q, k and v.

    python -m benchmarks.ops.bench_attention --threads 2

ViT-S/14 (6 heads of 64) on 8 images: 16 global crops of 257 tokens, 64 local crops of 50. Outputs and gradients must
agree before they are timed. `tflop_per_s` counts the seven N x N x d products of a forward and a backward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import emit, time_interleaved
from webssl_fast.ops.attention import attention

NUM_HEADS, HEAD_WIDTH = 6, 64


def sdpa_on_views(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    q, k, v = qkv_T3Hd.unflatten(0, (num_sequences, length)).transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def sdpa_on_copies(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    q, k, v = qkv_T3Hd.unflatten(0, (num_sequences, length)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def forward_and_backward(
    function: Callable[..., Tensor], qkv: Tensor, weight: Tensor, group: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(output, gradient)"""
    out = function(qkv, *group)
    return out, torch.autograd.grad(out, qkv, weight)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for group in ((16, 257), (64, 50)):
        num_sequences, length = group
        for dtype in (torch.float32, torch.bfloat16):
            qkv = torch.randn(num_sequences * length, 3, NUM_HEADS, HEAD_WIDTH).to(dtype).requires_grad_()
            weight = torch.randn(num_sequences * length, NUM_HEADS * HEAD_WIDTH).to(dtype)

            rivals: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
                "ours": partial(forward_and_backward, lambda x, *group: attention(x, (group,)), qkv, weight, group),
                "sdpa_views": partial(forward_and_backward, sdpa_on_views, qkv, weight, group),
                "sdpa_copies": partial(forward_and_backward, sdpa_on_copies, qkv, weight, group),
            }
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            for result in (rivals["sdpa_views"](), rivals["sdpa_copies"]()):
                torch.testing.assert_close(rivals["ours"](), result, rtol=tolerance, atol=tolerance)
            timings = time_interleaved(rivals, repeats=arguments.repeats, warmup=2)
            flop = 7 * 2 * num_sequences * NUM_HEADS * length**2 * HEAD_WIDTH
            emit(
                "attention",
                num_sequences=num_sequences,
                length=length,
                num_heads=NUM_HEADS,
                head_width=HEAD_WIDTH,
                dtype=str(dtype).removeprefix("torch."),
                threads=arguments.threads,
                **vars(timings["ours"]),
                **{
                    f"{name}_{key}": value
                    for name in ("sdpa_views", "sdpa_copies")
                    for key, value in vars(timings[name]).items()
                },
                speedup=timings["sdpa_copies"].p50_ms / timings["ours"].p50_ms,
                tflop_per_s=flop / timings["ours"].p50_ms / 1e9,
            )


if __name__ == "__main__":
    main()
