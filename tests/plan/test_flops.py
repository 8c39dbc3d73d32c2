"""The planned FLOPs of a step are those that torch's FlopCounterMode counts on a real one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.methods.tiny import noise_batch as mae_batch
from tests.methods.tiny import tiny_mae
from tests.plan.small_runs import method_of, noise_batch, small_config, take_step
from webssl_fast.plan.flops import PARTS, flops_per_image, micro_batch_flops, recomputed_flops
from webssl_fast.plan.mae_flops import mae_flops_per_image
from webssl_fast.plan.step_shape import step_shape


def counted_flops(config, *, fully_checkpointed: bool = False) -> tuple[int, int]:
    """Of a real forward and backward, and how many patches its masks happen to cover."""
    method = method_of(config)
    if fully_checkpointed:
        for block in method.student.backbone.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    batch = noise_batch(config, method)
    with FlopCounterMode(display=False) as counter:
        take_step(config, method, batch)
    return counter.get_total_flops(), len(batch.host["masked_index_M"])


@pytest.mark.parametrize(
    "choices",
    [
        {"drop_path_rate": 0.0},
        {"drop_path_rate": 0.4},
        {"drop_path_rate": 0.4, "num_images": 3, "num_prototypes": 4096},
        {"preset": "vit_tiny_patch14", "num_images": 2},
    ],
)
def test_flops_are_what_torch_counts(choices):
    config = small_config(**choices)
    counted, num_masked = counted_flops(config)
    shape = replace(step_shape(config), num_masked=num_masked)
    assert sum(micro_batch_flops(shape).values()) == counted
    expected = step_shape(config).num_images * flops_per_image(config)  # with the masks' expected number of patches
    assert expected == pytest.approx(counted, rel=0.01)


def test_checkpointing_computes_the_blocks_again():
    config = small_config()
    plain, _ = counted_flops(config)
    checkpointed, _ = counted_flops(config, fully_checkpointed=True)
    # The last product of a block is not needed by its backward, so torch stops before it.
    assert recomputed_flops(step_shape(config), "full") == pytest.approx(checkpointed - plain, rel=0.2)
    assert recomputed_flops(step_shape(config), "selective") == 0


def test_every_part_has_its_share():
    parts = micro_batch_flops(step_shape(small_config()))
    assert tuple(parts) == PARTS and all(flops > 0 for flops in parts.values())


@pytest.mark.parametrize("choices", [{}, {"mask_ratio": 0.5, "preset": "vit_mae_tiny_patch14", "decoder_depth": 3}])
def test_flops_of_mae_are_what_torch_counts(choices):
    method = tiny_mae(**choices)
    batch = mae_batch(method, num_images=3)
    with FlopCounterMode(display=False) as counter:
        method.training_step(batch, 0)[0].backward()
    assert mae_flops_per_image(method.config, method.backbone.config) * 3 == counter.get_total_flops()
