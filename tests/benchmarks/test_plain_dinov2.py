"""The baseline computes DINOv2's objective: its parts against fp64 formulas, its model against torch's own parts.

Dimensions: R rows, K prototypes, B images.
"""

from __future__ import annotations

import math

import torch

from benchmarks.plain_dinov2 import (
    DropPath,
    PlainConfig,
    PlainDinoV2,
    ProjectionHead,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)

TINY = PlainConfig(
    width=32, depth=2, num_heads=2, image_size_px=56, drop_path_rate=0.0, layer_scale_init=0.3,
    head_hidden_dim=24, dino_bottleneck_dim=12, ibot_bottleneck_dim=8, num_prototypes=40,
)  # fmt: skip


def inputs(num_images: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    global_crops = torch.randn(2 * num_images, 3, 56, 56, generator=generator)
    local_crops = torch.randn(3 * num_images, 3, 28, 28, generator=generator)
    return global_crops, local_crops, torch.rand(2 * num_images, 16, generator=generator) < 0.3


def test_sinkhorn_knopp_is_three_rounds_of_scaling():
    logits_RK = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).double() * 0.2
    # The scaling-vector form: u and v alternately make the prototypes' and the rows' sums even.
    kernel_RK = torch.exp(logits_RK / 0.05)
    v_R = torch.ones(6, dtype=torch.float64)
    for _ in range(3):
        u_K = 1 / (kernel_RK.t() @ v_R)
        v_R = 1 / (kernel_RK @ u_K)
    expected = v_R[:, None] * kernel_RK * u_K
    torch.testing.assert_close(sinkhorn_knopp(logits_RK.float(), 0.05, 3).double(), expected, rtol=1e-4, atol=1e-7)


def test_losses_are_cross_entropies():
    generator = torch.Generator().manual_seed(2)
    student = [torch.randn(3, 7, generator=generator) for _ in range(2)]
    targets = [torch.rand(3, 7, generator=generator).softmax(-1) for _ in range(2)]
    expected = sum(
        -(t[b, k] * (s[b, k] / 0.1 - torch.logsumexp(s[b] / 0.1, 0))) / 3
        for s in student for t in targets for b in range(3) for k in range(7)
    )  # fmt: skip
    torch.testing.assert_close(dino_loss(student, targets, 0.1), expected)
    weights = torch.tensor([0.5, 0.5, 1.0])
    rows = -(targets[0] * (student[0] / 0.1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(ibot_loss(student[0], targets[0], weights, 4, 0.1), (rows * weights).sum() / 4)


def test_koleo_is_the_log_distance_to_the_nearest_neighbour():
    x_BD = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    torch.testing.assert_close(koleo_loss(x_BD), torch.tensor(-math.log(math.sqrt(2))), rtol=1e-6, atol=1e-6)


def test_head_has_unit_prototypes_and_unit_rows():
    head = ProjectionHead(16, 24, 8, 12)
    logits_RK = head(torch.randn(5, 16))
    assert logits_RK.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(12))


def test_drop_path_keeps_the_expectation_sample_by_sample():
    torch.manual_seed(0)
    out = DropPath(0.4).train()(torch.ones(20_000, 1, 2))
    assert torch.equal(out[..., 0], out[..., 1])
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert abs(out.mean().item() - 1) < 0.02


def test_position_embedding_follows_the_grid():
    plain = PlainDinoV2(TINY, "fp32")
    pos_embed = plain.student.backbone.interpolated_pos_embed(2)
    assert pos_embed.shape == (1, 5, 32)
    assert plain.student.backbone.interpolated_pos_embed(4) is plain.student.backbone.pos_embed


def test_a_step_moves_the_student_and_the_teacher_follows():
    plain = PlainDinoV2(TINY, "fp32")
    batch = inputs()
    before = {name: p.clone() for name, p in plain.student.named_parameters()}
    first = plain.training_step(*batch)
    assert all(math.isfinite(term.item()) for term in first.values())
    moved = [name for name, p in plain.student.named_parameters() if not torch.equal(p, before[name])]
    assert set(moved) == set(before)
    for (name, teacher), student in zip(plain.teacher.named_parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(teacher, before[name].lerp(student, 1 - TINY.ema_momentum))


def test_without_masks_there_is_no_ibot_term():
    plain = PlainDinoV2(TINY, "fp32")
    global_crops, local_crops, mask = inputs()
    terms = plain.losses(global_crops, local_crops, torch.zeros_like(mask))
    assert terms["ibot"].item() == 0
    assert terms["dino_global"].item() > 0
