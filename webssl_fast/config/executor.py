"""Who does the work on many shards: a part of schema.py that commands without a RunConfig use too."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from webssl_fast.config.fields import Config, NonNegativeFloat, PositiveInt


class ExecutorConfig(Config):
    """local: this machine's processes; ray: a pool of actors of a Ray cluster (extra `ray`)."""

    kind: Literal["local", "ray"] = "local"
    num_workers: PositiveInt = 1  # processes (1: this one), or actors
    gpus_per_worker: NonNegativeFloat = 0.0  # of kind ray: its actors are placed by it; 0.5: two share a GPU
    address: str = ""  # of the cluster; empty: RAY_ADDRESS, or a cluster of its own on this machine

    @model_validator(mode="after")
    def _of_kind_ray(self):
        if self.kind == "local" and (self.gpus_per_worker or self.address):
            raise ValueError("gpus_per_worker and address are Ray's: set kind to ray, or leave them out")
        return self
