"""Masked autoencoders (He et al., arXiv 2111.06377), the objective of Web-MAE (arXiv 2504.01017).

Most patches of an image are left out; the encoder sees the others alone, and a small decoder predicts the pixels of
what was left out. Nothing depends on other images of a batch.

Dimensions: B images of this rank, N patches, V visible and M masked ones, R = B*M, P pixel values of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from webssl_fast import draws
from webssl_fast.config.schema import MaeConfig, ModelConfig, OptimConfig
from webssl_fast.errors import ConfigError
from webssl_fast.methods.base import ParameterGroup
from webssl_fast.methods.losses import PIXEL_EPS, masked_pixel_loss
from webssl_fast.methods.parameter_groups import vit_parameter_groups
from webssl_fast.models.embed import patchify, take_patches, unpatchify
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.mae_decoder import MaeDecoder
from webssl_fast.models.presets import WEB_MAE, check_architecture, refuse_drop_path
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.records import Batch, CropRecipe, Features


class Mae(nn.Module):
    name = "mae"
    wants_captions = False
    balanced_over_pass: str | None = None

    def __init__(
        self,
        config: MaeConfig,
        model: ModelConfig,
        optim: OptimConfig,
        *,
        num_steps: int,
        group_size: int,
        seed: int,
    ):
        """`num_steps` and `group_size` say nothing: there are no schedules, and each image is drawn for by itself."""
        super().__init__()
        self.config, self.optim, self.seed = config, optim, seed
        refuse_drop_path(model.drop_path_rate, self.name)
        check_architecture(model.preset, WEB_MAE, self.name)
        self.image_size_px = model.image_size_px
        self.backbone = VisionTransformer(model)
        patch_size = self.backbone.patch_size
        side = model.image_size_px // patch_size
        self.num_patches = side**2
        self.num_visible = int(self.num_patches * (1 - config.mask_ratio))
        if not 0 < self.num_visible < self.num_patches:
            raise ConfigError(
                f"method.mask_ratio is {config.mask_ratio}, which leaves {self.num_visible} of {self.num_patches} "
                "patches to the encoder; it must see one at least, and not all"
            )
        self.decoder = MaeDecoder(config, self.backbone.width, side, patch_size)

    # ------------------------------------------------------------ what the engine asks

    def crop_recipes(self) -> list[CropRecipe]:
        config = self.config
        return [
            CropRecipe(self.image_size_px, scale=config.crop_scale, flip_probability=config.flip_probability),
        ]

    def trained_modules(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    def shard_units(self) -> Iterator[nn.Module]:
        for network in (self.backbone, self.decoder):
            yield from network.blocks
            yield network

    def block_sequences(self) -> list[Sequence[nn.Module]]:
        return [list(self.backbone.blocks), list(self.decoder.blocks)]

    def parameter_groups(self) -> list[ParameterGroup]:
        return vit_parameter_groups(self, self.backbone.depth, self.optim)

    def initialize(self, seed: int) -> None:
        self.backbone.initialize(seed, "backbone")
        self.decoder.initialize(seed, "decoder")

    def schedule_values(self, step: int) -> dict[str, float]:
        return {}

    def after_step(self, step: int) -> None:
        pass

    def encoder(self) -> BackboneEncoder:
        return BackboneEncoder(self.backbone, name=self.name)

    # ------------------------------------------------------------ host work of a batch

    def prepare(self, batch: Batch) -> None:
        """Which patches each image keeps, drawn from (seed, position)."""
        batch.host["visible_BV"], batch.host["masked_BM"] = self._draw_masks(batch.positions)

    def _draw_masks(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Visible [B, V] and masked [B, M] patches of the images at these positions, in ascending order."""
        visible_BN = np.zeros((len(positions), self.num_patches), dtype=bool)
        for row_N, position in zip(visible_BN, positions, strict=True):
            rng = draws.generator(self.seed, "mask", int(position))
            row_N[rng.permutation(self.num_patches)[: self.num_visible]] = True
        visible, masked = (
            torch.from_numpy(np.nonzero(chosen_BN)[1].reshape(len(positions), -1))
            for chosen_BN in (visible_BN, ~visible_BN)
        )
        return visible, masked

    # ------------------------------------------------------------ objective

    def training_step(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images_B3HW, masked_BM = batch.crops[0][0], batch.host["masked_BM"]
        prediction_RP = self.predict_masked(images_B3HW, batch.host["visible_BV"], masked_BM)
        pixels_BMP = take_patches(patchify(images_B3HW, self.backbone.patch_size), masked_BM)
        return masked_pixel_loss(prediction_RP, pixels_BMP.flatten(0, 1), normalize=self.config.normalize_pixels), {}

    def predict_masked(self, images_B3HW: Tensor, visible_BV: Tensor, masked_BM: Tensor) -> Tensor:
        """Pixels [B*M, P] of the masked patches, image by image, as the loss compares them."""
        return self.decoder(self._encode(images_B3HW, visible_BV), visible_BV, masked_BM)

    @torch.no_grad()
    def reconstruct(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """As `Reconstructs` says, under the masks of the first positions. Where the loss compares normalised pixels,
        predictions are given the true mean and variance of each patch, without which they have no brightness."""
        p, device = self.backbone.patch_size, images_B3HW.device
        visible_BV, masked_BM = (t.to(device) for t in self._draw_masks(np.arange(len(images_B3HW))))
        patches_BNP = patchify(images_B3HW, p)
        index_BMP = masked_BM[..., None].expand(-1, -1, patches_BNP.shape[-1])
        predicted_BMP = self.predict_masked(images_B3HW, visible_BV, masked_BM).float().view(index_BMP.shape)
        if self.config.normalize_pixels:
            variance, mean = torch.var_mean(patches_BNP.gather(1, index_BMP), dim=-1, keepdim=True)
            predicted_BMP = predicted_BMP * (variance + PIXEL_EPS).sqrt() + mean
        seen_BNP = patches_BNP.scatter(1, index_BMP, 0.0)
        return unpatchify(seen_BNP, p), unpatchify(patches_BNP.scatter(1, index_BMP, predicted_BMP), p)

    def _encode(self, images_B3HW: Tensor, visible_BV: Tensor) -> Features:
        return self.backbone([images_B3HW], visible=[visible_BV])[0]
