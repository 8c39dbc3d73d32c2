"""FLOPs of a training step of MAE, counted as plan/flops.py counts those of DINOv2.

Dimensions: N tokens of an image.
"""

from __future__ import annotations

from webssl_fast.config.schema import MaeConfig, ModelConfig
from webssl_fast.models.presets import preset
from webssl_fast.ops.flops import attention_backward_flops, attention_flops


def mae_flops_per_image(method: MaeConfig, model: ModelConfig, num_encoded: int | None = None) -> int:
    """Forward and backward of encoder, decoder (all patches) and the masked patches' pixels.

    num_encoded  patches that the encoder computes; None: those that MAE leaves visible
    """
    size = preset(model.preset)
    num_patches = (model.image_size_px // size.patch_size) ** 2
    num_visible = int(num_patches * (1 - method.mask_ratio))
    width = method.decoder_width
    decoder = method.decoder_depth * _block_flops(1 + num_patches, width)
    between = 2 * (1 + num_visible) * size.width * width
    to_pixels = 2 * (num_patches - num_visible) * width * 3 * size.patch_size**2
    return encoder_flops_per_image(model, num_encoded or num_visible) + decoder + 3 * (between + to_pixels)


def encoder_flops_per_image(model: ModelConfig, num_patches: int) -> int:
    """Forward and backward of so many patches and the class token."""
    size = preset(model.preset)
    embed = 2 * num_patches * 3 * size.patch_size**2 * size.width
    return 2 * embed + size.depth * _block_flops(1 + num_patches, size.width)  # pixels need no gradient


def _block_flops(length: int, width: int) -> int:
    """Of one image's pass through a block with an MLP of 4 x width, both ways."""
    linear = 2 * length * 12 * width**2
    return 3 * linear + attention_flops(1, length, width) + attention_backward_flops(1, length, width)
