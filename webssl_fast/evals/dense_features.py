"""Patch features of a frozen encoder as maps, at any image size.

Dimensions: B images, H rows and W columns of pixels, h rows and w columns of patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from webssl_fast.models.encoders import Encoder

# DINOv2's choice of four blocks for networks of that depth (arXiv 2304.07193, App. B; its published heads).
PUBLISHED_BLOCKS = {24: (4, 11, 17, 23)}


def spread_blocks(num_blocks: int, count: int) -> list[int]:
    """`count` blocks spread evenly over `num_blocks`, the last one always among them.

    The end of each `count`-th: [2, 5, 8, 11] of 12, [9, 19, 29, 39] of 40, as DINOv2 has them; its exception for 24 is
    PUBLISHED_BLOCKS. Raises ValueError where there are fewer blocks than that.
    """
    if not 1 <= count <= num_blocks:
        raise ValueError(f"count must lie in [1, {num_blocks}], the blocks of the encoder, got {count}")
    if count == 4 and num_blocks in PUBLISHED_BLOCKS:
        return list(PUBLISHED_BLOCKS[num_blocks])
    return [(i + 1) * num_blocks // count - 1 for i in range(count)]


@dataclass(frozen=True)
class FeatureMaps:
    """An encoder read out at `blocks`, in fp32, without gradients.

    final_norm      features pass the network's last normalisation
    autocast_dtype  of the encoder, e.g. torch.bfloat16; None: its own
    """

    encoder: Encoder
    blocks: Sequence[int]
    final_norm: bool
    autocast_dtype: torch.dtype | None = None

    def __call__(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [B, D * blocks, h, w] and class tokens [B, D * blocks] of images of any size.

        Images are padded with zeros on all sides to multiples of the patch size, as DINOv2 does it.
        """
        images = centre_padded(images_B3HW, self.encoder.patch_size)
        autocast = torch.autocast(images.device.type, self.autocast_dtype) if self.autocast_dtype else nullcontext()
        with torch.no_grad(), autocast:
            features = self.encoder.block_features(images, self.blocks, final_norm=self.final_norm)
        h, w = (side // self.encoder.patch_size for side in images.shape[-2:])
        patches_BND = torch.cat([f.patch_tokens.float() for f in features], dim=2)
        cls_BD = torch.cat([f.cls_token.float() for f in features], dim=1)
        return patches_BND.mT.unflatten(2, (h, w)), cls_BD


def centre_padded(images: Tensor, multiple: int) -> Tensor:
    """[..., H, W] with zeros around it, up to the next multiples; of an odd number, one more goes to the end."""
    padding: list[int] = []  # left, right, top, bottom
    for side in (images.shape[-1], images.shape[-2]):
        missing = -side % multiple
        padding += [missing // 2, missing - missing // 2]
    return F.pad(images, padding)
