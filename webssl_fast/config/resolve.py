"""Fills in what a config leaves to be derived, so that the saved config shows what runs."""

from __future__ import annotations

from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError

MAX_DEFAULT_GROUP = 16


def resolve(config: RunConfig, *, world_size: int, device: str) -> RunConfig:
    """The config with batch sizes, groups, device and prefetching filled in, for so many ranks on "cpu" or "cuda".

    ConfigError where the batch does not divide or the GPU decodes for the CPU; the message says which values would do.
    """
    if config.data.decode.device == "gpu" and device == "cpu":
        raise ConfigError(
            f"data.decode.device is gpu, but this process computes on the CPU (train.device is {config.train.device}): "
            "set data.decode.device=cpu, or run where there is a GPU"
        )
    train = config.train
    batch = train.global_batch_size
    if batch % world_size:
        raise ConfigError(
            f"train.global_batch_size is {batch}, which does not divide among {world_size} ranks; "
            f"{batch // world_size * world_size or world_size} and {(batch // world_size + 1) * world_size} do"
        )
    per_rank = batch // world_size
    micro = train.micro_batch_size or per_rank
    if per_rank % micro:
        raise ConfigError(
            f"train.micro_batch_size is {micro}, which does not divide the {per_rank} images of a rank "
            f"(global_batch_size {batch} / {world_size} ranks); allowed: {_divisors(per_rank)}"
        )
    # Independent of the ranks, so that a run may go on with another number of them.
    group = train.group_size or max(d for d in range(1, MAX_DEFAULT_GROUP + 1) if batch % d == 0)
    if micro % group:
        raise ConfigError(
            f"train.group_size is {group}, which does not divide micro_batch_size {micro}; allowed: "
            f"{_divisors(micro)}. It is part of the objective (KoLeo, mask ratios, drop-path), so set it "
            f"before the first step of a run"
        )
    prefetch = config.data.prefetch_batches
    if prefetch is None:
        prefetch = 0 if device == "cpu" else 4
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"prefetch_batches": prefetch}),
            "train": train.model_copy(update={"device": device, "micro_batch_size": micro, "group_size": group}),
        }
    )


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
