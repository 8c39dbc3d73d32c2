"""Streaming Sinkhorn-Knopp against the eager form that DINOv2 uses, which rewrites an fp32 matrix at every step.

    python -m benchmarks.ops.bench_sinkhorn_knopp --threads 2

Rows: 610 masked tokens, or 16 class tokens, of 8 images with 2 global crops (Web-DINO: 131,072 prototypes). Targets
must agree before they are timed. `gb_per_s` counts the reads that the algorithm needs, one of the logits for each
iteration and one more; its ceiling is the bandwidth of a plain sum, measured in the same run.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import emit, read_gb_per_s, time_interleaved
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp

NUM_ITERATIONS = 3
TEMPERATURE = 0.04


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


def random_logits(num_rows: int, num_prototypes: int, dtype: torch.dtype) -> Tensor:
    """Cosines of random features and prototypes, as a weight-normed head gives them."""
    generator = torch.Generator().manual_seed(0)
    features, prototypes = (
        F.normalize(torch.randn(rows, 256, generator=generator), dim=1) for rows in (num_rows, num_prototypes)
    )
    return (features @ prototypes.T).to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prototypes", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ceiling = read_gb_per_s()
    for num_rows in (16, 610):
        for dtype in (torch.float32, torch.bfloat16):
            logits_RK = random_logits(num_rows, arguments.prototypes, dtype)
            row_R, prototype_K = sinkhorn_knopp(logits_RK, TEMPERATURE, num_iterations=NUM_ITERATIONS)
            ours_RK = torch.exp(logits_RK.float() / TEMPERATURE + row_R[:, None] + prototype_K)
            torch.testing.assert_close(ours_RK, eager_targets(logits_RK), rtol=1e-4, atol=1e-12)
            del ours_RK
            timings = time_interleaved(
                {
                    "ours": partial(sinkhorn_knopp, logits_RK, TEMPERATURE, num_iterations=NUM_ITERATIONS),
                    "eager": partial(eager_targets, logits_RK),
                },
                repeats=arguments.repeats,
            )
            ours, eager = timings["ours"], timings["eager"]
            gb_per_s = (NUM_ITERATIONS + 1) * logits_RK.nbytes / ours.p50_ms / 1e6
            emit(
                "sinkhorn_knopp",
                num_rows=num_rows,
                num_prototypes=arguments.prototypes,
                dtype=str(dtype).removeprefix("torch."),
                threads=arguments.threads,
                **vars(ours),
                **{f"eager_{key}": value for key, value in vars(eager).items()},
                speedup=eager.p50_ms / ours.p50_ms,
                gb_per_s=gb_per_s,
                ceiling_gb_per_s=ceiling,
                ceiling_share=gb_per_s / ceiling,
            )


if __name__ == "__main__":
    main()
