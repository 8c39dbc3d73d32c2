"""From a config and a number of GPUs to what a run takes, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.errors import ConfigError
from webssl_fast.gpus import GPU, GPUS
from webssl_fast.plan.choices import CHECKPOINTING, memory_choices
from webssl_fast.plan.memory import Memory, step_memory
from webssl_fast.plan.parameters import ParameterCounts
from webssl_fast.plan.step import Step
from webssl_fast.plan.steps import step_of

Settings = dict[str, Any]  # "key.sub" -> value

MOST_GPUS = 4096  # that a suggestion may ask for


class PublishedRun(NamedTuple):
    """MFU as derived from published hours: three times the forward's FLOPs, what drop-path drops left out."""

    name: str
    width: int
    mfu: float


PUBLISHED = (
    PublishedRun("DINOv3 ViT-L/16, 32 H100, 14 h", 1024, 0.18),
    PublishedRun("DINOv2 ViT-L/14, 96 A100, 3.3 days", 1024, 0.31),
    PublishedRun("DINOv2 ViT-L/16, 32 A100, 1 day", 1024, 0.34),
    PublishedRun("DINOv2 ViT-g/14, 22,000 A100 hours", 1536, 0.39),
    PublishedRun("DINOv3 ViT-7B/16, 61,440 H100 hours, with FP8", 4096, 0.57),
)


def default_mfu(width: int) -> float:
    """What the published runs nearest in width reached, rounded: wide GEMMs come nearer to the peak."""
    return 0.3 if width < 1536 else 0.4 if width < 2688 else 0.5


@dataclass(frozen=True)
class Estimate:
    """One run on `num_gpus` GPUs. `config` is resolved for them.

    `mfu`: share of the dense bf16 peak at which FLOPs run. What checkpointing computes again runs at the same rate and
    comes on top. Communication and the loader are taken to hide behind it.
    """

    config: RunConfig
    parameters: ParameterCounts
    gpu_name: str
    num_gpus: int
    mfu: float

    @property
    def gpu(self) -> GPU:
        return GPUS[self.gpu_name]

    @cached_property
    def step(self) -> Step:
        return step_of(self.config, self.num_gpus)

    @cached_property
    def memory(self) -> Memory:
        choices = memory_choices(self.config, self.num_gpus, on_gpu=True)
        return step_memory(self.step, self.parameters, choices)

    def with_checkpointing(self, mode: str) -> Estimate:
        """The same run under another mode of activation checkpointing."""
        return replace(self, config=_with(self.config, {"train.activation_checkpointing": mode}))

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.gpu.memory_bytes

    @cached_property
    def flops_by_part(self) -> dict[str, float]:
        """Of one image's share of a step."""
        return {part: flops / self.step.num_images for part, flops in self.step.flops().items()}

    @property
    def flops_per_image(self) -> float:
        return sum(self.flops_by_part.values())

    @property
    def recomputed_flops_per_image(self) -> float:
        return self.step.recomputed_flops(self.config.train.activation_checkpointing) / self.step.num_images

    @property
    def seconds_per_step(self) -> float:
        batch = self.config.train.global_batch_size
        flops = batch * (self.flops_per_image + self.recomputed_flops_per_image)
        return flops / (self.num_gpus * self.gpu.peak_tflops * 1e12 * self.mfu)

    @property
    def days(self) -> float:
        return self.seconds_per_step * self.config.train.num_steps / 86400

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.num_gpus


def resolved_for(config: RunConfig, num_gpus: int) -> RunConfig:
    """The config as so many GPUs would run it. ConfigError where they cannot."""
    if num_gpus < 1:
        raise ConfigError(f"--gpus is {num_gpus}; it must be at least 1")
    return resolve(config, world_size=num_gpus, device="cuda")


def estimate(
    config: RunConfig,
    parameters: ParameterCounts,
    gpu_name: str,
    num_gpus: int,
    mfu: float | None = None,
) -> Estimate:
    """`config`: as loaded or resolved. `mfu`: None takes the default for the network's width.

    ConfigError for an unknown GPU, a batch that does not divide among so many, a number out of range, a method of which
    no plan is made.
    """
    if gpu_name not in GPUS:
        raise ConfigError(
            f"--gpu: no {gpu_name!r} in the table of webssl_fast/gpus.py; known: {', '.join(sorted(GPUS))}"
        )
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"--mfu is {mfu}; it is a share of the peak, greater than 0 and at most 1")
    resolved = resolved_for(config, num_gpus)
    return Estimate(resolved, parameters, gpu_name, num_gpus, mfu or default_mfu(step_of(resolved, num_gpus).width))


@dataclass(frozen=True)
class Remedy:
    """A change that makes a run fit: the settings to add, on so many GPUs."""

    kind: str
    overrides: tuple[str, ...]
    estimate: Estimate


def remedies(config: RunConfig, failed: Estimate) -> list[Remedy]:
    """The least change of each kind that makes a run fit, in the order in which to try them: checkpointing, smaller
    passes, more GPUs, moments in 8 bits; each by itself where that does, and else on top of those before it."""
    found: dict[str, Remedy] = {}
    for kind, num_gpus, overrides in _candidates(failed):
        if kind in found:
            continue
        try:
            candidate = estimate(_with(config, overrides), failed.parameters, failed.gpu_name, num_gpus, failed.mfu)
        except ConfigError:  # a batch that does not divide so, settings that do not go together
            continue
        if candidate.fits:
            found[kind] = Remedy(kind, tuple(f"{key}={value}" for key, value in overrides.items()), candidate)
    return list(found.values())


def _candidates(failed: Estimate) -> Iterator[tuple[str, int, Settings]]:
    """(kind, GPUs, settings), from the least change to the greatest."""
    train = failed.config.train
    modes = CHECKPOINTING[CHECKPOINTING.index(train.activation_checkpointing) + 1 :]
    for mode in modes:
        yield "checkpointing", failed.num_gpus, {"train.activation_checkpointing": mode}
    alone: Settings = {}
    full: Settings = {"train.activation_checkpointing": "full"} if modes else {}
    at_once = failed.step.at_once
    smallest: Settings = {**full, at_once.setting: at_once.multiple_of}

    of_a_step = train.global_batch_size // failed.num_gpus
    sizes = [m for m in range(at_once.images - 1, 0, -1) if m % at_once.multiple_of == 0 and of_a_step % m == 0]
    for settings in (alone, full):
        for size in sizes:
            yield at_once.setting.split(".")[-1], failed.num_gpus, {**settings, at_once.setting: size}

    doublings = range(1, (MOST_GPUS // failed.num_gpus).bit_length())
    for settings in (alone, full, smallest):
        for doubling in doublings:
            yield "more GPUs", failed.num_gpus << doubling, settings

    low_memory: Settings = {}
    for more in (
        {"optim.implementation": "torchao_8bit"},
        {"train.student_weights": "bf16"},
        {"train.teacher_weights": "bf16"},
    ):
        low_memory |= more
        for settings in (alone, full, smallest):
            yield "8-bit optimizer", failed.num_gpus, {**settings, **low_memory}


def _with(config: RunConfig, overrides: Settings) -> RunConfig:
    tree = config.model_dump()
    for key, value in overrides.items():
        *path, name = key.split(".")
        branch = tree
        for part in path:
            branch = branch[part]
        branch[name] = value
    return RunConfig.model_validate(tree)
