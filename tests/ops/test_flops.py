"""FLOPs that FlopCounterMode counts for each op, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import webssl_fast.ops.flops  # noqa: F401
from webssl_fast.ops.attention import attention
from webssl_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp

NUM_HEADS, HEAD_WIDTH = 3, 16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention(precision):
    groups = ((2, 200), (3, 130))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    qkv = torch.randn(2 * 200 + 3 * 130, 3, NUM_HEADS, HEAD_WIDTH, dtype=dtype, requires_grad=True)
    product = sum(count * 2 * NUM_HEADS * length**2 * HEAD_WIDTH for count, length in groups)
    with FlopCounterMode(display=False) as forward:
        out = attention(qkv, groups)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product


def test_sinkhorn_knopp():
    with FlopCounterMode(display=False) as counter:
        sinkhorn_knopp(torch.randn(7, 11), 0.1, num_iterations=3)
    assert counter.get_total_flops() == 7 * 11 * (5 + 6 + 6 + 4)


def test_prototype_cross_entropy():
    student, teacher = torch.randn(5, 11, requires_grad=True), torch.randn(4, 11)
    rows, weights = torch.tensor([[0, 1]] * 5), torch.ones(5, 2)
    arguments = (teacher, *sinkhorn_knopp(teacher, 0.1), rows, weights)
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.1}
    with FlopCounterMode(display=False) as judged:
        prototype_cross_entropy(student.detach(), *arguments, **temperatures)
    with FlopCounterMode(display=False) as trained:
        prototype_cross_entropy(student, *arguments, **temperatures).backward()
    assert judged.get_total_flops() == 5 * 11 * (4 + 2 * 7)
    assert trained.get_total_flops() == 5 * 11 * (7 + 2 * 9) + 5 * 11
