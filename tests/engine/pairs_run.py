"""CLIP and SigLIP on several ranks: gradients of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from tests.engine.dinov2_run import TRAIN
from tests.methods.tiny import noise_pairs, tiny_pairs_method
from webssl_fast.config.schema import TrainConfig
from webssl_fast.engine import sharding
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods.image_text import ImageTextMethod


def made(name: str, distributed: Distributed, config: TrainConfig, method_settings: dict[str, Any]) -> ImageTextMethod:
    with torch.device("meta"):
        method = tiny_pairs_method(name, init=False, **method_settings)
    materialize(method, 0, distributed, config)
    return method


def gradients_of_each(
    distributed: Distributed, names: Sequence[str], all_settings: Sequence[dict[str, Any]]
) -> dict[str, list[tuple[float, dict[str, np.ndarray]]]]:
    """By name, those with each of the settings."""
    return {name: [gradients(distributed, name, settings) for settings in all_settings] for name in names}


def gradients(
    distributed: Distributed,
    name: str,
    method_settings: dict[str, Any],
    train_settings: dict[str, Any] | None = None,
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and whole gradients of the joint batch of 8 pairs, of which this rank has its share."""
    config = TrainConfig(**{**TRAIN, **(train_settings or {})})
    method = made(name, distributed, config, method_settings)
    share = 8 // distributed.world_size
    loss, _ = method.training_step(noise_pairs(method, share * distributed.rank, share), 0)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    # Arrays, since a tensor would be shared with this process, which may have ended when it is read.
    whole = {n: (g.full_tensor() if isinstance(g, DTensor) else g).numpy() for n, g in grads.items()}
    mean_loss = distributed.sum_(loss.detach().clone()) / distributed.world_size
    return float(mean_loss), whole


def steps_as_on_gpus(distributed: Distributed, names: Sequence[str]) -> dict[str, tuple[float, torch.dtype]]:
    return {name: step_as_on_gpus(distributed, name) for name in names}


def step_as_on_gpus(distributed: Distributed, name: str) -> tuple[float, torch.dtype]:
    """Loss of one step with weights gathered as bf16, which a run on CPUs does not do; and the scale's dtype in it."""
    sharding._gathered_dtype = lambda precision, device: torch.bfloat16
    method = made(name, distributed, TrainConfig(**{**TRAIN, "precision": "bf16"}), {"embed_batch_size": 3})
    share = 8 // distributed.world_size
    with torch.autocast("cpu", torch.bfloat16):
        loss, scalars = method.training_step(noise_pairs(method, share * distributed.rank, share), 0)
    loss.backward()
    return float(distributed.sum_(loss.detach().clone())) / distributed.world_size, scalars["logit_scale"].dtype
