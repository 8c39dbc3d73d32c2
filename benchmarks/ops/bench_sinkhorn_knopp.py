"""Streaming Sinkhorn-Knopp against the eager form that DINOv2 uses, which rewrites an fp32 matrix at every step.

    python -m benchmarks.ops.bench_sinkhorn_knopp --device cpu --threads 2
    python -m benchmarks.ops.bench_sinkhorn_knopp --device cuda

Rows on a CPU: 610 masked tokens, or 16 class tokens, of 8 images with 2 global crops (Web-DINO: 131,072 prototypes). On
a GPU: 5,000 masked tokens, or the class tokens of 64 and 128 images; the eager form under torch.compile is timed too,
and ours captured in a CUDA graph, which is free of the time that launches take.

Targets must agree before they are timed. `gb_per_s` counts the reads that the algorithm needs, one of the logits for
each iteration and one more, and `floor_ms` is what they take at the ceiling, the bandwidth of a plain sum in the same
run. `extra_memory_share` is the most that ours allocates at a time, outputs included, over the logits' bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Timing, argument_parser, emit, read_gb_per_s, time_interleaved
from webssl_fast.ops.sinkhorn_knopp import row_pass_kernel, sinkhorn_knopp

NUM_ITERATIONS = 3
TEMPERATURE = 0.04
# Rows and prototypes.
CASES = {
    "cpu": [(16, 131_072), (610, 131_072)],
    "cuda": [(128, 65_536), (256, 131_072), (5000, 65_536), (5000, 131_072)],
}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.bfloat16]}


def eager_targets(logits_RK: Tensor) -> Tensor:
    """Targets fp32 [R, K], step by step as published (arXiv 2006.09882, section 3.1)."""
    q_KR = torch.exp(logits_RK.float() / TEMPERATURE).t()
    num_prototypes, num_rows = q_KR.shape
    q_KR /= q_KR.sum()
    for _ in range(NUM_ITERATIONS):
        q_KR /= q_KR.sum(dim=1, keepdim=True)
        q_KR /= num_prototypes
        q_KR /= q_KR.sum(dim=0, keepdim=True)
        q_KR /= num_rows
    q_KR *= num_rows
    return q_KR.t()


def random_logits(num_rows: int, num_prototypes: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Cosines of random features and prototypes, as a weight-normed head gives them."""
    generator = torch.Generator(device).manual_seed(0)
    features, prototypes = (
        F.normalize(torch.randn(rows, 256, generator=generator, device=device), dim=1)
        for rows in (num_rows, num_prototypes)
    )
    return (features @ prototypes.T).to(dtype)


def captured(function: Callable[[], Any]) -> Callable[[], None]:
    """The function as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def extra_memory_bytes(function: Callable[[], Any]) -> int:
    """The most that a call allocates on the GPU at a time."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def timing_fields(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Ours as they are, those of rivals with their name before, and how many times as long the eager form takes."""
    fields = dict(vars(timings["ours"]))
    for name in (name for name in timings if name != "ours"):
        fields |= {f"{name}_{key}": value for key, value in vars(timings[name]).items()}
    fields["speedup"] = timings["eager"].p50_ms / timings["ours"].p50_ms
    if "compiled" in timings:
        fields["speedup_over_compiled"] = timings["compiled"].p50_ms / timings["ours"].p50_ms
    return fields


def check(logits_RK: Tensor) -> None:
    """Stops where our targets are not the eager ones."""
    row_R, prototype_K = sinkhorn_knopp(logits_RK, TEMPERATURE, num_iterations=NUM_ITERATIONS)
    ours_RK = torch.exp(logits_RK.float() / TEMPERATURE + row_R[:, None] + prototype_K)
    torch.testing.assert_close(ours_RK, eager_targets(logits_RK), rtol=1e-4, atol=1e-12)


def bench(logits_RK: Tensor, repeats: int, ceiling_gb_per_s: float) -> dict[str, Any]:
    """The fields of one result line."""
    ours = partial(sinkhorn_knopp, logits_RK, TEMPERATURE, num_iterations=NUM_ITERATIONS)
    rivals: dict[str, Callable[[], Any]] = {"ours": ours, "eager": partial(eager_targets, logits_RK)}
    fields: dict[str, Any] = {}
    if logits_RK.is_cuda:
        rivals["compiled"] = partial(torch.compile(eager_targets, dynamic=False), logits_RK)
        rivals["graph"] = captured(ours)
        fields["kernel"] = row_pass_kernel(logits_RK, torch.empty(logits_RK.shape[1], device=logits_RK.device))
        fields["extra_memory_share"] = extra_memory_bytes(ours) / logits_RK.nbytes
    fields |= timing_fields(time_interleaved(rivals, repeats, device=logits_RK.device))
    floor_ms = (NUM_ITERATIONS + 1) * logits_RK.nbytes / ceiling_gb_per_s / 1e6
    return fields | {
        "gb_per_s": ceiling_gb_per_s * floor_ms / fields["p50_ms"],
        "ceiling_gb_per_s": ceiling_gb_per_s,
        "ceiling_share": floor_ms / fields["p50_ms"],
        "floor_ms": floor_ms,
    }


def main() -> None:
    arguments = argument_parser(__doc__, repeats=7).parse_args()
    torch.set_num_threads(arguments.threads)
    ceiling_gb_per_s = read_gb_per_s(device=arguments.device)
    for num_rows, num_prototypes in CASES[arguments.device]:
        for dtype in DTYPES[arguments.device]:
            logits_RK = random_logits(num_rows, num_prototypes, dtype, arguments.device)
            check(logits_RK)
            emit(
                "sinkhorn_knopp",
                record=arguments.record,
                device=arguments.device,
                num_rows=num_rows,
                num_prototypes=num_prototypes,
                dtype=str(dtype).removeprefix("torch."),
                threads=arguments.threads,
                **bench(logits_RK, arguments.repeats, ceiling_gb_per_s),
            )


if __name__ == "__main__":
    main()
