"""Fills in what a config leaves to be derived, so that the saved config shows what runs."""

from __future__ import annotations

from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError

MAX_DEFAULT_GROUP = 16


def resolve(config: RunConfig, *, world_size: int, device: str) -> RunConfig:
    """The config with batch sizes, groups, device and prefetching filled in, for so many ranks on "cpu" or "cuda".

    ConfigError where the batch does not divide, or settings do not go together; the message says which values would do.
    """
    if config.data.decode.device == "gpu" and device == "cpu":
        raise ConfigError(
            f"data.decode.device is gpu, but this process computes on the CPU (train.device is {config.train.device}): "
            "set data.decode.device=cpu, or run where there is a GPU"
        )
    train = config.train
    _check_precision(config)
    if world_size % train.sharding.num_replicas:
        raise ConfigError(
            f"train.sharding.num_replicas is {train.sharding.num_replicas}, which does not divide {world_size} ranks; "
            f"allowed: {_divisors(world_size)}"
        )
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


def _check_precision(config: RunConfig) -> None:
    train, implementation = config.train, config.optim.implementation
    if train.student_weights == "bf16" and implementation != "torchao_8bit":
        raise ConfigError(
            f"train.student_weights=bf16 needs an optimizer that rounds stochastically, and optim.implementation is "
            f"{implementation}, which rounds to nearest and loses most updates; set optim.implementation=torchao_8bit, "
            "or train.student_weights=fp32"
        )
    for key in ("student_weights", "teacher_weights"):
        if train.precision == "fp32" and getattr(train, key) == "bf16":
            raise ConfigError(
                f"train.precision=fp32 computes with fp32 weights, and train.{key} is bf16; set train.precision=bf16"
            )
    if train.precision == "fp32" and train.fp8 != "none":
        raise ConfigError(f"train.fp8={train.fp8} stands on bf16; set train.precision=bf16, or train.fp8=none")


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
