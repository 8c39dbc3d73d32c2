"""Sinkhorn-Knopp targets as two potential vectors, streamed over the logits and never materialised.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), 2020, section 3.1,
as DINOv2 uses it: starting from exp(logits / temperature), each iteration divides every prototype by its sum over the
rows of all ranks and then every row by its own sum. In the log domain, with row potentials f and prototype potentials g
and f = 0 at first:

    g_k = -log sum_r exp(logits_rk / temperature + f_r)        (over all ranks)
    f_r = -log sum_k exp(logits_rk / temperature + g_k)

The constants K and B of the published form cancel: the last division is by the row's sum. After the first column pass,
the sum over rows with the new f is that of the normalised rows times exp(-g), and lies in [1 / (R K), R]: one pass over
the logits therefore yields f and the next g, and only the first pass needs a maximum per prototype. Four reads of the
logits in all for three iterations.

Dimensions: R rows (tokens), K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from webssl_fast.ops import _library


def sinkhorn_knopp(
    logits_RK: Tensor,
    temperature: float,
    *,
    num_iterations: int = 3,
    row_mask_R: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Potentials (row_potential_R, prototype_potential_K), both fp32, of the Sinkhorn-Knopp targets.

    The targets are exp(logits_RK / temperature + row_potential_R[:, None] + prototype_potential_K); each row of them
    sums to 1. They carry no gradient. Rows are joined over `process_group`, or over the default group if
    torch.distributed is initialised; a rank may have no row. The result does not depend on the number of threads.

    Args:
        logits_RK: fp32 or bf16 on CPU or CUDA, any finite values whose quotient by the temperature is finite in fp32.
            Prototypes should be contiguous, otherwise a copy is made.
        temperature: > 0.
        num_iterations: >= 1.
        row_mask_R: bool; False marks padding, which is ignored. Its row potential is -inf, its targets are 0.

    Raises:
        ValueError: wrong shapes, no prototypes, temperature or num_iterations out of range.
        TypeError: wrong dtypes.
        NotImplementedError: CUDA tensors in a build without CUDA kernels.
    """
    _check(logits_RK, temperature, row_mask_R)
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; it must be at least 1")
    logits_RK = logits_RK.detach()
    if _library.reference_forced():
        return sinkhorn_knopp_reference(
            logits_RK,
            temperature,
            num_iterations=num_iterations,
            row_mask_R=row_mask_R,
            process_group=process_group,
        )
    ops = torch.ops.webssl
    max_K, sum_K = ops.sinkhorn_column_pass(logits_RK, temperature, row_mask_R)
    if _is_joined(process_group):
        local_max_K, max_K = max_K, _all_reduce(max_K.clone(), "max", process_group)
        sum_K = _all_reduce(sum_K * torch.exp(local_max_K - max_K), "sum", process_group)
    # A sum is 0 only where no rank has a row; NaN stays NaN.
    prototype_potential_K = torch.where(sum_K == 0, 0.0, -(max_K + torch.log(sum_K)))
    for iteration in range(num_iterations):
        last = iteration == num_iterations - 1
        row_potential_R, sum_K = ops.sinkhorn_row_pass(
            logits_RK, temperature, prototype_potential_K, row_mask_R, not last
        )
        if not last:
            sum_K = _all_reduce(sum_K, "sum", process_group)
            prototype_potential_K = prototype_potential_K - torch.where(sum_K == 0, 0.0, torch.log(sum_K))
    return row_potential_R, prototype_potential_K


def softmax_potentials(logits_RK: Tensor, temperature: float, center_K: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials, as of `sinkhorn_knopp`, of the targets softmax((logits_RK - center_K) / temperature).

    These are the centred targets of DINO (Caron et al., 2021, section 3.1). No gradient.

    Args:
        logits_RK: as in `sinkhorn_knopp`.
        temperature: > 0.
        center_K: fp32.
    """
    _check(logits_RK, temperature, None)
    if center_K.shape != logits_RK.shape[1:]:
        raise ValueError(f"center_K has shape {tuple(center_K.shape)}; logits_RK need ({logits_RK.shape[1]},)")
    prototype_potential_K = center_K.detach().float() / -temperature
    logits_RK = logits_RK.detach()
    if _library.reference_forced():
        scaled_RK = logits_RK.float() / temperature + prototype_potential_K
        return -torch.logsumexp(scaled_RK, dim=1), prototype_potential_K
    row_potential_R, _ = torch.ops.webssl.sinkhorn_row_pass(logits_RK, temperature, prototype_potential_K, None, False)
    return row_potential_R, prototype_potential_K


def _check(logits_RK: Tensor, temperature: float, row_mask_R: Tensor | None) -> None:
    if logits_RK.ndim != 2:
        raise ValueError(f"logits_RK has {logits_RK.ndim} dimensions; it needs 2: (rows, prototypes)")
    if logits_RK.shape[1] == 0:
        raise ValueError("logits_RK has no prototypes; at least 1 is needed")
    if logits_RK.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"logits_RK is {logits_RK.dtype}; it must be float32 or bfloat16")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    if row_mask_R is not None:
        if row_mask_R.dtype != torch.bool:
            raise TypeError(f"row_mask_R is {row_mask_R.dtype}; it must be bool, True for rows that take part")
        if row_mask_R.shape != logits_RK.shape[:1]:
            raise ValueError(f"row_mask_R has shape {tuple(row_mask_R.shape)}; logits_RK have {len(logits_RK)} rows")


def _is_joined(process_group: dist.ProcessGroup | None) -> bool:
    """Whether there are other ranks in the group, or in the default group if there is one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) > 1


def _all_reduce(x: Tensor, operation: str, process_group: dist.ProcessGroup | None) -> Tensor:
    """Reduces `x` in place."""
    if _is_joined(process_group):
        reduce_op = {"max": dist.ReduceOp.MAX, "sum": dist.ReduceOp.SUM}[operation]
        dist.all_reduce(x, op=reduce_op, group=process_group)
    return x


def sinkhorn_knopp_reference(
    logits_RK: Tensor,
    temperature: float,
    *,
    num_iterations: int = 3,
    row_mask_R: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in plain torch, with fp32 temporaries of R x K."""
    z_RK = logits_RK.detach().float() / temperature
    if row_mask_R is not None:
        z_RK = z_RK.masked_fill(~row_mask_R[:, None], -torch.inf)
    row_potential_R = z_RK.new_zeros(z_RK.shape[0])
    for _ in range(num_iterations):
        shifted_RK = z_RK + row_potential_R[:, None]
        lowest_1K = shifted_RK.new_full((1, z_RK.shape[1]), torch.finfo(torch.float32).min)
        max_K = _all_reduce(torch.cat([shifted_RK, lowest_1K]).amax(dim=0), "max", process_group)
        sum_K = _all_reduce(torch.exp(shifted_RK - max_K).sum(dim=0), "sum", process_group)
        prototype_potential_K = torch.where(sum_K == 0, 0.0, -(max_K + torch.log(sum_K)))
        row_potential_R = -torch.logsumexp(z_RK + prototype_potential_K, dim=1)
        if row_mask_R is not None:
            row_potential_R = row_potential_R.masked_fill(~row_mask_R, -torch.inf)
    return row_potential_R, prototype_potential_K


_library.LIBRARY.define(
    "sinkhorn_column_pass(Tensor logits_RK, float temperature, Tensor? row_mask_R) -> (Tensor max_K, Tensor sum_K)"
)
_library.LIBRARY.define(
    "sinkhorn_row_pass(Tensor logits_RK, float temperature, Tensor prototype_potential_K, Tensor? row_mask_R, "
    "bool with_column_sums) -> (Tensor row_potential_R, Tensor column_sum_K)"
)


def _column_pass_fake(logits_RK: Tensor, temperature: float, row_mask_R: Tensor | None) -> tuple[Tensor, Tensor]:
    max_K = logits_RK.new_empty(logits_RK.shape[1], dtype=torch.float32)
    return max_K, torch.empty_like(max_K)


def _row_pass_fake(
    logits_RK: Tensor,
    temperature: float,
    prototype_potential_K: Tensor,
    row_mask_R: Tensor | None,
    with_column_sums: bool,
) -> tuple[Tensor, Tensor]:
    num_rows, num_prototypes = logits_RK.shape
    row_potential_R = logits_RK.new_empty(num_rows, dtype=torch.float32)
    return row_potential_R, row_potential_R.new_empty(num_prototypes if with_column_sums else 0)


def _run_column_pass(kernel: Callable, arguments: tuple, *last_arguments: int) -> tuple[Tensor, Tensor]:
    logits_RK, temperature, row_mask_R = arguments
    logits_RK = _contiguous_prototypes(logits_RK)
    row_mask_R = None if row_mask_R is None else row_mask_R.contiguous()
    max_K, sum_K = _column_pass_fake(*arguments)
    kernel(*_logits_arguments(logits_RK, temperature, row_mask_R), max_K.data_ptr(), sum_K.data_ptr(), *last_arguments)
    return max_K, sum_K


def _run_row_pass(
    kernel: Callable, num_partitions: int, arguments: tuple, *last_arguments: int
) -> tuple[Tensor, Tensor]:
    """Calls the CPU kernel, whose last argument is a number of threads, or the CUDA kernel, where it is a stream."""
    logits_RK, temperature, prototype_potential_K, row_mask_R, _ = arguments
    logits_RK = _contiguous_prototypes(logits_RK)
    row_mask_R = None if row_mask_R is None else row_mask_R.contiguous()
    prototype_potential_K = prototype_potential_K.contiguous()
    row_potential_R, column_sum_K = _row_pass_fake(*arguments)
    partial_sum_PK = column_sum_K.new_empty(num_partitions, column_sum_K.shape[0])
    kernel(
        *_logits_arguments(logits_RK, temperature, row_mask_R),
        prototype_potential_K.data_ptr(),
        row_potential_R.data_ptr(),
        column_sum_K.data_ptr(),
        partial_sum_PK.data_ptr(),
        *last_arguments,
    )
    return row_potential_R, column_sum_K


def _column_pass_cpu(*arguments) -> tuple[Tensor, Tensor]:
    return _run_column_pass(_library.C.sinkhorn_column_pass_cpu, arguments, torch.get_num_threads())


def _row_pass_cpu(*arguments) -> tuple[Tensor, Tensor]:
    num_partitions = _library.C.sinkhorn_num_row_partitions(arguments[0].shape[0])
    return _run_row_pass(_library.C.sinkhorn_row_pass_cpu, num_partitions, arguments, torch.get_num_threads())


def _column_pass_cuda(*arguments) -> tuple[Tensor, Tensor]:
    kernel = _library.cuda_kernel("sinkhorn_column_pass_cuda")
    logits_RK = arguments[0]
    num_partitions = _library.cuda_kernel("sinkhorn_num_column_partitions_cuda")(*logits_RK.shape)
    partial_2PK = logits_RK.new_empty(2, num_partitions, logits_RK.shape[1], dtype=torch.float32)
    with _library.cuda_stream(logits_RK.device) as stream:
        return _run_column_pass(kernel, arguments, partial_2PK.data_ptr(), stream)


def _row_pass_cuda(*arguments) -> tuple[Tensor, Tensor]:
    kernel = _library.cuda_kernel("sinkhorn_row_pass_cuda")
    logits_RK, temperature, prototype_potential_K, row_mask_R, with_column_sums = arguments
    # Before the kernel is chosen, since that hangs on their addresses.
    logits_RK, prototype_potential_K = _contiguous_prototypes(logits_RK), prototype_potential_K.contiguous()
    on_clusters = with_column_sums and row_pass_kernel(logits_RK, prototype_potential_K) == "cluster"
    num_partitions = _library.cuda_kernel("sinkhorn_num_row_partitions_cuda")(*logits_RK.shape, on_clusters)
    arguments = (logits_RK, temperature, prototype_potential_K, row_mask_R, with_column_sums)
    with _library.cuda_stream(logits_RK.device) as stream:
        return _run_row_pass(kernel, num_partitions, arguments, on_clusters, stream)


def row_pass_kernel(logits_RK: Tensor, prototype_potential_K: Tensor) -> Literal["cluster", "slabs"]:
    """Which kernel computes a row pass with prototype sums on these CUDA tensors.

    "cluster" reads the logits once; it needs an sm_90 GPU, 32,768 to 131,072 prototypes (a multiple of 8), and rows and
    potentials that start at multiples of 16 bytes. "slabs" is for all others, and reads the logits a second time from
    the L2 cache.
    """
    with _library.cuda_stream(logits_RK.device):
        on_clusters = _library.cuda_kernel("sinkhorn_row_pass_on_clusters_cuda")(
            logits_RK.data_ptr(),
            logits_RK.dtype == torch.bfloat16,
            *logits_RK.shape,
            logits_RK.stride(0),
            prototype_potential_K.data_ptr(),
        )
    return "cluster" if on_clusters else "slabs"


def _contiguous_prototypes(logits_RK: Tensor) -> Tensor:
    return logits_RK if logits_RK.stride(1) == 1 else logits_RK.contiguous()


def _logits_arguments(logits_RK: Tensor, temperature: float, row_mask_R: Tensor | None) -> tuple:
    return (
        logits_RK.data_ptr(),
        logits_RK.dtype == torch.bfloat16,
        *logits_RK.shape,
        logits_RK.stride(0),
        temperature,
        0 if row_mask_R is None else row_mask_R.data_ptr(),
    )


torch.library.register_fake("webssl::sinkhorn_column_pass", _column_pass_fake, lib=_library.LIBRARY)
torch.library.register_fake("webssl::sinkhorn_row_pass", _row_pass_fake, lib=_library.LIBRARY)
_library.LIBRARY.impl("sinkhorn_column_pass", _column_pass_cpu, "CPU")
_library.LIBRARY.impl("sinkhorn_row_pass", _row_pass_cpu, "CPU")
_library.LIBRARY.impl("sinkhorn_column_pass", _column_pass_cuda, "CUDA")
_library.LIBRARY.impl("sinkhorn_row_pass", _row_pass_cuda, "CUDA")
