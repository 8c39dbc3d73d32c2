"""Pre-training methods by the name that a config gives them."""

from __future__ import annotations

from collections.abc import Callable

from webssl_fast.config.schema import RunConfig
from webssl_fast.methods.base import Method
from webssl_fast.methods.clip import Clip
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.methods.ijepa import IJepa
from webssl_fast.methods.mae import Mae
from webssl_fast.methods.siglip import SigLip

METHODS: dict[str, Callable[..., Method]] = {
    "dinov2": DinoV2,
    "mae": Mae,
    "ijepa": IJepa,
    "clip": Clip,
    "siglip": SigLip,
}


def build_method(config: RunConfig) -> Method:
    """The method of a resolved config; its parameters are not initialised. ValueError where its settings do not fit."""
    assert config.train.group_size is not None, "resolve the config first"
    return METHODS[config.method.name](
        config.method,
        config.model,
        config.optim,
        num_steps=config.train.num_steps,
        group_size=config.train.group_size,
        seed=config.seed,
    )
