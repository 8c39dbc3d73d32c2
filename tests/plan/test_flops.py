"""The planned FLOPs of a step are those that torch's FlopCounterMode counts on a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.plan.small_runs import noise_batch, small_config, small_mae, small_pairs, take_step
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine import sharding
from webssl_fast.engine.distributed import Distributed
from webssl_fast.plan.dinov2_step import PARTS
from webssl_fast.plan.steps import flops_per_image, step_of
from webssl_fast.recipes.setup import describe_method

MODES = ["none", "selective", "full"]


def counted_flops(config: RunConfig) -> tuple[int, dict]:
    """Of a real forward and backward, and what the method drew for it."""
    method = describe_method(config)
    sharding.materialize(method, config.seed, Distributed(torch.device("cpu")), config.train)
    batch = noise_batch(config, method)
    with FlopCounterMode(display=False) as counter:
        take_step(config, method, batch)
    return counter.get_total_flops(), batch.host


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "choices",
    [
        {"drop_path_rate": 0.0},
        {"drop_path_rate": 0.4},
        {"drop_path_rate": 0.4, "num_images": 3, "num_prototypes": 4096},
        {"preset": "vit_tiny_patch14", "num_images": 2},
    ],
    ids=str,
)
def test_flops_of_dinov2(choices, mode):
    config = small_config(**choices, activation_checkpointing=mode)
    counted, drawn = counted_flops(config)
    expected = step_of(config, 1)
    step = replace(expected, num_masked=len(drawn["masked_index_M"]))
    assert sum(step.flops().values()) + step.recomputed_flops(mode) == counted
    # With the masks' expected number of patches.
    planned = expected.num_images * flops_per_image(config, 1) + expected.recomputed_flops(mode)
    assert planned == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "config",
    [
        small_mae(),
        small_mae("vit_mae_tiny_patch14", mask_ratio=0.5, decoder_depth=3),
        small_pairs("clip"),
        small_pairs("clip", activation="quick_gelu", context_length=5),
        small_pairs("siglip"),
        small_pairs("clip", embed_batch_size=2),
        small_pairs("clip", num_images=5, embed_batch_size=2),
        small_pairs("siglip", embed_batch_size=3),
    ],
    ids=lambda config: f"{config.method.name}-{config.model.preset}-{getattr(config.method, 'embed_batch_size', '')}",
)
def test_flops_of_other_methods(config, mode):
    config = config.model_copy(update={"train": config.train.model_copy(update={"activation_checkpointing": mode})})
    counted, _ = counted_flops(config)
    step = step_of(config, 1)
    assert sum(step.flops().values()) + step.recomputed_flops(mode) == counted


@pytest.mark.parametrize("config", [small_config(), small_mae(), small_pairs("clip"), small_pairs("siglip")])
def test_every_part_has_its_share(config):
    parts = step_of(config, 1).flops()
    assert all(flops > 0 for flops in parts.values())
    assert config.method.name != "dinov2" or tuple(parts) == PARTS


@pytest.mark.parametrize(("name", "products"), [("clip", 12), ("siglip", 6)])
def test_pairs_are_compared_with_those_of_all_ranks(name, products):
    """2 D FLOPs a pair for the cosine, as much for either gradient; CLIP takes the cosines of both directions."""
    config = small_pairs(name, num_images=4, world_size=8)
    assert step_of(config, 8).flops()["loss"] == products * 4 * 32 * config.method.joint_dim
