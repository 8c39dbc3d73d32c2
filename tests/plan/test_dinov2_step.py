"""The counts of a plan are those of the method's own draws."""

from __future__ import annotations

import numpy as np
import pytest

from tests.plan.small_runs import noise_batch, small_config
from webssl_fast.config.schema import CropsConfig
from webssl_fast.methods.masking import group_masks
from webssl_fast.plan.blocks import num_tokens
from webssl_fast.plan.steps import step_of
from webssl_fast.recipes.setup import describe_method


@pytest.mark.parametrize("drop_path_rate", [0.3, 0.4, 0.99])
@pytest.mark.parametrize("num_images", [3, 4])
def test_kept_tokens_are_those_that_drop_path_draws(drop_path_rate, num_images):
    config = small_config(drop_path_rate=drop_path_rate, num_images=num_images)
    batch = noise_batch(config, describe_method(config))
    assert num_tokens(step_of(config, 1).student.blocks.branch) == batch.host["kept_tokens"].shape[-1]


@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.1, 0.7), (0.6, 0.9), (0.3, 0.3)])
def test_expected_masked_patches(ratio):
    config = small_config(num_images=12)
    method = config.method.model_copy(update={"mask_ratio": ratio})
    step = step_of(config.model_copy(update={"method": method}), 1)
    rng = np.random.default_rng(0)
    drawn = np.mean([group_masks(rng, 24, (16, 16), 0.5, ratio).sum() for _ in range(20)])
    assert step.num_masked == pytest.approx(drawn, rel=0.02)


def test_a_fixed_number_of_masked_patches_is_the_upper_bound():
    config = small_config(num_images=3)
    method = config.method.model_copy(update={"fixed_masked_count": True, "mask_ratio": (0.1, 0.6)})
    config = config.model_copy(update={"method": method})
    batch = noise_batch(config, describe_method(config))
    assert step_of(config, 1).num_masked == len(batch.host["masked_index_M"])


def test_crops_of_other_sizes():
    config = small_config()
    crops = CropsConfig(num=2, size_px=378, scale=(0.32, 1.0))
    method = config.method.model_copy(update={"global_crops": crops})
    step = step_of(config.model_copy(update={"method": method}), 1)
    assert step.student.blocks.groups == ((8, 730), (32, 50)) and step.teacher.blocks.groups == ((8, 730),)
