"""Where the time of one training step goes, by kind of work: which op is worth a kernel of its own.

    python -m benchmarks.profile_step --side plain_dinov2 --precision bf16 --threads 2

Prints one JSON line: milliseconds of one step by kind. Times are the operators' own times under torch.profiler,
so that they add up to the step.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.provenance import provenance
from benchmarks.step_sides import SIDES, StepCase

# First match wins: a scope set by the code under profile, or a part of an operator's name.
KINDS_BY_NAME = {
    "sinkhorn": "sinkhorn",
    "prototype_cross_entropy": "cross_entropy",
    "scaled_dot_product": "attention",
    "webssl::attention": "attention",
    "weight_norm": "weight_norm",
    "adamw": "optimizer",
    "clip_grad": "gradient_clipping",
    "foreach_norm": "gradient_clipping",
    "lerp": "ema",
    "layer_norm": "layer_norm",
    "silu": "swiglu",
    "gelu": "gelu",
    "conv": "patch_embed",
}
GEMMS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn_linear")


def kind_of(event: FunctionEvent, num_prototypes: int) -> str:
    ancestor: FunctionEvent | None = event
    while ancestor is not None:
        name = ancestor.name.lower()
        for part, kind in KINDS_BY_NAME.items():
            if part in name:
                return kind
        ancestor = ancestor.cpu_parent
    shapes: list[Any] = [shape for shape in event.input_shapes or [] if isinstance(shape, list)]
    wide = any(num_prototypes in shape for shape in shapes)
    if event.name in GEMMS:
        return "gemm_prototypes" if wide else "gemm_backbone_and_heads"
    if wide:
        # A matrix of weights has K rows, one of logits K columns.
        return "weights_of_prototypes" if any(s[:1] == [num_prototypes] for s in shapes) else "cross_entropy"
    return "casts_and_copies" if event.name in ("aten::copy_", "aten::cat") else "other_elementwise"


def profile_step(
    step: Callable[[], object], num_prototypes: int, repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Milliseconds of a call of `step` by kind, the least of `repeats` calls for each kind; "total" is their sum.

    The least, since another process on the machine adds to whichever operator it interrupts. On a GPU the time is that
    of the kernels that an operator launches, and what the GPU idles is in none of them.
    """
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    step()
    least_ms: dict[str, float] = {}
    for _ in range(repeats):
        with profile(activities=activities, record_shapes=True) as recorded:
            step()
        times_ms: dict[str, float] = defaultdict(float)
        for event in recorded.events():
            own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times_ms[kind_of(event, num_prototypes)] += own_us / 1e3
        for kind, ms in times_ms.items():
            least_ms[kind] = min(ms, least_ms.get(kind, ms))
    ordered = {kind: round(ms, 1) for kind, ms in sorted(least_ms.items(), key=lambda item: -item[1])}
    return {"total": round(sum(least_ms.values()), 1), **ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", choices=sorted(SIDES), default="webssl_fast")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", default="vit_small_patch14")
    parser.add_argument("--drop-path", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = StepCase(
        preset=arguments.preset,
        num_images=arguments.batch,
        precision=arguments.precision,
        drop_path_rate=arguments.drop_path,
        device=arguments.device,
    )
    side = SIDES[arguments.side](case, case.batch())
    times_ms = profile_step(side.step, case.num_prototypes, arguments.repeats, arguments.device)
    where = provenance(arguments.device)
    print(json.dumps({"case": "train_step_profile", **vars(arguments), "ms_by_kind": times_ms, **where}))


if __name__ == "__main__":
    main()
