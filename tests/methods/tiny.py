"""A DINOv2 small enough for tests, and batches of noise for it."""

import numpy as np
import torch

from webssl_fast.config.schema import CropsConfig, DinoV2Config, HeadConfig, ModelConfig, OptimConfig
from webssl_fast.methods.dinov2 import DinoV2
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


def noise_batch(method: DinoV2, first_position=0, num_images=4, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    positions = np.arange(first_position, first_position + num_images)
    crops = [torch.randn(2, num_images, 3, 56, 56, generator=g), torch.randn(3, num_images, 3, 28, 28, generator=g)]
    batch = Batch(positions, positions.copy(), crops, torch.full((num_images,), -1))
    method.prepare(batch)
    return batch
