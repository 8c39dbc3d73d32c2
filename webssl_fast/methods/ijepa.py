"""I-JEPA (Assran et al., arXiv 2301.08243): features of blocks of an image, predicted from those of its visible rest.

    loss = mean over images, target blocks and patches of  distance(predictor(context), normalised target features)

The context encoder sees K patches; an average of it over time, the target encoder, sees all. Nothing depends on other
images of a batch. As the authors' code has it, target features are layer-normalised and the distance is smooth L1
(`method.loss: l2` for the paper's squared distance).

Where this departs from them: masks have fixed counts (methods/multiblock.py says how and why), weights start as MAE's,
and there is a class token, which our vision transformer has. It takes part in attention as a register would, is not
given to the predictor and has no loss of its own; so `encoder()` has the mean of the patch tokens stand in its place.

Dimensions: B images of this rank, K context patches, S target blocks of M patches each, R = B*S*M, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast import draws, schedules
from webssl_fast.config.schema import IJepaConfig, ModelConfig, OptimConfig
from webssl_fast.errors import ConfigError
from webssl_fast.methods.base import ParameterGroup
from webssl_fast.methods.ema import ema_update
from webssl_fast.methods.losses import feature_distance
from webssl_fast.methods.multiblock import MultiBlockMasks, block_shapes, square_sides
from webssl_fast.methods.parameter_groups import vit_parameter_groups
from webssl_fast.models.embed import take_patches
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.ijepa_predictor import IJepaPredictor
from webssl_fast.models.presets import WEB_MAE, check_architecture, refuse_drop_path
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.records import Batch, CropRecipe


class Student(nn.Module):
    def __init__(self, config: IJepaConfig, model: ModelConfig):
        super().__init__()
        self.backbone = VisionTransformer(model)
        grid_side = model.image_size_px // self.backbone.patch_size
        self.predictor = IJepaPredictor(config, self.backbone.width, grid_side)


class Teacher(nn.Module):
    def __init__(self, model: ModelConfig):
        super().__init__()
        self.backbone = VisionTransformer(model)


class IJepa(nn.Module):
    name = "ijepa"
    wants_captions = False
    balanced_over_pass: str | None = None

    def __init__(
        self,
        config: IJepaConfig,
        model: ModelConfig,
        optim: OptimConfig,
        *,
        num_steps: int,
        group_size: int,
        seed: int,
    ):
        """`group_size` says nothing: each image is drawn for by itself."""
        super().__init__()
        self.config, self.optim, self.num_steps, self.seed = config, optim, num_steps, seed
        refuse_drop_path(model.drop_path_rate, self.name)
        check_architecture(model.preset, WEB_MAE, self.name)
        self.image_size_px = model.image_size_px
        self.student = Student(config, model)
        self.teacher = Teacher(model).requires_grad_(False)
        self.masks = _masks(config, self.student.predictor.grid_side)

    # ------------------------------------------------------------ what the engine asks

    def crop_recipes(self) -> list[CropRecipe]:
        config = self.config
        return [
            CropRecipe(self.image_size_px, scale=config.crop_scale, flip_probability=config.flip_probability),
        ]

    def trained_modules(self) -> dict[str, nn.Module]:
        return dict(self.student.named_children())

    def shard_units(self) -> Iterator[nn.Module]:
        for network in (self.student.backbone, self.student.predictor, self.teacher.backbone):
            yield from network.blocks
            yield network

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        networks = (self.student.backbone, self.student.predictor, self.teacher.backbone)
        return [list(network.blocks) for network in networks]

    def parameter_groups(self) -> list[ParameterGroup]:
        return vit_parameter_groups(self.student, self.student.backbone.depth, self.optim)

    def initialize(self, seed: int) -> None:
        self.student.backbone.initialize(seed, "backbone")
        self.student.predictor.initialize(seed, "predictor")
        self.teacher.backbone.initialize(seed, "backbone")  # the same key, so the same values

    def schedule_values(self, step: int) -> dict[str, float]:
        return {"ema_momentum": schedules.linear(step, *self.config.ema_momentum, self.num_steps)}

    def after_step(self, step: int) -> None:
        momentum = self.schedule_values(step)["ema_momentum"]
        ema_update(self.teacher.backbone, self.student.backbone, momentum, seed=self.seed, step=step)

    def encoder(self) -> BackboneEncoder:
        return BackboneEncoder(self.teacher.backbone, name=self.name, trained_cls_token=False)

    # ------------------------------------------------------------ host work of a batch

    def prepare(self, batch: Batch) -> None:
        """What is seen and what is predicted of each image, drawn from (seed, position)."""
        drawn = [self.masks.draw(draws.generator(self.seed, "mask", int(p))) for p in batch.positions]
        for name, indices in zip(("context_BK", "targets_BSM"), zip(*drawn, strict=True), strict=True):
            batch.host[name] = torch.from_numpy(np.stack(indices))

    # ------------------------------------------------------------ objective

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, targets_BSM = batch.crops[0][0], batch.host["targets_BSM"]
        target_RE = self.target_features(images_B3HW, targets_BSM)
        predicted_RE = self.predict_targets(images_B3HW, batch.host["context_BK"], targets_BSM)
        # How much targets differ from patch to patch: 0 where the encoder has collapsed to one answer, below 1 by far.
        scalars = {"target_deviation": target_RE.std(dim=0).mean()}
        return feature_distance(predicted_RE, target_RE, self.config.loss), scalars

    @torch.no_grad()
    def target_features(self, images_B3HW: Tensor, targets_BSM: Tensor) -> Tensor:
        """fp32 [R, E]: of the target encoder, each patch's with its own mean and variance taken out."""
        patch_tokens = self.teacher.backbone([images_B3HW])[0].patch_tokens
        target_RE = take_patches(patch_tokens, targets_BSM.flatten(1)).flatten(0, 1)
        return F.layer_norm(target_RE.float(), target_RE.shape[-1:])

    def predict_targets(self, images_B3HW: Tensor, context_BK: Tensor, targets_BSM: Tensor) -> Tensor:
        """[R, E], in the order of `targets_BSM`."""
        context = self.student.backbone([images_B3HW], visible=[context_BK])[0]
        return self.student.predictor(context.patch_tokens, context_BK, targets_BSM)


def _masks(config: IJepaConfig, side: int) -> MultiBlockMasks:
    shapes = block_shapes(side, config.target_scale, config.target_aspect)
    if not shapes:
        raise ConfigError(
            f"method.target_scale is {config.target_scale} and method.target_aspect {config.target_aspect}, but no "
            f"rectangle of patches in a grid of {side} x {side} is within both; widen one of them"
        )
    context_sides = square_sides(side, config.context_scale)
    if not context_sides:
        raise ConfigError(
            f"method.context_scale is {config.context_scale}, but no square of patches in a grid of {side} x {side} "
            "has such a share of it; raise its upper bound to 1"
        )
    masks = MultiBlockMasks(
        side, shapes, context_sides, config.num_target_blocks, num_context=int(config.context_ratio * side**2)
    )
    if not 0 < masks.num_context <= masks.max_context:
        raise ConfigError(
            f"method.context_ratio is {config.context_ratio}, which is {masks.num_context} of {side**2} patches; the "
            f"encoder must see from 1 to the {masks.max_context} that the target blocks are sure to leave"
        )
    return masks
