"""Frozen encoders as evaluations see them: one protocol, whoever made the network.

Dimensions: B images, H height and W width in pixels, N patches, D width.

`recipes/encoder_source.py` makes one from whatever a user names: an own run or checkpoint, an official Web-SSL file, a
Hugging Face folder or hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from webssl_fast.models.checkpoint_layouts import Weights, backbone_config
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.records import Features, Preprocessing

WEB_SSL_PREPROCESSING = Preprocessing(resize_px=256, crop_px=224)  # as the authors evaluate; other sizes by `at`

ClsSource = Literal["cls_token", "pooled", "patch_mean"]


@runtime_checkable
class Encoder(Protocol):
    """An `nn.Module`, in eval mode. Gradients and autocast are the caller's business.

    name           what tables and caches call it
    image_size_px  side of the images that it was trained on last
    cls_source     what `Features.cls_token` holds: "cls_token"; for networks that have none, or none that was trained,
                   "pooled" (the network's own pooling of its last block after the final norm; the patch mean of any
                   other block, or without the norm) or "patch_mean"
    preprocessing  of images at image_size_px; `preprocessing.at(px)` for another size
    """

    name: str
    patch_size: int
    width: int
    num_blocks: int
    image_size_px: int
    cls_source: ClsSource
    preprocessing: Preprocessing

    def __call__(self, images_B3HW: Tensor) -> Features:
        """Features of [B, D] and [B, N, D] after the last block and the final norm.

        H and W: any multiples of the patch size P (ValueError otherwise), or both image_size_px, whose edge beyond the
        last whole patch is then left out (SigLIP has 384 pixels at P = 14): N is (H // P) * (W // P). Positions are
        interpolated as the network's authors do it.
        """
        ...

    def block_features(self, images_B3HW: Tensor, blocks: Sequence[int], *, final_norm: bool = True) -> list[Features]:
        """Features after each of `blocks` (0 the first, -1 the last), in that order, from one pass.

        final_norm  through the network's last normalisation, whichever block they come from
        Raises ValueError for a block that the network does not have.
        """
        ...


class BackboneEncoder(nn.Module):
    """A VisionTransformer of ours as an `Encoder`."""

    def __init__(self, backbone: VisionTransformer, name: str, *, trained_cls_token: bool = True):
        """`trained_cls_token` False: the mean of the patch tokens stands in the class token's place."""
        super().__init__()
        self.backbone, self.name, self.trained_cls_token = backbone, name, trained_cls_token
        self.cls_source: ClsSource = "cls_token" if trained_cls_token else "patch_mean"
        self.patch_size, self.width, self.num_blocks = backbone.patch_size, backbone.width, backbone.depth
        self.image_size_px = backbone.config.image_size_px
        self.preprocessing = WEB_SSL_PREPROCESSING.at(self.image_size_px)

    def forward(self, images_B3HW: Tensor) -> Features:
        return self._stand_in(self.backbone([images_B3HW])[0])

    @classmethod
    def from_weights(cls, weights: Weights) -> BackboneEncoder:
        """Of published weights, on the CPU in fp32; tensors that are fp32 already are shared, not copied."""
        with torch.device("meta"):
            backbone = VisionTransformer(backbone_config(weights.preset, weights.image_size_px))
        backbone.load_state_dict({name: tensor.float() for name, tensor in weights.backbone.items()}, assign=True)
        return cls(backbone, Path(weights.source).name)

    def block_features(self, images_B3HW: Tensor, blocks: Sequence[int], *, final_norm: bool = True) -> list[Features]:
        blocks = block_indices(blocks, self.num_blocks)
        of_blocks = self.backbone.block_features(images_B3HW, blocks, final_norm=final_norm)
        return [self._stand_in(features) for features in of_blocks]

    def _stand_in(self, features: Features) -> Features:
        if self.trained_cls_token:
            return features
        return Features(features.patch_tokens.mean(dim=1), features.patch_tokens)


def block_indices(blocks: Sequence[int], num_blocks: int) -> list[int]:
    """Blocks counted from either end, as numbers from 0. Raises ValueError where there is no such block, or none."""
    missing = [block for block in blocks if not -num_blocks <= block < num_blocks]
    if missing or not blocks:
        raise ValueError(
            f"blocks: got {list(blocks)}, allowed are one or more of 0 to {num_blocks - 1}, or -1 to -{num_blocks} "
            "from the end"
        )
    return [block % num_blocks for block in blocks]


def compile_encoder(encoder: Encoder, backend: str | Callable = "inductor") -> None:
    """Has torch.compile speed an encoder up, in place: one of ours block by block, another network as a whole."""
    assert isinstance(encoder, nn.Module)
    for module in encoder.backbone.blocks if isinstance(encoder, BackboneEncoder) else encoder.children():
        module.compile(backend=backend)
