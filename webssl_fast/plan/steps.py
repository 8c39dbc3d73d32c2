"""Which step is whose: the one place that knows the methods of which plans are made."""

from __future__ import annotations

from collections.abc import Callable

from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError
from webssl_fast.plan.dinov2_step import dinov2_step
from webssl_fast.plan.image_text_step import image_text_step
from webssl_fast.plan.mae_step import mae_step
from webssl_fast.plan.step import Step

STEPS: dict[str, Callable[[RunConfig, int], Step]] = {
    "dinov2": dinov2_step,
    "mae": mae_step,
    "clip": image_text_step,
    "siglip": image_text_step,
}


def step_of(config: RunConfig, num_ranks: int) -> Step:
    """Of a resolved config on so many ranks. ConfigError for a method of which no plan is made."""
    name = config.method.name
    if name not in STEPS:
        raise ConfigError(
            f"method.name is {name}, of which there is no plan; known: {', '.join(STEPS)}. A further method is a file "
            "beside webssl_fast/plan/mae_step.py, named in webssl_fast/plan/steps.py"
        )
    return STEPS[name](config, num_ranks)


def flops_per_image(config: RunConfig, num_ranks: int) -> float | None:
    """FLOPs of one image's share of a training step, for the metrics' MFU: without what checkpointing computes again.
    None for a method of which no plan is made.

    `config`: resolved (see config/resolve.py).
    """
    if config.method.name not in STEPS:
        return None
    step = step_of(config, num_ranks)
    return sum(step.flops().values()) / step.num_images
