"""FLOPs of our ops, and their registration with torch's FlopCounterMode, which counts what it does not know as 0.

Importing this module registers them, together with torch's attention on CPUs (torch has formulas for CUDA only):

    import webssl_fast.ops.flops  # noqa: F401
    with torch.utils.flop_counter.FlopCounterMode() as counter: ...

A multiplication, an addition, a maximum and an exponential count 1 each. The backward of attention counts 5 products
where the forward has 2, since the fused kernels compute the scores again.

Dimensions: N tokens of a sequence, D width, R rows, S student rows, M pairs of a student row, K
prototypes.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from webssl_fast.ops import attention, prototype_cross_entropy, sinkhorn_knopp  # noqa: F401 - defines the ops named below


def attention_flops(num_sequences: int, length: int, width: int) -> int:
    """Forward: q k^T and p v, each 2 N^2 d for each head and sequence. `width` is that of all heads."""
    return 4 * num_sequences * length**2 * width


def attention_backward_flops(num_sequences: int, length: int, width: int) -> int:
    """The scores again, and the gradients of p, v, q and k: five products."""
    return attention_flops(num_sequences, length, width) // 2 * 5


def sinkhorn_column_pass_flops(num_rows: int, num_prototypes: int) -> int:
    """For each logit: scale, maximum, subtract, exp, add."""
    return 5 * num_rows * num_prototypes


def sinkhorn_row_pass_flops(num_rows: int, num_prototypes: int, with_column_sums: bool) -> int:
    """For each logit: scale, add the prototype's potential, exp, add; for the column sums multiply and add."""
    return (6 if with_column_sums else 4) * num_rows * num_prototypes


def sinkhorn_flops(num_rows: int, num_prototypes: int, num_iterations: int) -> int:
    """All passes of `sinkhorn_knopp`."""
    rows_and_columns = sinkhorn_row_pass_flops(num_rows, num_prototypes, True)
    last = sinkhorn_row_pass_flops(num_rows, num_prototypes, False)
    return sinkhorn_column_pass_flops(num_rows, num_prototypes) + (num_iterations - 1) * rows_and_columns + last


def prototype_cross_entropy_flops(
    num_students: int, num_pairs: int, num_prototypes: int, with_gradient: bool = True
) -> int:
    """For each student logit: scale, subtract, exp, add; for each pair's: scale, two potentials, exp, sum, multiply and
    add. The gradient: probability, times the targets' sum, and subtract for each student logit; multiply and add for
    each pair's."""
    for_each_logit, for_each_pair = (7, 9) if with_gradient else (4, 7)
    return (for_each_logit + for_each_pair * num_pairs) * num_students * num_prototypes


def _register() -> None:
    aten, webssl = torch.ops.aten, torch.ops.webssl
    forward, backward = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    if forward not in flop_registry:  # a later torch may bring its own

        @register_flop_formula(forward)
        def _(query, key, value, *args, out_shape=None, **kwargs) -> int:
            return sdpa_flop_count(query, key, value)

        @register_flop_formula(backward)
        def _(grad_out, query, key, value, *args, out_shape=None, **kwargs) -> int:
            return sdpa_backward_flop_count(grad_out, query, key, value)

    @register_flop_formula(webssl.attention)
    def _(qkv_T3Hd, num_sequences, lengths, *args, out_shape=None, **kwargs) -> int:
        width = qkv_T3Hd[2] * qkv_T3Hd[3]
        return sum(attention_flops(n, length, width) for n, length in zip(num_sequences, lengths, strict=True))

    @register_flop_formula(webssl.attention_backward)
    def _(qkv_T3Hd, lse_HT, grad_TD, num_sequences, lengths, *args, out_shape=None, **kwargs) -> int:
        width = qkv_T3Hd[2] * qkv_T3Hd[3]
        return sum(attention_backward_flops(n, length, width) for n, length in zip(num_sequences, lengths, strict=True))

    @register_flop_formula(webssl.sinkhorn_column_pass)
    def _(logits_RK, *args, out_shape=None, **kwargs) -> int:
        return sinkhorn_column_pass_flops(logits_RK[0], logits_RK[1])

    @register_flop_formula(webssl.sinkhorn_row_pass)
    def _(logits_RK, temperature, potential_K, row_mask_R, with_column_sums, *args, out_shape=None, **kwargs) -> int:
        return sinkhorn_row_pass_flops(logits_RK[0], logits_RK[1], with_column_sums)

    @register_flop_formula(webssl.prototype_cross_entropy)
    def _(logits_SK, teacher_RK, row_R, potential_K, rows_SM, weights_SM, *args, out_shape=None, **kwargs) -> int:
        return prototype_cross_entropy_flops(logits_SK[0], rows_SM[1], logits_SK[1], with_gradient=args[-1])

    @register_flop_formula(webssl.prototype_cross_entropy_backward)
    def _(grad_SK, *args, out_shape=None, **kwargs) -> int:
        return grad_SK[0] * grad_SK[1]


_register()
