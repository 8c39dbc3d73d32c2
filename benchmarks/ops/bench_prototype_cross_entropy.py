"""Loss and student gradient in one pass, against eager autograd on targets that are already there.

    python -m benchmarks.ops.bench_prototype_cross_entropy --device cpu --threads 2
    python -m benchmarks.ops.bench_prototype_cross_entropy --device cuda

Shapes of 8 images on a CPU and 64 on a GPU (Web-DINO: 131,072 prototypes): iBOT has 610 or 5,000 masked tokens with one
target each, DINO has ten crops an image with up to two. On a GPU the eager loss under torch.compile is timed too, and
ours captured in a CUDA graph.

Losses and gradients must agree before they are timed. `gb_per_s` counts one read of the student's and of each pair's
teacher logits and one write of the gradient; its ceiling is the bandwidth of a plain sum (of a copy on a GPU) in the
same run. The eager side is given its fp32 targets: making them is timed by bench_sinkhorn_knopp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import argument_parser, copy_gb_per_s, emit, read_gb_per_s, time_interleaved
from benchmarks.ops.bench_sinkhorn_knopp import DTYPES, TEMPERATURE, captured, random_logits, timing_fields
from webssl_fast.ops.prototype_cross_entropy import forward_kernel, prototype_cross_entropy
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp

STUDENT_TEMPERATURE = 0.1
NUM_PROTOTYPES = 131_072
NUM_IMAGES = {"cpu": 8, "cuda": 64}
NUM_MASKED = {"cpu": 610, "cuda": 5000}


def pairs(name: str, device: str) -> tuple[int, Tensor, Tensor]:
    """(num_teachers, target_rows_SM, weights_SM); teacher rows are the masked tokens, or 2 x images crops."""
    if name == "ibot":
        num_teachers = NUM_MASKED[device]
        rows_SM = torch.arange(num_teachers, device=device)[:, None]
        return num_teachers, rows_SM, torch.full(rows_SM.shape, 1 / num_teachers, device=device)
    num_images = NUM_IMAGES[device]
    image = torch.arange(num_images, device=device).repeat(10)
    crop = torch.arange(10, device=device).repeat_interleave(num_images)
    weights_SM = (crop[:, None] != torch.arange(2, device=device)).float() / (18 * num_images)
    return 2 * num_images, torch.stack([image, num_images + image], dim=1), weights_SM


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


def eager_loss(student_SK: Tensor, target_RK: Tensor, rows_SM: Tensor, weights_SM: Tensor) -> Tensor:
    log_probability_SK = torch.log_softmax(student_SK.float() / STUDENT_TEMPERATURE, dim=1)
    loss = torch.zeros((), device=student_SK.device)
    for rows_S, weights_S in zip(rows_SM.unbind(1), weights_SM.unbind(1), strict=True):
        targets_SK = target_RK if len(rows_S) == len(target_RK) else target_RK[rows_S]
        loss = loss - ((targets_SK * log_probability_SK).sum(dim=1) * weights_S).sum()
    return loss


def with_gradient(loss: Callable[..., Tensor], student_SK: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient)"""
    value = loss(student_SK, *arguments)
    return value, torch.autograd.grad(value, student_SK)[0]


def check(ours: Callable[[], tuple[Tensor, Tensor]], eager: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Stops where ours is not the eager loss or gradient."""
    (loss, grad_SK), (eager_loss, eager_grad_SK) = ours(), eager()
    torch.testing.assert_close(loss, eager_loss, rtol=1e-5, atol=1e-5)
    rtol = 1e-4 if grad_SK.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(grad_SK, eager_grad_SK, rtol=rtol, atol=1e-9)


def bench(name: str, dtype: torch.dtype, device: str, repeats: int, ceiling_gb_per_s: float) -> dict[str, Any]:
    """The fields of one result line."""
    num_teachers, rows_SM, weights_SM = pairs(name, device)
    num_students, num_pairs = len(rows_SM), int((weights_SM != 0).sum())
    teacher_RK = random_logits(num_teachers, NUM_PROTOTYPES, dtype, device)
    student_SK = random_logits(num_students, NUM_PROTOTYPES, dtype, device).flip(0).requires_grad_()
    row_R, prototype_K = sinkhorn_knopp(teacher_RK, TEMPERATURE)
    target_RK = torch.exp(teacher_RK.float() / TEMPERATURE + row_R[:, None] + prototype_K)
    rivals: dict[str, Callable[[], Any]] = {
        "ours": partial(ours, student_SK, teacher_RK, row_R, prototype_K, rows_SM, weights_SM),
        "eager": partial(with_gradient, eager_loss, student_SK, target_RK, rows_SM, weights_SM),
    }
    check(rivals["ours"], rivals["eager"])
    fields: dict[str, Any] = {"loss": name, "num_students": num_students, "num_pairs": num_pairs}
    if device == "cuda":
        compiled_loss = torch.compile(eager_loss, dynamic=False)
        rivals["compiled"] = partial(with_gradient, compiled_loss, student_SK, target_RK, rows_SM, weights_SM)
        rivals["graph"] = captured(rivals["ours"])
        fields["kernel"] = forward_kernel(student_SK, teacher_RK, prototype_K)
    fields |= timing_fields(time_interleaved(rivals, repeats, device=device))
    row_bytes = NUM_PROTOTYPES * student_SK.element_size()
    gb_per_s = (2 * num_students + num_pairs) * row_bytes / fields["p50_ms"] / 1e6
    return fields | {
        "gb_per_s": gb_per_s,
        "ceiling_gb_per_s": ceiling_gb_per_s,
        "ceiling_share": gb_per_s / ceiling_gb_per_s,
    }


def main() -> None:
    arguments = argument_parser(__doc__, repeats=7).parse_args()
    torch.set_num_threads(arguments.threads)
    ceiling_gb_per_s = read_gb_per_s() if arguments.device == "cpu" else copy_gb_per_s(device=arguments.device)
    for name in ("dino", "ibot"):
        for dtype in DTYPES[arguments.device]:
            emit(
                "prototype_cross_entropy",
                record=arguments.record,
                device=arguments.device,
                num_prototypes=NUM_PROTOTYPES,
                dtype=str(dtype).removeprefix("torch."),
                threads=arguments.threads,
                **bench(name, dtype, arguments.device, arguments.repeats, ceiling_gb_per_s),
            )


if __name__ == "__main__":
    main()
