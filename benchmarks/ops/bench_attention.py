"""Packed attention, forward and backward, against public kernels on the same sequences.

    python -m benchmarks.ops.bench_attention --device cpu --threads 2
    python -m benchmarks.ops.bench_attention --device cuda

CPU: ViT-S/14 (6 heads of 64) on 8 images: 16 global crops of 257 tokens, 64 local crops of 50; torch's SDPA on strided
views and on contiguous copies of q, k and v. `tflop_per_s` counts the seven N x N x d products of a forward and a
backward.

GPU, bf16: the same crops of 64 images at ViT-L's 16 heads of 64, and of 16 images at the 7B's 32 heads of 128. The
rivals (benchmarks/ops/attention_rivals.py) are given q, k and v apart and leave three gradients, so that what packed
tokens would cost them is not counted. One that fails, or whose output or gradients are wrong, is named in `errors` and
not timed. `graph` is ours captured in a CUDA graph. `gb_per_s` counts what a forward and a backward must move: 8 D
bytes a token (qkv in, output out) and 14 D (qkv and the output's gradient in, qkv's gradient out), D = heads x width;
its ceiling is a copy in the same run.

Outputs and gradients must agree before anything is timed.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import argument_parser, copy_gb_per_s, emit, time_interleaved
from benchmarks.ops.attention_rivals import GPU_RIVALS, Attend
from benchmarks.ops.bench_sinkhorn_knopp import captured
from webssl_fast.ops.attention import attention, attention_reference

NUM_HEADS, HEAD_WIDTH = 6, 64
CROPS = ((2, 257), (8, 50))  # of an image: (crops, tokens)
GPU_CASES = ((64, 16, 64), (16, 32, 128))  # images, heads, head width
BYTES_PER_VALUE = 8 + 14


def sdpa_on_views(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    q, k, v = qkv_T3Hd.unflatten(0, (num_sequences, length)).transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def sdpa_on_copies(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    q, k, v = qkv_T3Hd.unflatten(0, (num_sequences, length)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def ours(qkv_T3Hd: Tensor, num_sequences: int, length: int) -> Tensor:
    return attention(qkv_T3Hd, ((num_sequences, length),))


def forward_and_backward(
    function: Callable[..., Tensor], qkv: Tensor, weight: Tensor, group: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(output, gradient)"""
    out = function(qkv, *group)
    return out, torch.autograd.grad(out, qkv, weight)[0]


def apart(attend: Attend, inputs: tuple[Tensor, Tensor, Tensor], weight_BNHd: Tensor) -> tuple[Tensor, ...]:
    """(output, gradients of q, k, v), all [B, N, H, d]"""
    out = attend(*inputs)
    return out, *torch.autograd.grad(out, inputs, weight_BNHd)


def on_cpu(arguments: Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    for num_sequences, length in ((8 * count, length) for count, length in CROPS):
        group = (num_sequences, length)
        for dtype in (torch.float32, torch.bfloat16):
            qkv = torch.randn(num_sequences * length, 3, NUM_HEADS, HEAD_WIDTH).to(dtype).requires_grad_()
            weight = torch.randn(num_sequences * length, NUM_HEADS * HEAD_WIDTH).to(dtype)
            sides = {"ours": ours, "sdpa_views": sdpa_on_views, "sdpa_copies": sdpa_on_copies}
            rivals = {name: partial(forward_and_backward, side, qkv, weight, group) for name, side in sides.items()}
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            for result in (rivals["sdpa_views"](), rivals["sdpa_copies"]()):
                torch.testing.assert_close(rivals["ours"](), result, rtol=tolerance, atol=tolerance)
            timings = time_interleaved(rivals, repeats=arguments.repeats, warmup=2)
            flop = 7 * 2 * num_sequences * NUM_HEADS * length**2 * HEAD_WIDTH
            emit(
                "attention",
                record=arguments.record,
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


def on_gpu(arguments: Namespace) -> None:
    ceiling = copy_gb_per_s()
    for num_images, num_heads, head_width in GPU_CASES:
        for count, length in CROPS:
            gpu_case(arguments, (num_images * count, length), num_heads, head_width, ceiling)


def gpu_case(
    arguments: Namespace, group: tuple[int, int], num_heads: int, head_width: int, ceiling_gb_per_s: float
) -> None:
    num_sequences, length = group
    shape = (num_sequences, length, num_heads, head_width)
    qkv = torch.randn(num_sequences * length, 3, num_heads, head_width, device=arguments.device, dtype=torch.bfloat16)
    weight = torch.randn(num_sequences * length, num_heads * head_width, device=arguments.device, dtype=torch.bfloat16)
    packed = qkv.clone().requires_grad_()
    runs: dict[str, Callable[[], Any]] = {"ours": partial(forward_and_backward, ours, packed, weight, group)}
    expected = expected_of(qkv, weight, group)
    out, grad = runs["ours"]()
    check((out.view(shape), *grad.unflatten(0, group).unbind(2)), expected)

    q, k, v = (x.contiguous().requires_grad_() for x in qkv.unflatten(0, group).unbind(2))
    errors: dict[str, str] = {}
    for name, attend in GPU_RIVALS.items():
        run = partial(apart, attend, (q, k, v), weight.view(shape))
        try:
            check(run(), expected)
            runs[name] = run
        except Exception as error:  # whatever a rival raises is its result
            errors[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]
    best_of = [name for name in runs if name != "ours"]
    if arguments.device == "cuda":
        runs["graph"] = captured(runs["ours"])
    timings = time_interleaved(runs, repeats=arguments.repeats, warmup=3, device=arguments.device)
    best = min(best_of, key=lambda name: timings[name].p50_ms, default=None)
    own_ms = timings["ours"].p50_ms
    gb_per_s = BYTES_PER_VALUE * weight.numel() / own_ms / 1e6
    emit(
        "attention_gpu",
        record=arguments.record,
        device=arguments.device,
        num_sequences=num_sequences,
        length=length,
        num_heads=num_heads,
        head_width=head_width,
        dtype="bfloat16",
        **vars(timings["ours"]),
        **{f"{name}_{key}": value for name in runs if name != "ours" for key, value in vars(timings[name]).items()},
        errors=errors,
        best_rival=best,
        speedup=None if best is None else timings[best].p50_ms / own_ms,
        gb_per_s=gb_per_s,
        ceiling_gb_per_s=ceiling_gb_per_s,
        ceiling_share=gb_per_s / ceiling_gb_per_s,
        tflop_per_s=7 * 2 * num_sequences * num_heads * length**2 * head_width / own_ms / 1e9,
    )


def expected_of(qkv: Tensor, weight: Tensor, group: tuple[int, int]) -> tuple[Tensor, ...]:
    """(output, gradients of q, k, v), [B, N, H, d], from the formula in fp32."""
    out, grad = forward_and_backward(
        lambda x, *group: attention_reference(x, (group,)), qkv.float().requires_grad_(), weight.float(), group
    )
    return out.detach().view(*group, *qkv.shape[2:]), *grad.unflatten(0, group).unbind(2)


def check(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result.float(), value, rtol=2e-2, atol=2e-2)


def main() -> None:
    arguments = argument_parser(__doc__, repeats=15).parse_args()
    on_gpu(arguments) if arguments.device == "cuda" else on_cpu(arguments)


if __name__ == "__main__":
    main()
