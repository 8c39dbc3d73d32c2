"""A step of DINOv2: student and EMA teacher over global and local crops, two heads, Sinkhorn-Knopp's targets.

What drop-path drops is not counted.

Dimensions: B images of a micro-batch, G images of a group, N tokens of a sequence, R rows, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from webssl_fast.config.schema import DinoV2Config, HeadConfig, RunConfig
from webssl_fast.models.block import Groups, num_kept_sequences
from webssl_fast.models.presets import preset
from webssl_fast.ops import flops as op_flops
from webssl_fast.plan.blocks import VisionNetwork, num_tokens, vision_network
from webssl_fast.plan.choices import FP32, MemoryChoices
from webssl_fast.plan.step import AtOnce, Moment

PARTS = (
    "student_forward",
    "student_backward",
    "teacher_forward",
    "attention",
    "heads",
    "prototypes",
    "targets_and_losses",
)


@dataclass(frozen=True)
class DinoV2Step:
    """num_masked: masked patches whose logits iBOT compares; in a plan the expected number."""

    num_images: int
    group_size: int
    student: VisionNetwork
    teacher: VisionNetwork
    num_masked: int
    dino_head: HeadConfig
    ibot_head: HeadConfig
    sinkhorn_iterations: int

    @property
    def width(self) -> int:
        return self.student.blocks.width

    @property
    def at_once(self) -> AtOnce:
        objective = "Smaller passes balance Sinkhorn-Knopp over fewer images: another objective (see config/schema.py)."
        return AtOnce("train.micro_batch_size", self.num_images, self.group_size, objective)

    @property
    def num_student_crops(self) -> int:
        return sum(count for count, _ in self.student.blocks.groups)

    @property
    def num_teacher_crops(self) -> int:
        return sum(count for count, _ in self.teacher.blocks.groups)

    @property
    def input_bytes(self) -> float:
        """Crops and drop-path's choices."""
        blocks = self.student.blocks
        kept_index = 2 * blocks.depth * num_tokens(blocks.branch) * 8 if blocks.kept is not None else 0
        return self.student.num_patches * self.student.pixel_values * FP32 + kept_index

    def flops(self) -> dict[str, int]:
        """By PARTS.

        student_forward, student_backward, teacher_forward  linear layers of the backbones
        attention           scores and weighted sums, of student (both ways) and teacher
        heads               MLPs of the projection heads, of student (both ways) and teacher
        prototypes          their last, weight-normed layers
        targets_and_losses  Sinkhorn-Knopp, cross-entropies, KoLeo's products
        """
        student, teacher = self.student.blocks, self.teacher.blocks
        heads = prototypes = targets_and_losses = 0
        for head, student_rows, teacher_rows, cross_entropies in self._heads():
            rows = 3 * student_rows + teacher_rows
            heads += 2 * rows * _mlp_parameters(head, self.width)
            prototypes += 2 * rows * head.bottleneck_dim * head.num_prototypes
            targets_and_losses += op_flops.sinkhorn_flops(teacher_rows, head.num_prototypes, self.sinkhorn_iterations)
            for num_students, num_pairs in cross_entropies:
                targets_and_losses += op_flops.prototype_cross_entropy_flops(
                    num_students, num_pairs, head.num_prototypes
                )
                targets_and_losses += num_students * head.num_prototypes  # the backward scales the gradient
        koleo = 2 * 2 * self.num_images * self.group_size * self.width
        return {
            "student_forward": self.student.forward_flops,
            "student_backward": self.student.backward_flops,
            "teacher_forward": self.teacher.forward_flops,
            "attention": student.attention_flops + student.attention_backward_flops + teacher.attention_flops,
            "heads": heads,
            "prototypes": prototypes,
            "targets_and_losses": targets_and_losses + koleo,
        }

    def recomputed_flops(self, checkpointing: str) -> int:
        return self.student.blocks.recomputed_flops(checkpointing)

    def moments(self, choices: MemoryChoices) -> Sequence[Moment]:
        """Where the student's forward has ended, every activation is alive; where the backward ends, every gradient is.
        In between, each block trades one for the other."""
        blocks = self.student.blocks
        activations = self.student.activations(choices) + self._head_activations(choices)
        features = (num_tokens(blocks.groups) + num_tokens(self.teacher.blocks.groups)) * self.width
        transient = features * choices.norm_input
        if choices.checkpointing == "full":  # the last block's backward begins by computing it again
            activations += blocks.of_one(choices)
            transient = 0
        return (
            Moment("forward_end", "backbone", False, (), activations, self._logits(choices), transient),
            Moment(
                "backward_end",
                "backbone",
                True,
                None,
                self.student.left_at_end(choices),
                transient=blocks.backward_transient(choices),
            ),
        )

    def _heads(self) -> list[tuple[HeadConfig, int, int, list[tuple[int, int]]]]:
        """Of each head: its config, rows of student and teacher, (student rows, pairs of each) of its losses."""
        num_global = self.num_teacher_crops
        num_local = self.num_student_crops - num_global
        dino_losses = [(num_global, 1), (num_local, 2)]
        return [
            (self.dino_head, self.num_student_crops, num_global, dino_losses),
            (self.ibot_head, self.num_masked, self.num_masked, [(self.num_masked, 1)]),
        ]

    def _head_activations(self, choices: MemoryChoices) -> float:
        """Inputs of a head's linear layers, of its two GELUs and of the normalisation; the normed prototypes."""
        total = 0.0
        for head, rows, _, _ in self._heads():
            total += rows * (self.width + 4 * head.hidden_dim + 2 * head.bottleneck_dim) * choices.compute
            total += head.num_prototypes * head.bottleneck_dim * choices.compute
        return total

    def _logits(self, choices: MemoryChoices) -> float:
        """Of student, teacher, and the student's gradient, which the forward of the cross-entropy computes."""
        elements = sum((2 * student + teacher) * head.num_prototypes for head, student, teacher, _ in self._heads())
        return elements * choices.compute


def dinov2_step(config: RunConfig, num_ranks: int) -> DinoV2Step:
    """Of a resolved config."""
    method, size = config.method, preset(config.model.preset)
    B, G = config.train.micro_batch_size, config.train.group_size
    assert B is not None and G is not None, "the config must be resolved first"
    assert isinstance(method, DinoV2Config)
    crops = (method.global_crops, method.local_crops)
    lengths = [1 + (group.size_px // size.patch_size) ** 2 for group in crops]
    groups: Groups = tuple((group.num * B, N) for group, N in zip(crops, lengths, strict=True))
    rate = config.model.drop_path_rate
    kept = None
    if rate > 0:
        kept = tuple(
            (num_kept_sequences(group.num * G, rate) * (B // G), N) for group, N in zip(crops, lengths, strict=True)
        )
    return DinoV2Step(
        num_images=B,
        group_size=G,
        student=vision_network(config.model, groups, kept),
        teacher=vision_network(config.model, groups[:1]),
        num_masked=round(_masked_patches(method, lengths[0] - 1, G) * (B // G)),
        dino_head=method.dino_head,
        ibot_head=method.ibot_head,
        sinkhorn_iterations=method.sinkhorn_iterations if method.target == "sinkhorn_knopp" else 1,
    )


def _masked_patches(method: DinoV2Config, num_patches: int, group_size: int) -> float:
    """Masked patches of a group, as expected: each of its masked crops draws a ratio from its own interval and rounds
    down, and no mask covers more than half of the patches. With `fixed_masked_count` the upper bound."""
    num_crops = int(method.global_crops.num * group_size * method.mask_probability)
    low, high = method.mask_ratio
    width = (high - low) / max(num_crops, 1)
    total = 0.0
    for i in range(num_crops):
        if method.fixed_masked_count:
            patches = float(int(num_patches * (low + width * (i + 1))))
        else:
            patches = max(num_patches * (low + width * (i + 0.5)) - 0.5, 0)
        total += min(patches, num_patches // 2)
    return total


def _mlp_parameters(head: HeadConfig, width: int) -> int:
    return width * head.hidden_dim + head.hidden_dim**2 + head.hidden_dim * head.bottleneck_dim
