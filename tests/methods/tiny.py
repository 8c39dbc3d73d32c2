"""Methods small enough for tests, and batches of noise for them."""

from itertools import groupby

import numpy as np
import torch

from webssl_fast.config.schema import CropsConfig, DinoV2Config, HeadConfig, MaeConfig, ModelConfig, OptimConfig
from webssl_fast.methods.base import Method
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.methods.mae import Mae
from webssl_fast.records import Batch


def tiny_method(*, drop_path_rate=0.0, group_size=4, seed=0, num_steps=100, init=True, **overrides) -> DinoV2:
    head = HeadConfig(hidden_dim=32, bottleneck_dim=16, num_prototypes=48)
    config = DinoV2Config(
        **{
            "global_crops": CropsConfig(num=2, size_px=56, scale=(0.32, 1.0)),
            "local_crops": CropsConfig(num=3, size_px=28, scale=(0.05, 0.32)),
            "dino_head": head,
            "ibot_head": head,
            **overrides,
        }
    )
    model = ModelConfig(
        preset="vit_nano_patch14", image_size_px=56, drop_path_rate=drop_path_rate, layer_scale_init=0.5
    )
    method = DinoV2(config, model, OptimConfig(), num_steps=num_steps, group_size=group_size, seed=seed)
    if init:
        method.initialize(seed)
    return method


def tiny_mae(
    *, seed=0, init=True, drop_path_rate=0.0, layerwise_decay=1.0, preset="vit_mae_nano_patch14", **overrides
) -> Mae:
    config = MaeConfig(**{"decoder_width": 32, "decoder_depth": 2, "decoder_num_heads": 2, **overrides})
    model = ModelConfig(preset=preset, image_size_px=56, drop_path_rate=drop_path_rate)
    optim = OptimConfig(layerwise_decay=layerwise_decay)
    method = Mae(config, model, optim, num_steps=100, group_size=1, seed=seed)
    if init:
        method.initialize(seed)
    return method


def crop_groups(method: Method) -> list[tuple[int, int]]:
    """(crops of an image, pixels of a side) of each group."""
    return [(len(list(group)), size_px) for size_px, group in groupby(r.size_px for r in method.crop_recipes())]


def noise_batch(method: Method, first_position=0, num_images=4, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    positions = np.arange(first_position, first_position + num_images)
    crops = [torch.randn(num, num_images, 3, size, size, generator=g) for num, size in crop_groups(method)]
    batch = Batch(positions, positions.copy(), crops, torch.full((num_images,), -1))
    method.prepare(batch)
    return batch
