"""DINOv2 (arXiv 2304.07193), the objective of Web-DINO (arXiv 2504.01017).

    loss = DINO over all (student crop, teacher crop) pairs + iBOT on masked patches + 0.1 * KoLeo of each global view

Dimensions: B images of this rank, V crops, G images of a group, N patches, M masked patches, R rows, K prototypes, D
width. Crops are stacked crop-major: row v*B + b is crop v of image b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from webssl_fast import draws, schedules
from webssl_fast.config.schema import CropsConfig, DinoV2Config, ModelConfig, OptimConfig
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.methods.base import ParameterGroup
from webssl_fast.methods.ema import copy_parameters, ema_update
from webssl_fast.methods.losses import koleo
from webssl_fast.methods.masking import group_masks, max_masked_patches
from webssl_fast.methods.parameter_groups import vit_parameter_groups
from webssl_fast.methods.prototype_targets import PrototypeTargets, Targets
from webssl_fast.models.block import KeptSequences, num_kept_sequences
from webssl_fast.models.checkpoint_layouts import HEADS, Weights
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.heads import PrototypeHead
from webssl_fast.models.init import assign
from webssl_fast.models.presets import WEB_DINO, check_architecture
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from webssl_fast.records import Batch, CropRecipe

BLUR = {"as_trained": (0.0, 0.9, 0.5), "as_written": (1.0, 0.1, 0.5)}  # global 1, global 2, local


class StudentTeacherNetworks(nn.Module):
    def __init__(self, config: DinoV2Config, model: ModelConfig):
        super().__init__()
        self.backbone = VisionTransformer(model)
        self.dino_head = PrototypeHead(self.backbone.width, config.dino_head)
        self.ibot_head = PrototypeHead(self.backbone.width, config.ibot_head)


class DinoV2(nn.Module):
    name = "dinov2"
    balanced_over_pass: str | None = "Sinkhorn-Knopp balances the prototypes"
    wants_captions = False

    def __init__(
        self,
        config: DinoV2Config,
        model: ModelConfig,
        optim: OptimConfig,
        *,
        num_steps: int,
        group_size: int,
        seed: int,
    ):
        super().__init__()
        self.config, self.optim = config, optim
        self.num_steps, self.group_size, self.seed = num_steps, group_size, seed
        self.drop_path_rate = model.drop_path_rate
        check_architecture(model.preset, WEB_DINO, self.name)
        self.student = StudentTeacherNetworks(config, model)
        self.teacher = StudentTeacherNetworks(config, replace_drop_path(model)).requires_grad_(False)
        self.dino_targets = PrototypeTargets(config, config.dino_head.num_prototypes)
        self.ibot_targets = PrototypeTargets(config, config.ibot_head.num_prototypes)

        backbone = self.student.backbone
        self.global_grid = _patch_grid("method.global_crops", config.global_crops, backbone.patch_size)
        self.local_grid = _patch_grid("method.local_crops", config.local_crops, backbone.patch_size)
        if config.global_crops.num != 2:
            raise ConfigError(
                f"method.global_crops.num must be 2 (the objective pairs two views), got {config.global_crops.num}"
            )
        if config.koleo_weight > 0 and group_size < 2:
            raise ConfigError(
                "train.group_size is 1, but KoLeo needs neighbours: raise the batch or set method.koleo_weight=0"
            )

    # ------------------------------------------------------------ what the engine asks

    def crop_recipes(self) -> list[CropRecipe]:
        blur = BLUR[self.config.blur]
        global_crops, local_crops = self.config.global_crops, self.config.local_crops
        first = _recipe(global_crops, blur[0])
        second = replace(_recipe(global_crops, blur[1]), solarize_probability=self.config.solarize_probability)
        return [first, second] + [_recipe(local_crops, blur[2])] * local_crops.num

    def trained_modules(self) -> dict[str, nn.Module]:
        return dict(self.student.named_children())

    def shard_units(self) -> Iterator[nn.Module]:
        for networks in (self.student, self.teacher):
            yield from networks.backbone.blocks
            yield from networks.children()

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        return [list(networks.backbone.blocks) for networks in (self.student, self.teacher)]

    def parameter_groups(self) -> list[ParameterGroup]:
        return vit_parameter_groups(
            self.student,
            self.student.backbone.depth,
            self.optim,
            last_layer_frozen_steps=self.config.freeze_last_layer_steps,
        )

    def initialize(self, seed: int) -> None:
        for name, module in self.student.named_children():
            module.initialize(seed, name)
        copy_parameters(self.teacher, self.student)
        self.dino_targets.reset()
        self.ibot_targets.reset()

    def start_from(self, weights: Weights) -> None:
        """A published teacher becomes teacher and student alike; heads that it comes without stay as they are."""
        config, model = self.config, self.student.backbone.config
        wanted = {"model.preset": model.preset, "model.image_size_px": model.image_size_px}
        found = {"model.preset": weights.preset, "model.image_size_px": weights.image_size_px}
        if weights.heads:
            for head in HEADS:
                for key, value in weights.head_config(head).model_dump().items():
                    found[f"method.{head}.{key}"] = value
                    wanted[f"method.{head}.{key}"] = getattr(getattr(config, head), key)
        changes = [f"{key}={value} (now {wanted[key]})" for key, value in found.items() if value != wanted[key]]
        if changes:
            raise UserError(f"{weights.source} is of other sizes than this run; set {', '.join(changes)}")
        for networks in (self.teacher, self.student):
            networks.backbone.assign_unpadded(weights.backbone)
            for name, parameter in networks.named_parameters():
                if name in weights.heads:
                    assign(parameter, weights.heads[name])

    def schedule_values(self, step: int) -> dict[str, float]:
        c = self.config
        return {
            "teacher_temperature": schedules.linear(step, *c.teacher_temperature, c.teacher_temperature_warmup_steps),
            "ema_momentum": schedules.cosine(step, *c.ema_momentum, self.num_steps),
        }

    def encoder(self) -> BackboneEncoder:
        return BackboneEncoder(self.teacher.backbone, name=self.name)

    def after_step(self, step: int) -> None:
        momentum = self.schedule_values(step)["ema_momentum"]
        ema_update(self.teacher, self.student, momentum, seed=self.seed, step=step)

    # ------------------------------------------------------------ host work of a batch

    def prepare(self, batch: Batch) -> None:
        """Masks and drop-path choices, drawn for each group of `group_size` images by its place in the global order."""
        B, G = batch.num_images, self.group_size
        if B % G or batch.positions[0] % G:
            raise ValueError(
                f"a batch of {B} images from position {batch.positions[0]} does not fall into groups of {G}"
            )
        group_ids = [int(p) // G for p in batch.positions[::G]]

        masks_VBN = np.concatenate(
            [
                group_masks(
                    draws.generator(self.seed, "mask", group),
                    2 * G,
                    self.global_grid,
                    self.config.mask_probability,
                    self.config.mask_ratio,
                ).reshape(2, G, -1)
                for group in group_ids
            ],
            axis=1,
        )
        mask_RN = masks_VBN.reshape(2 * B, -1)
        rows, _ = np.nonzero(mask_RN)
        index_M = np.flatnonzero(mask_RN)
        # Each masked crop counts alike, whatever its number of masked patches; crops without a mask count in the mean.
        weights_M = (1.0 / mask_RN.sum(axis=1)[rows] / (2 * B)).astype(np.float32)
        if self.config.fixed_masked_count:
            num_padded = self._max_masked(len(group_ids)) - len(index_M)
            batch.host["masked_is_real_M"] = torch.from_numpy(np.arange(len(index_M) + num_padded) < len(index_M))
            index_M, weights_M = np.pad(index_M, (0, num_padded)), np.pad(weights_M, (0, num_padded))
        batch.host["mask_RN"] = torch.from_numpy(mask_RN)
        batch.host["masked_index_M"] = torch.from_numpy(index_M)
        batch.host["masked_weight_M"] = torch.from_numpy(weights_M)
        if self.drop_path_rate > 0:
            batch.host["kept_tokens"] = torch.from_numpy(self._draw_kept_tokens(B, group_ids))

    def _draw_kept_tokens(self, B: int, group_ids: list[int]) -> np.ndarray:
        """Indices of the packed tokens that each residual branch computes: int64 [depth, 2, kept tokens]."""
        depth, G = self.student.backbone.depth, self.group_size
        crop_groups = self._crop_groups(B)
        chosen: list[list[np.ndarray]] = [
            [] for _ in crop_groups
        ]  # for each group of crops: [depth, 2, kept sequences] of each group of images
        for i, group in enumerate(group_ids):
            rng = draws.generator(self.seed, "drop_path", group)
            for out, (num_crops, _) in zip(chosen, crop_groups, strict=True):
                order = rng.random((depth, 2, num_crops * G)).argsort(axis=-1)
                crop, image = np.divmod(np.sort(order[..., : self._num_kept(num_crops)], axis=-1), G)
                out.append(crop * B + i * G + image)
        tokens, start = [], 0
        for parts, (num_crops, length) in zip(chosen, crop_groups, strict=True):
            sequences = np.sort(np.concatenate(parts, axis=-1), axis=-1)
            tokens.append((start + sequences[..., None] * length + np.arange(length)).reshape(depth, 2, -1))
            start += num_crops * B * length
        return np.concatenate(tokens, axis=-1)

    def _max_masked(self, num_groups: int) -> int:
        config = self.config
        most = max_masked_patches(2 * self.group_size, self.global_grid, config.mask_probability, config.mask_ratio)
        return num_groups * most

    def _crop_groups(self, B: int) -> list[tuple[int, int]]:
        """(crops of an image, tokens of a crop) of the packed student pass."""
        return [
            (2, 1 + self.global_grid[0] * self.global_grid[1]),
            (self.config.local_crops.num, 1 + self.local_grid[0] * self.local_grid[1]),
        ]

    def _num_kept(self, num_crops: int) -> int:
        """Sequences that stay of one group of images."""
        return num_kept_sequences(num_crops * self.group_size, self.drop_path_rate)

    def _kept(self, batch: Batch) -> list[tuple[KeptSequences, KeptSequences]] | None:
        if self.drop_path_rate == 0:
            return None
        tokens = batch.host["kept_tokens"]
        num_groups = batch.num_images // self.group_size
        groups, scales = [], []
        for num_crops, length in self._crop_groups(batch.num_images):
            num_kept = self._num_kept(num_crops)
            groups.append((num_kept * num_groups, length))
            size, scale = (num_kept * num_groups * length, 1), num_crops * self.group_size / num_kept
            scales.append(torch.full(size, scale, device=tokens.device))
        scale_T1 = torch.cat(scales)
        kept = [[KeptSequences(index_T, tuple(groups), scale_T1) for index_T in branches] for branches in tokens]
        return [(attn, mlp) for attn, mlp in kept]

    # ------------------------------------------------------------ the objective

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, B = self.config, batch.num_images
        global_crops, local_crops = (crops.flatten(0, 1) for crops in batch.crops)
        masked_index_M = batch.host["masked_index_M"]
        temperature = self.schedule_values(step)["teacher_temperature"]

        with torch.no_grad():
            teacher = self.teacher.backbone([global_crops])[0]
            cls_targets = self.dino_targets(self.teacher.dino_head(teacher.cls_token), temperature)
            masked_MD = teacher.patch_tokens.flatten(0, 1)[masked_index_M]
            patch_targets = self.ibot_targets(
                self.teacher.ibot_head(masked_MD), temperature, batch.host.get("masked_is_real_M")
            )

        global_, local = self.student.backbone(
            [global_crops, local_crops], [batch.host["mask_RN"], None], self._kept(batch)
        )
        cls_logits = self.student.dino_head(torch.cat([global_.cls_token, local.cls_token]))
        global_logits, local_logits = cls_logits.split([2 * B, cls_logits.shape[0] - 2 * B])
        patch_logits = self.student.ibot_head(global_.patch_tokens.flatten(0, 1)[masked_index_M])

        def cross_entropy(logits_SK: Tensor, targets: Targets, target_rows_SM: Tensor, weights_SM: Tensor) -> Tensor:
            return prototype_cross_entropy(
                logits_SK,
                targets.logits_RK,
                targets.row_potential_R,
                targets.prototype_potential_K,
                target_rows_SM,
                weights_SM,
                student_temperature=config.student_temperature,
                teacher_temperature=temperature,
            )

        # The mean over all pairs of a student and a teacher crop that are not the same crop.
        num_local = config.local_crops.num
        pair_weight = 1 / ((2 + 2 * num_local) * B)
        device = cls_logits.device
        row_B = torch.arange(B, device=device)
        other_view = torch.cat([row_B + B, row_B])[:, None]
        both_views = torch.stack([row_B, row_B + B], dim=1).repeat(num_local, 1)
        losses = {
            "dino_global": cross_entropy(
                global_logits, cls_targets, other_view, torch.full_like(other_view, pair_weight, dtype=torch.float32)
            ),
            "dino_local": cross_entropy(
                local_logits, cls_targets, both_views, torch.full_like(both_views, pair_weight, dtype=torch.float32)
            ),
            "ibot": cross_entropy(
                patch_logits,
                patch_targets,
                torch.arange(len(masked_index_M), device=device)[:, None],
                batch.host["masked_weight_M"][:, None],
            ),
        }
        loss = config.dino_weight * (losses["dino_global"] + losses["dino_local"]) + config.ibot_weight * losses["ibot"]
        if config.koleo_weight > 0:
            views = global_.cls_token.view(2, B // self.group_size, self.group_size, -1)
            losses["koleo"] = koleo(views[0]) + koleo(views[1])
            loss = loss + config.koleo_weight * losses["koleo"]
        return loss, {name: value.detach() for name, value in losses.items()}


def replace_drop_path(model: ModelConfig) -> ModelConfig:
    """The teacher sees every sequence."""
    return model.model_copy(update={"drop_path_rate": 0.0})


def _recipe(crops: CropsConfig, blur_probability: float) -> CropRecipe:
    fields = crops.model_dump(exclude={"num"})
    return CropRecipe(**fields, blur_probability=blur_probability)


def _patch_grid(name: str, crops: CropsConfig, patch_size: int) -> tuple[int, int]:
    side, rest = divmod(crops.size_px, patch_size)
    if rest:
        raise ConfigError(
            f"{name}.size_px is {crops.size_px}, which is not a multiple of the patch size {patch_size}; "
            f"{side * patch_size or patch_size} and {(side + 1) * patch_size} are"
        )
    return side, side
