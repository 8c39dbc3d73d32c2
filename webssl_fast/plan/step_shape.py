"""What a training step is made of, as counts: the one description from which FLOPs and memory are computed.

Dimensions: B images of a micro-batch, G images of a group, V crops, N tokens of a sequence, T packed tokens, D width, M
masked patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from webssl_fast.config.schema import DinoV2Config, HeadConfig, RunConfig
from webssl_fast.models.block import Groups, num_kept_sequences
from webssl_fast.models.presets import preset, swiglu_hidden_dim


@dataclass(frozen=True)
class StepShape:
    """One micro-batch of one rank under DINOv2's objective.

    student     ((sequences, tokens), ...) of the student's packed pass
    kept        the same for a residual branch, after drop-path; None: no drop-path
    teacher     the same for the teacher's pass
    num_masked  masked patches whose logits iBOT compares; in a plan the expected number
    """

    num_images: int
    group_size: int
    patch_size: int
    width: int
    hidden_dim: int
    depth: int
    num_heads: int
    student: Groups
    kept: Groups | None
    teacher: Groups
    num_masked: int
    dino_head: HeadConfig
    ibot_head: HeadConfig
    sinkhorn_iterations: int

    @property
    def branch(self) -> Groups:
        """The sequences that a residual branch of the student computes."""
        return self.student if self.kept is None else self.kept

    @property
    def num_student_crops(self) -> int:
        return sum(count for count, _ in self.student)

    @property
    def num_teacher_crops(self) -> int:
        return sum(count for count, _ in self.teacher)

    @property
    def block_parameters(self) -> int:
        """Weights of a block's linear layers: the qkv and the output projection, w1, w2 and w3."""
        return 4 * self.width**2 + 3 * self.width * self.hidden_dim


def num_tokens(groups: Groups) -> int:
    return sum(count * length for count, length in groups)


def step_shape(config: RunConfig) -> StepShape:
    """Of a resolved config (micro_batch_size and group_size filled in)."""
    method, size = config.method, preset(config.model.preset)
    B, G = config.train.micro_batch_size, config.train.group_size
    assert B is not None and G is not None, "the config must be resolved first"
    assert isinstance(method, DinoV2Config), f"no plan of {method.name}"
    crops = (method.global_crops, method.local_crops)
    lengths = [1 + (group.size_px // size.patch_size) ** 2 for group in crops]
    rate = config.model.drop_path_rate
    kept = None
    if rate > 0:
        kept = tuple(
            (num_kept_sequences(group.num * G, rate) * (B // G), N) for group, N in zip(crops, lengths, strict=True)
        )
    return StepShape(
        num_images=B,
        group_size=G,
        patch_size=size.patch_size,
        width=size.width,
        hidden_dim=swiglu_hidden_dim(size.width, config.model.swiglu_pad_multiple),
        depth=size.depth,
        num_heads=size.num_heads,
        student=tuple((group.num * B, N) for group, N in zip(crops, lengths, strict=True)),
        kept=kept,
        teacher=((method.global_crops.num * B, lengths[0]),),
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
