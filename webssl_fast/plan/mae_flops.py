"""FLOPs of a training step of MAE, counted as plan/flops.py counts those of DINOv2.

Dimensions: N tokens of an image.
"""

from __future__ import annotations

from webssl_fast.config.schema import MaeConfig, ModelConfig
from webssl_fast.models.presets import preset
from webssl_fast.ops.flops import attention_backward_flops, attention_flops


def mae_flops_per_image(method: MaeConfig, model: ModelConfig) -> int:
    """Forward and backward of encoder (visible patches), decoder (all) and the masked patches' pixels."""
    size = preset(model.preset)
    num_patches = (model.image_size_px // size.patch_size) ** 2
    num_visible = int(num_patches * (1 - method.mask_ratio))
    patch_values, width = 3 * size.patch_size**2, method.decoder_width
    encoder = size.depth * _block_flops(1 + num_visible, size.width)
    decoder = method.decoder_depth * _block_flops(1 + num_patches, width)
    embed = 2 * num_visible * patch_values * size.width
    between = 2 * (1 + num_visible) * size.width * width
    to_pixels = 2 * (num_patches - num_visible) * width * patch_values
    return encoder + decoder + 2 * embed + 3 * (between + to_pixels)  # pixels need no gradient


def _block_flops(length: int, width: int) -> int:
    """Of one image's pass through a block with an MLP of 4 x width, both ways."""
    linear = 2 * length * 12 * width**2
    return 3 * linear + attention_flops(1, length, width) + attention_backward_flops(1, length, width)
