"""Cross-entropy of student prototypes against teacher targets rebuilt on the fly: loss and gradient in one pass.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023, section 4 (the image-level and
patch-level objectives):

    loss = sum_{s,m} w_sm CE(p_{t(s,m)}, softmax(student_s / student_temperature))
    p_r  = exp(teacher_r / teacher_temperature + row_potential_r + prototype_potential)

With y = student / student_temperature, CE = logsumexp(y) sum_k p_k - sum_k p_k y_k, and its derivative by y is
softmax(y) sum_k p_k - p. Neither targets nor probabilities are stored.

Dimensions: S student rows, R teacher rows, M pairs of a student row, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from webssl_fast.ops import _library


def prototype_cross_entropy(
    student_logits_SK: Tensor,
    teacher_logits_RK: Tensor,
    row_potential_R: Tensor,
    prototype_potential_K: Tensor,
    target_rows_SM: Tensor,
    weights_SM: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The weighted sum of cross-entropies, an fp32 scalar, differentiable by `student_logits_SK` alone, and once.

    The student's gradient is computed together with the loss (where one is required) and scaled in place by the
    backward, so that a second backward through the same loss is an error: call the function again. The result does not
    depend on the number of threads.

    Args:
        student_logits_SK, teacher_logits_RK: fp32 or bf16 on CPU or CUDA, each of its own dtype. Prototypes should be
            contiguous, otherwise a copy is made.
        row_potential_R, prototype_potential_K: fp32, of `sinkhorn_knopp` or `softmax_potentials` on the teacher's
            logits at `teacher_temperature`.
        target_rows_SM: int32 or int64, the teacher row of each pair, in [0, R).
        weights_SM: fp32. Pairs of weight 0 are skipped and their target row is not read.
        student_temperature, teacher_temperature: > 0.

    Raises:
        ValueError: wrong shapes, no prototypes, temperatures out of range.
        TypeError: wrong dtypes.
        IndexError: a target row out of range (on CUDA, where a kernel cannot raise, the loss is NaN instead).
        NotImplementedError: CUDA tensors in a build without CUDA kernels.
    """
    _check(student_logits_SK, teacher_logits_RK, row_potential_R, prototype_potential_K, target_rows_SM, weights_SM)
    for name, temperature in (("student", student_temperature), ("teacher", teacher_temperature)):
        if not temperature > 0:
            raise ValueError(f"{name}_temperature is {temperature}; it must be greater than 0")
    arguments = (
        student_logits_SK,
        teacher_logits_RK.detach(),
        row_potential_R.detach(),
        prototype_potential_K.detach(),
        target_rows_SM,
        weights_SM.detach(),
    )
    if _library.reference_forced():
        return prototype_cross_entropy_reference(
            *arguments, student_temperature=student_temperature, teacher_temperature=teacher_temperature
        )
    with_gradient = torch.is_grad_enabled() and student_logits_SK.requires_grad
    loss, _ = torch.ops.webssl.prototype_cross_entropy(
        *arguments, student_temperature, teacher_temperature, with_gradient
    )
    return loss


def _check(
    student_logits_SK: Tensor,
    teacher_logits_RK: Tensor,
    row_potential_R: Tensor,
    prototype_potential_K: Tensor,
    target_rows_SM: Tensor,
    weights_SM: Tensor,
) -> None:
    for name, logits in (("student_logits_SK", student_logits_SK), ("teacher_logits_RK", teacher_logits_RK)):
        if logits.ndim != 2 or logits.shape[1] == 0:
            raise ValueError(
                f"{name} has shape {tuple(logits.shape)}; it needs (rows, prototypes), at least 1 prototype"
            )
        if logits.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"{name} is {logits.dtype}; it must be float32 or bfloat16")
    num_students, num_prototypes = student_logits_SK.shape
    num_teachers = teacher_logits_RK.shape[0]
    if teacher_logits_RK.shape[1] != num_prototypes:
        raise ValueError(
            f"teacher_logits_RK has {teacher_logits_RK.shape[1]} prototypes and student_logits_SK {num_prototypes}; "
            "both heads need the same number"
        )
    for name, potential, size in (
        ("row_potential_R", row_potential_R, num_teachers),
        ("prototype_potential_K", prototype_potential_K, num_prototypes),
    ):
        if potential.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(potential.shape)}; the teacher's logits need ({size},)")
        if potential.dtype != torch.float32:
            raise TypeError(f"{name} is {potential.dtype}; it must be float32")
    if target_rows_SM.ndim != 2 or target_rows_SM.shape[0] != num_students:
        raise ValueError(
            f"target_rows_SM has shape {tuple(target_rows_SM.shape)}; it needs ({num_students}, pairs per student row)"
        )
    if target_rows_SM.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"target_rows_SM is {target_rows_SM.dtype}; it must be int32 or int64")
    if weights_SM.shape != target_rows_SM.shape:
        raise ValueError(
            f"weights_SM has shape {tuple(weights_SM.shape)} and target_rows_SM {tuple(target_rows_SM.shape)}; "
            "each pair needs one weight"
        )
    if weights_SM.dtype != torch.float32:
        raise TypeError(f"weights_SM is {weights_SM.dtype}; it must be float32")


def prototype_cross_entropy_reference(
    student_logits_SK: Tensor,
    teacher_logits_RK: Tensor,
    row_potential_R: Tensor,
    prototype_potential_K: Tensor,
    target_rows_SM: Tensor,
    weights_SM: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The same in plain torch and autograd, with fp32 targets of R x K and log-probabilities of S x K."""
    log_probability_SK = torch.log_softmax(student_logits_SK.float() / student_temperature, dim=1)
    target_RK = torch.exp(
        teacher_logits_RK.float() / teacher_temperature + row_potential_R[:, None] + prototype_potential_K
    )
    loss = student_logits_SK.new_zeros((), dtype=torch.float32)
    for m in range(target_rows_SM.shape[1]):
        active = torch.nonzero(weights_SM[:, m]).squeeze(1)
        cross_entropy = -(target_RK[target_rows_SM[active, m].long()] * log_probability_SK[active]).sum(dim=1)
        loss = loss + (weights_SM[active, m] * cross_entropy).sum()
    return loss


_library.LIBRARY.define(
    "prototype_cross_entropy(Tensor student_logits_SK, Tensor teacher_logits_RK, Tensor row_potential_R, "
    "Tensor prototype_potential_K, Tensor target_rows_SM, Tensor weights_SM, float student_temperature, "
    "float teacher_temperature, bool with_gradient) -> (Tensor loss, Tensor grad_SK)"
)
_library.LIBRARY.define("prototype_cross_entropy_backward(Tensor(a!) grad_SK, Tensor grad_loss) -> ()")


def _forward_fake(
    student_logits_SK: Tensor,
    teacher_logits_RK: Tensor,
    row_potential_R: Tensor,
    prototype_potential_K: Tensor,
    target_rows_SM: Tensor,
    weights_SM: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    loss = student_logits_SK.new_empty((), dtype=torch.float32)
    return loss, student_logits_SK.new_empty(student_logits_SK.shape if with_gradient else (0,))


def _run_forward(kernel: Callable, arguments: tuple, last_argument: int) -> tuple[Tensor, Tensor]:
    """Calls the CPU kernel, whose last argument is a number of threads, or the CUDA kernel, where it is a stream."""
    student_logits_SK, teacher_logits_RK, row_potential_R, prototype_potential_K, target_rows_SM, weights_SM = (
        arguments[:6]
    )
    student_temperature, teacher_temperature, with_gradient = arguments[6:]
    student_logits_SK = _contiguous_prototypes(student_logits_SK)
    teacher_logits_RK = _contiguous_prototypes(teacher_logits_RK)
    row_potential_R, prototype_potential_K = row_potential_R.contiguous(), prototype_potential_K.contiguous()
    target_rows_SM, weights_SM = target_rows_SM.long().contiguous(), weights_SM.contiguous()
    num_students, num_prototypes = student_logits_SK.shape
    loss_S = student_logits_SK.new_empty(num_students, dtype=torch.float64)
    grad_SK = student_logits_SK.new_empty((num_students, num_prototypes) if with_gradient else (0,))
    kernel(
        student_logits_SK.data_ptr(),
        student_logits_SK.dtype == torch.bfloat16,
        student_logits_SK.stride(0),
        teacher_logits_RK.data_ptr(),
        teacher_logits_RK.dtype == torch.bfloat16,
        teacher_logits_RK.stride(0),
        row_potential_R.data_ptr(),
        prototype_potential_K.data_ptr(),
        target_rows_SM.data_ptr(),
        weights_SM.data_ptr(),
        num_students,
        teacher_logits_RK.shape[0],
        target_rows_SM.shape[1],
        num_prototypes,
        student_temperature,
        teacher_temperature,
        loss_S.data_ptr(),
        grad_SK.data_ptr(),
        last_argument,
    )
    return loss_S.sum().float(), grad_SK


def _forward_cpu(*arguments) -> tuple[Tensor, Tensor]:
    return _run_forward(_library.C.prototype_cross_entropy_cpu, arguments, torch.get_num_threads())


def _forward_cuda(*arguments) -> tuple[Tensor, Tensor]:
    kernel = _library.cuda_kernel("prototype_cross_entropy_cuda")
    with _library.cuda_stream(arguments[0].device) as stream:
        return _run_forward(kernel, arguments, stream)


def forward_kernel(
    student_logits_SK: Tensor, teacher_logits_RK: Tensor, prototype_potential_K: Tensor
) -> Literal["cluster", "block"]:
    """Which kernel computes loss and gradient on these CUDA tensors, whose prototypes are contiguous.

    "cluster" reads each logit once; it needs an sm_90 GPU, 32,768 to 131,072 prototypes (a multiple of 8), and rows and
    potentials that start at multiples of 16 bytes. "block" is for all others, and reads the logits a second time,
    mostly from the L2 cache.
    """
    with _library.cuda_stream(student_logits_SK.device):
        on_clusters = _library.cuda_kernel("prototype_cross_entropy_on_clusters_cuda")(
            student_logits_SK.data_ptr(),
            student_logits_SK.dtype == torch.bfloat16,
            student_logits_SK.stride(0),
            teacher_logits_RK.data_ptr(),
            teacher_logits_RK.dtype == torch.bfloat16,
            teacher_logits_RK.stride(0),
            prototype_potential_K.data_ptr(),
            prototype_potential_K.shape[0],
        )
    return "cluster" if on_clusters else "block"


def _backward_cpu(grad_SK: Tensor, grad_loss: Tensor) -> None:
    _library.C.prototype_cross_entropy_scale_cpu(
        grad_SK.data_ptr(),
        grad_SK.dtype == torch.bfloat16,
        grad_SK.numel(),
        grad_loss.item(),
        torch.get_num_threads(),
    )


def _backward_cuda(grad_SK: Tensor, grad_loss: Tensor) -> None:
    kernel = _library.cuda_kernel("prototype_cross_entropy_scale_cuda")
    with _library.cuda_stream(grad_SK.device) as stream:
        kernel(
            grad_SK.data_ptr(),
            grad_SK.dtype == torch.bfloat16,
            grad_SK.numel(),
            grad_loss.data_ptr(),
            stream,
        )


def _contiguous_prototypes(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, grad_SK = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(grad_SK)
    ctx.save_for_backward(grad_SK)
    ctx.used = False


def _backward(ctx, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    no_gradients = (None,) * 8
    if grad_loss is None:
        return None, *no_gradients
    (grad_SK,) = ctx.saved_tensors
    if type(grad_SK) is not Tensor:  # traced by torch.compile, which fuses a product and must see no mutation
        return grad_SK * grad_loss, *no_gradients
    if torch.is_grad_enabled():
        raise RuntimeError("prototype_cross_entropy has no second derivative: call backward without create_graph")
    if ctx.used:
        raise RuntimeError(
            "prototype_cross_entropy: second backward through one loss. The first scaled the gradient in place to save "
            "a pass and its memory; call the function again, or sum what you differentiate into one backward."
        )
    ctx.used = True
    torch.ops.webssl.prototype_cross_entropy_backward(grad_SK, grad_loss)
    return grad_SK, *no_gradients


torch.library.register_fake("webssl::prototype_cross_entropy", _forward_fake, lib=_library.LIBRARY)
torch.library.register_fake(
    "webssl::prototype_cross_entropy_backward", lambda grad_SK, grad_loss: None, lib=_library.LIBRARY
)
_library.LIBRARY.impl("prototype_cross_entropy", _forward_cpu, "CPU")
_library.LIBRARY.impl("prototype_cross_entropy_backward", _backward_cpu, "CPU")
_library.LIBRARY.impl("prototype_cross_entropy", _forward_cuda, "CUDA")
_library.LIBRARY.impl("prototype_cross_entropy_backward", _backward_cuda, "CUDA")
torch.library.register_autograd(
    "webssl::prototype_cross_entropy", _backward, setup_context=_setup_context, lib=_library.LIBRARY
)
