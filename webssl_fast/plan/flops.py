"""FLOPs of a training step, part by part, as executed: what drop-path drops is not counted.

A linear layer with P weights costs 2 P FLOPs a token forward, and twice that backward (the gradients of its input and
of its weights). torch's FlopCounterMode counts the same (tests/plan/test_flops.py).

Dimensions: B images of a micro-batch, N tokens of a sequence, D width, R rows, K prototypes.
"""

from __future__ import annotations

from webssl_fast.config.schema import DinoV2Config, HeadConfig, RunConfig
from webssl_fast.models.block import Groups
from webssl_fast.ops import flops as op_flops
from webssl_fast.plan.step_shape import StepShape, num_tokens, step_shape

PARTS = (
    "student_forward",
    "student_backward",
    "teacher_forward",
    "attention",
    "heads",
    "prototypes",
    "targets_and_losses",
)


def flops_per_image(config: RunConfig) -> float | None:
    """FLOPs of one image's share of a training step, for the metrics' MFU: without what checkpointing computes again.
    None for a method whose step is not known here.

    `config`: resolved (see config/resolve.py).
    """
    if not isinstance(config.method, DinoV2Config):
        return None
    shape = step_shape(config)
    return sum(micro_batch_flops(shape).values()) / shape.num_images


def micro_batch_flops(shape: StepShape) -> dict[str, int]:
    """FLOPs of a micro-batch, forward and backward, by PARTS.

    student_forward, student_backward, teacher_forward  linear layers of the backbones
    attention           scores and weighted sums, of student (both ways) and teacher
    heads               MLPs of the projection heads, of student (both ways) and teacher
    prototypes          their last, weight-normed layers
    targets_and_losses  Sinkhorn-Knopp, cross-entropies, KoLeo's products
    """
    student_patch, teacher_patch = _patch_embed(shape, shape.student), _patch_embed(shape, shape.teacher)
    student_blocks = 2 * shape.depth * shape.block_parameters * num_tokens(shape.branch)
    teacher_blocks = 2 * shape.depth * shape.block_parameters * num_tokens(shape.teacher)

    student_attention = _attention(shape, shape.branch) + _attention_backward(shape, shape.branch)
    attention = shape.depth * (student_attention + _attention(shape, shape.teacher))

    heads = prototypes = targets_and_losses = 0
    for head, student_rows, teacher_rows, cross_entropies in _heads(shape):
        rows = 3 * student_rows + teacher_rows
        heads += 2 * rows * _mlp_parameters(head, shape.width)
        prototypes += 2 * rows * head.bottleneck_dim * head.num_prototypes
        targets_and_losses += op_flops.sinkhorn_flops(teacher_rows, head.num_prototypes, shape.sinkhorn_iterations)
        for num_students, num_pairs in cross_entropies:
            targets_and_losses += op_flops.prototype_cross_entropy_flops(num_students, num_pairs, head.num_prototypes)
            targets_and_losses += num_students * head.num_prototypes  # the backward scales the gradient
    koleo = 2 * 2 * shape.num_images * shape.group_size * shape.width
    return {
        "student_forward": student_patch + student_blocks,
        "student_backward": student_patch + 2 * student_blocks,  # pixels need no gradient
        "teacher_forward": teacher_patch + teacher_blocks,
        "attention": attention,
        "heads": heads,
        "prototypes": prototypes,
        "targets_and_losses": targets_and_losses + koleo,
    }


def recomputed_flops(shape: StepShape, checkpointing: str) -> int:
    """What the backward of a micro-batch computes a second time, by the mode of activation checkpointing."""
    if checkpointing != "full":  # selective keeps the results of products and attention
        return 0
    blocks = 2 * shape.block_parameters * num_tokens(shape.branch) + _attention(shape, shape.branch)
    return shape.depth * blocks


def _patch_embed(shape: StepShape, groups: Groups) -> int:
    num_patches = sum(count * (length - 1) for count, length in groups)
    return 2 * num_patches * 3 * shape.patch_size**2 * shape.width


def _attention(shape: StepShape, groups: Groups) -> int:
    return sum(op_flops.attention_flops(count, length, shape.width) for count, length in groups)


def _attention_backward(shape: StepShape, groups: Groups) -> int:
    return sum(op_flops.attention_backward_flops(count, length, shape.width) for count, length in groups)


def _heads(shape: StepShape) -> list[tuple[HeadConfig, int, int, list[tuple[int, int]]]]:
    """Of each head: its config, rows of student and teacher, (student rows, pairs of each) of its cross-entropies."""
    num_global = shape.num_teacher_crops
    num_local = shape.num_student_crops - num_global
    dino_losses = [(num_global, 1), (num_local, 2)]
    return [
        (shape.dino_head, shape.num_student_crops, num_global, dino_losses),
        (shape.ibot_head, shape.num_masked, shape.num_masked, [(shape.num_masked, 1)]),
    ]


def _mlp_parameters(head: HeadConfig, width: int) -> int:
    return width * head.hidden_dim + head.hidden_dim**2 + head.hidden_dim * head.bottleneck_dim
