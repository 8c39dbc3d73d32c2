"""What `webssl plan` says, for docs/plans.md and for the headers of configs; `python -m benchmarks.tables` writes both.

Published hours are set against our own count of FLOPs, so that the MFU of those runs and of ours mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from webssl_fast.cli import build_parser
from webssl_fast.config.load import load_config
from webssl_fast.config.schema import HeadConfig
from webssl_fast.gpus import GPUS
from webssl_fast.plan.blocks import Blocks, VisionNetwork
from webssl_fast.plan.choices import CHECKPOINTING
from webssl_fast.plan.dinov2_step import DinoV2Step
from webssl_fast.plan.estimate import Estimate
from webssl_fast.plan.words import GIB, as_line
from webssl_fast.recipes.plan import planned_run

ROOT = Path(__file__).parent.parent
_PLANNED = re.compile(r"^# (webssl (plan .*))\n#   .*$", re.MULTILINE)

# DINOv3's 7B as its public configuration has it: patches of 16 pixels, 4 register tokens, crops of 256 and 112 pixels,
# 16 images a GPU, drop-path 0.4 over the sequences of a GPU, half of the global crops masked by 10 to 50%.
_DINOV3_BLOCKS = Blocks(40, 4096, 8192, 32, "swiglu", True, ((32, 261), (128, 54)), ((19, 261), (76, 54)))
DINOV3_7B = DinoV2Step(
    num_images=16,
    group_size=16,
    student=VisionNetwork(16, _DINOV3_BLOCKS),
    teacher=VisionNetwork(16, replace(_DINOV3_BLOCKS, groups=((32, 261),), kept=None)),
    num_masked=1221,
    dino_head=HeadConfig(hidden_dim=8192, bottleneck_dim=512, num_prototypes=262144),
    ibot_head=HeadConfig(hidden_dim=4096, bottleneck_dim=384, num_prototypes=98304),
    sinkhorn_iterations=3,
)


def rewritten_header(text: str) -> str:
    """A config with the line under each `# webssl plan ...` made anew."""

    def said(match: re.Match[str]) -> str:
        return f"# {match[1]}\n#   {as_line(_planned_by_command(match[2]))}"

    return _PLANNED.sub(said, text)


@cache
def _planned_by_command(command: str) -> Estimate:
    """Of a command's words after `webssl`."""
    args = build_parser().parse_args(command.split())
    config = load_config(ROOT / args.config, args.overrides)
    return planned_run(config, args.gpu, args.gpus, args.mfu)


def planned_configs() -> list[Path]:
    """Configs that name a plan in their header."""
    return [path for path in sorted((ROOT / "configs").glob("**/*.yaml")) if _PLANNED.search(path.read_text())]


def plan_configs() -> list[list[str]]:
    """Of each of `planned_configs`: what it takes."""
    rows = []
    for path in planned_configs():
        found = _PLANNED.search(path.read_text())
        assert found is not None
        plan = _planned_by_command(found[2])
        modes = [plan.with_checkpointing(mode) for mode in CHECKPOINTING]
        chosen = CHECKPOINTING.index(plan.config.train.activation_checkpointing)
        peaks = [f"{mode.memory.peak / GIB:.0f}" for mode in modes]
        peaks[chosen] = f"**{peaks[chosen]}**"
        rows.append(
            [
                f"`{path.stem}`",
                f"{plan.num_gpus} {plan.gpu_name}",
                f"{plan.config.train.global_batch_size:,}",
                " / ".join(peaks),
                f"{plan.flops_per_image / 1e12:.2f}",
                f"{plan.mfu:.0%}",
                f"{plan.seconds_per_step:.2f}",
                f"{plan.days:.1f}",
                f"{plan.gpu_hours:,.0f}",
            ]
        )
    header = ["config", "GPUs", "batch", "GiB a GPU, none / selective / full", "TFLOP an image", "MFU", "s a step"]
    return [[*header, "days", "GPU-hours"], *rows]


def plan_published() -> list[list[str]]:
    """Published runs, and ours beside them at the planned MFU."""
    vit_g = planned("webdino_1b_mc2b", 256, "a100-40")
    ours = planned("webdino_7b_mc2b", 256)
    dinov3_flops = sum(DINOV3_7B.flops().values()) / DINOV3_7B.num_images
    header = ["run", "GPUs", "images", "GPU-hours", "TFLOP an image", "s a step", "images/s a GPU", "MFU"]
    return [
        header,
        _published("DINOv3 7B/16, model card", "h100", 61_440, 4096, 1_000_000, dinov3_flops),
        _published("DINOv2 ViT-g/14, paper", "a100-40", 22_000, 3072, 625_000, vit_g.flops_per_image),
        [
            "Web-DINO 7B/14, planned",
            f"256 {ours.gpu_name}",
            _billions(ours.config.train.global_batch_size * ours.config.train.num_steps),
            f"{ours.gpu_hours:,.0f}",
            f"{ours.flops_per_image / 1e12:.1f}",
            f"{ours.seconds_per_step:.2f}",
            f"{ours.config.train.global_batch_size / ours.seconds_per_step / ours.num_gpus:.1f}",
            f"{ours.mfu:.0%} (assumed)",
        ],
    ]


def published_mfu(gpu: str, gpu_hours: float, num_images: float, flops_per_image: float) -> float:
    """The share of the peak that so many hours mean."""
    return flops_per_image * num_images / (gpu_hours * 3600 * GPUS[gpu].peak_tflops * 1e12)


def plan_7b_one_gpu() -> list[list[str]]:
    """What makes room for the 7B on one GPU, step by step."""
    steps = [
        ("fp32 weights, fp32 AdamW", []),
        ("+ full checkpointing", ["train.activation_checkpointing=full"]),
        ("+ moments in 8 bits", ["optim.implementation=torchao_8bit"]),
        ("+ bf16 student weights", ["train.student_weights=bf16"]),
        ("+ bf16 teacher weights", ["train.teacher_weights=bf16"]),
    ]
    names = ("weights", "gradients", "optimizer", "teacher", "activations", "gathered")
    rows, overrides = [], ["train.global_batch_size=12"]
    for name, more in steps:
        overrides += more
        plan = planned("webdino_7b_mc2b", 1, overrides=overrides)
        peak = plan.memory.at_peak
        fitting = [gpu for gpu in ("h100", "h200", "b200") if plan.memory.peak <= GPUS[gpu].memory_bytes]
        rows.append(
            [
                name,
                *(f"{peak[part] / GIB:.1f}" for part in names),
                f"{(sum(peak.values()) - sum(peak[part] for part in names)) / GIB:.1f}",
                f"{plan.memory.peak / GIB:.1f}",
                ", ".join(fitting) or "none",
            ]
        )
    columns = [name if name != "gathered" else "bf16 copies" for name in names]
    return [["12 images a pass, GiB at the peak", *columns, "rest", "total", "fits"], *rows]


def _published(name: str, gpu: str, gpu_hours: float, batch: int, num_steps: int, flops: float) -> list[str]:
    seconds = gpu_hours * 3600 / 256 / num_steps
    return [
        name,
        f"256 {gpu}",
        _billions(batch * num_steps),
        f"{gpu_hours:,}",
        f"{flops / 1e12:.1f}",
        f"{seconds:.2f}",
        f"{batch / seconds / 256:.1f}",
        f"{published_mfu(gpu, gpu_hours, batch * num_steps, flops):.0%}",
    ]


def _billions(count: float) -> str:
    return f"{count / 1e9:.2f} B"


def planned(config: str, num_gpus: int, gpu: str = "h100", overrides: list[str] | None = None) -> Estimate:
    """Of a config in configs/pretrain, at the MFU that `webssl plan` assumes."""
    path = ROOT / "configs" / "pretrain" / f"{config}.yaml"
    return planned_run(load_config(path, overrides or []), gpu, num_gpus)


PLAN_TABLES: dict[str, Callable[[], list[list[str]]]] = {
    "plan_configs": plan_configs,
    "plan_published": plan_published,
    "plan_7b_one_gpu": plan_7b_one_gpu,
}
