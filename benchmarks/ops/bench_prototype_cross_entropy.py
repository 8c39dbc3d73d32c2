"""Loss and student gradient in one pass, against eager autograd on targets that are already there.

    python -m benchmarks.ops.bench_prototype_cross_entropy --threads 2

Shapes of 8 images (Web-DINO: 131,072 prototypes): iBOT has 610 masked tokens with one target each, DINO has 80 crops
with up to two. Losses and gradients must agree before they are timed. `gb_per_s` counts one read of the student's and
of each pair's teacher logits and one write of the gradient; its ceiling is the bandwidth of a plain sum in the same
run. The eager side is given its fp32 targets: making them is timed by bench_sinkhorn_knopp.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import emit, read_gb_per_s, time_interleaved
from benchmarks.ops.bench_sinkhorn_knopp import TEMPERATURE, random_logits
from webssl_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp

STUDENT_TEMPERATURE = 0.1
NUM_IMAGES = 8


def pairs(name: str, num_teachers: int) -> tuple[Tensor, Tensor]:
    """(target_rows_SM, weights_SM) of a loss whose teacher rows are the masked tokens, or the 2 x images crops."""
    if name == "ibot":
        rows = torch.arange(num_teachers)[:, None]
        return rows, torch.full(rows.shape, 1 / num_teachers)
    crop, image = torch.arange(10).repeat_interleave(NUM_IMAGES), torch.arange(NUM_IMAGES).repeat(10)
    weights = (crop[:, None] != torch.tensor([0, 1])).float() / (18 * NUM_IMAGES)
    return torch.stack([image, NUM_IMAGES + image], dim=1), weights


def ours(
    student_SK: Tensor, teacher_RK: Tensor, row_R: Tensor, prototype_K: Tensor, rows_SM: Tensor, weights_SM: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss, gradient)"""
    loss = prototype_cross_entropy(
        student_SK,
        teacher_RK,
        row_R,
        prototype_K,
        rows_SM,
        weights_SM,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=TEMPERATURE,
    )
    return loss, torch.autograd.grad(loss, student_SK)[0]


def eager(student_SK: Tensor, target_RK: Tensor, rows_SM: Tensor, weights_SM: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient)"""
    log_probability_SK = torch.log_softmax(student_SK.float() / STUDENT_TEMPERATURE, dim=1)
    loss = torch.zeros(())
    for rows_S, weights_S in zip(rows_SM.unbind(1), weights_SM.unbind(1), strict=True):
        targets_SK = target_RK if len(rows_S) == len(target_RK) else target_RK[rows_S]
        loss = loss - ((targets_SK * log_probability_SK).sum(dim=1) * weights_S).sum()
    return loss, torch.autograd.grad(loss, student_SK)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prototypes", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ceiling = read_gb_per_s()
    for name, num_students, num_teachers in (("dino", 10 * NUM_IMAGES, 2 * NUM_IMAGES), ("ibot", 610, 610)):
        rows_SM, weights_SM = pairs(name, num_teachers)
        num_pairs = int((weights_SM != 0).sum())
        for dtype in (torch.float32, torch.bfloat16):
            teacher_RK = random_logits(num_teachers, arguments.prototypes, dtype)
            student_SK = random_logits(num_students, arguments.prototypes, dtype).flip(0).requires_grad_()
            row_R, prototype_K = sinkhorn_knopp(teacher_RK, TEMPERATURE)
            target_RK = torch.exp(teacher_RK.float() / TEMPERATURE + row_R[:, None] + prototype_K)
            rivals = {
                "ours": partial(ours, student_SK, teacher_RK, row_R, prototype_K, rows_SM, weights_SM),
                "eager": partial(eager, student_SK, target_RK, rows_SM, weights_SM),
            }
            (loss, grad_SK), (eager_loss, eager_grad_SK) = rivals["ours"](), rivals["eager"]()
            torch.testing.assert_close(loss, eager_loss, rtol=1e-5, atol=1e-5)
            rtol = 1e-4 if dtype == torch.float32 else 2**-7
            torch.testing.assert_close(grad_SK, eager_grad_SK, rtol=rtol, atol=1e-9)
            del grad_SK, eager_grad_SK
            timings = time_interleaved(rivals, repeats=arguments.repeats)
            row_bytes = arguments.prototypes * student_SK.element_size()
            gb_per_s = (2 * num_students + num_pairs) * row_bytes / timings["ours"].p50_ms / 1e6
            emit(
                "prototype_cross_entropy",
                loss=name,
                num_students=num_students,
                num_pairs=num_pairs,
                num_prototypes=arguments.prototypes,
                dtype=str(dtype).removeprefix("torch."),
                threads=arguments.threads,
                **vars(timings["ours"]),
                **{f"eager_{key}": value for key, value in vars(timings["eager"]).items()},
                speedup=timings["eager"].p50_ms / timings["ours"].p50_ms,
                gb_per_s=gb_per_s,
                ceiling_gb_per_s=ceiling,
                ceiling_share=gb_per_s / ceiling,
            )


if __name__ == "__main__":
    main()
