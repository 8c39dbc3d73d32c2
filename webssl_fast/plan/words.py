"""A plan in words, in one line, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from webssl_fast.plan.choices import CHECKPOINTING
from webssl_fast.plan.estimate import PUBLISHED, Estimate, Remedy

GIB = 2**30


def as_line(plan: Estimate) -> str:
    """What stands in a config's header."""
    verdict = "" if plan.fits else "DOES NOT FIT: "
    return (
        f"{verdict}{plan.memory.peak / GIB:.0f} of {plan.gpu.memory_bytes / GIB:.0f} GiB, "
        f"{plan.flops_per_image / 1e12:.2f} TFLOP an image, {plan.seconds_per_step:.2f} s a step at "
        f"{plan.mfu:.0%} MFU, {plan.days:.1f} days, {plan.gpu_hours:,.0f} GPU-hours"
    )


def as_dict(plan: Estimate, by_checkpointing: dict[str, Estimate], changes: list[Remedy]) -> dict[str, Any]:
    """JSON values; bytes, seconds and FLOPs are plain numbers in those units."""
    train = plan.config.train
    return {
        "gpu": plan.gpu_name,
        "num_gpus": plan.num_gpus,
        "gpu_memory_bytes": plan.gpu.memory_bytes,
        "gpu_peak_tflops": plan.gpu.peak_tflops,
        "gpu_source": plan.gpu.source,
        "preset": plan.config.model.preset,
        "parameters": {module.name: module.total for module in plan.parameters.trained},
        "untrained_parameters": plan.parameters.untrained,
        "global_batch_size": train.global_batch_size,
        "micro_batch_size": train.micro_batch_size,
        "images_at_once": plan.step.at_once.images,
        "num_steps": train.num_steps,
        "activation_checkpointing": train.activation_checkpointing,
        "fits": plan.fits,
        "memory_bytes": {"peak": plan.memory.peak, **plan.memory.moments},
        "peak_bytes_by_checkpointing": {mode: other.memory.peak for mode, other in by_checkpointing.items()},
        "flops_per_image": plan.flops_per_image,
        "flops_per_image_by_part": plan.flops_by_part,
        "recomputed_flops_per_image": plan.recomputed_flops_per_image,
        "flops_per_step": plan.flops_per_image * train.global_batch_size,
        "mfu": plan.mfu,
        "seconds_per_step": plan.seconds_per_step,
        "gpu_hours": plan.gpu_hours,
        "days": plan.days,
        "remedies": [
            {
                "kind": change.kind,
                "num_gpus": change.estimate.num_gpus,
                "overrides": list(change.overrides),
                "peak_bytes": change.estimate.memory.peak,
                "days": change.estimate.days,
            }
            for change in changes
        ],
    }


def as_text(plan: Estimate, by_checkpointing: dict[str, Estimate], changes: list[Remedy]) -> str:
    """The whole plan, for a person."""
    train = plan.config.train
    assert train.micro_batch_size is not None
    num_passes = train.global_batch_size // (train.micro_batch_size * plan.num_gpus)
    at_once = plan.step.at_once.images
    of_a_pass = f", {at_once} of them at once" if at_once < train.micro_batch_size else ""
    parameters = plan.parameters
    modules = ", ".join(f"{module.name.replace('_', ' ')} {module.total / 1e6:,.1f}" for module in parameters.trained)
    teacher = f"; the EMA teacher has {parameters.untrained / 1e6:,.1f} M" if parameters.untrained else ""
    lines = [
        f"{plan.config.model.preset}, {plan.config.method.name}, on {plan.num_gpus:,} x {plan.gpu_name}",
        f"  {plan.gpu.memory_gb:g} GB and {plan.gpu.peak_tflops:g} TFLOP/s dense bf16 each ({plan.gpu.source})",
        "",
        "parameters",
        f"  trained         {parameters.student / 1e6:12,.1f} M  ({modules}){teacher}",
        "",
        f"memory of a GPU in GiB, {train.micro_batch_size} images a pass{of_a_pass}, {num_passes} "
        f"{'pass' if num_passes == 1 else 'passes'} a step, {train.activation_checkpointing} checkpointing",
        *_memory_table(plan),
        "  peak by activation checkpointing: "
        + ", ".join(f"{mode} {by_checkpointing[mode].memory.peak / GIB:.1f}" for mode in CHECKPOINTING),
        "",
        "FLOPs of an image                 TFLOP",
        *(
            f"  {part.replace('_', ' '):28} {flops / 1e12:9.3f} {flops / plan.flops_per_image:7.1%}"
            for part, flops in plan.flops_by_part.items()
        ),
        f"  {'total':28} {plan.flops_per_image / 1e12:9.3f}",
    ]
    if train.fp8 != "none":
        lines.append(
            "  FP8 counts as bf16 here: its faster products and its copies of the weights are not in this plan"
        )
    if plan.recomputed_flops_per_image:
        lines.append(f"  {'computed again (not in MFU)':28} {plan.recomputed_flops_per_image / 1e12:9.3f}")
    flops_per_step = plan.flops_per_image * train.global_batch_size
    lines += [
        f"  a step of {train.global_batch_size:,} images: {flops_per_step / 1e12:,.2f} TFLOP",
        "",
        f"time, at an MFU of {plan.mfu:g}",
        f"  a step          {plan.seconds_per_step:12,.3f} s   "
        f"({train.global_batch_size / plan.seconds_per_step:,.0f} images/s, "
        f"{train.global_batch_size / plan.seconds_per_step / plan.num_gpus:,.1f} a GPU)",
        f"  {train.num_steps:,} steps   {plan.days:,.1f} days, {plan.gpu_hours:,.0f} GPU-hours",
        "  The MFU is an assumption: communication and loading are taken to hide behind it. Published runs, by width:",
        *(f"    {run.mfu:.0%} at {run.width} ({run.name})" for run in PUBLISHED),
        "",
        *_verdict(plan, changes),
    ]
    return "\n".join(lines)


def _memory_table(plan: Estimate) -> list[str]:
    moments = plan.memory.moments
    titles = [name.replace("_", " ").replace(" end", " ends") for name in moments]
    widths = [max(len(title), 14) for title in titles]

    def row(name: str, cells: Iterable[str]) -> str:
        return f"  {name:16}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    parts = [part for part in plan.memory.at_peak if any(held[part] for held in moments.values())]
    return [
        row("", titles),
        *(row(part, (f"{held[part] / GIB:.2f}" for held in moments.values())) for part in parts),
        row("total", (f"{sum(held.values()) / GIB:.2f}" for held in moments.values())),
    ]


def _verdict(plan: Estimate, changes: list[Remedy]) -> list[str]:
    peak, room = plan.memory.peak / GIB, plan.gpu.memory_bytes / GIB
    if plan.fits:
        return [f"fits: {peak:.1f} of {room:.1f} GiB"]
    lines = [f"DOES NOT FIT: {peak:.1f} of {room:.1f} GiB"]
    if not changes:
        return [
            *lines,
            "  Neither checkpointing, smaller passes, more GPUs nor 8-bit moments would do; take a smaller model.",
        ]
    for i, change in enumerate(changes):
        others = change.estimate
        gpus = [f"--gpus {others.num_gpus}"] if others.num_gpus != plan.num_gpus else []
        lines.append(
            f"  {'it would with' if i == 0 else 'or with'} {' '.join([*gpus, *change.overrides])}: "
            f"{others.memory.peak / GIB:.1f} GiB, {others.days:,.1f} days"
        )
    at_once = plan.step.at_once
    if at_once.objective and any(at_once.setting in word for change in changes for word in change.overrides):
        lines.append(f"  {at_once.objective}")
    return lines
