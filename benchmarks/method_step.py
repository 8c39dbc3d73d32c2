"""A training step of any method, in the parts that the engine's loop takes it in; `bench_step --method` times it."""

from __future__ import annotations

import resource
from argparse import Namespace
from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import webssl_fast.ops.flops  # noqa: F401  what FlopCounterMode counts of our ops
from benchmarks.harness import emit, gemm_tflop_per_s, time_interleaved
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import OptimConfig, RunConfig, TrainConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods import build_method
from webssl_fast.methods.base import Method
from webssl_fast.records import Batch

PRESETS = {"mae": "vit_mae_base_patch16", "ijepa": "vit_mae_base_patch16"}  # of others: vit_base_patch14
CAPTION = "a photograph of a small house between two old trees"


class MethodStep:
    """Holds the method with its weights and, from the first `optimize`, the optimizer's."""

    def __init__(self, method: Method, host_batch: Batch, train: TrainConfig, *, step: int = 0, seed: int = 0):
        self.method, self.host_batch, self.train, self.step_number = method, host_batch, train, step
        self.here = Distributed(torch.device(train.device))
        materialize(method, seed, self.here, train)
        self.batch = host_batch.to(self.here.device)

    def prepare(self) -> None:
        """What a loader's thread does to a batch, and the way to the device."""
        self.method.prepare(self.host_batch)
        self.batch = self.host_batch.to(self.here.device)

    def forward(self) -> dict[str, torch.Tensor]:
        with torch.autocast(self.here.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
            self.loss, scalars = self.method.training_step(self.batch, self.step_number)
        return scalars

    def backward(self) -> None:
        self.loss.backward()

    def optimize(self) -> None:
        if not hasattr(self, "optimizer"):
            train = self.train
            self.optimizer = Optimizer(
                self.method,
                OptimConfig(),
                self.here,
                num_steps=train.num_steps,
                global_batch_size=train.global_batch_size,
            )
        self.optimizer.step(self.step_number, self.loss.detach())

    def after_step(self) -> None:
        self.method.after_step(self.step_number)

    def parts(self) -> dict[str, Callable]:
        """In their order."""
        names = ("prepare", "forward", "backward", "optimize", "after_step")
        return {name: getattr(self, name) for name in names}


def measure(options: Namespace, precision: str) -> None:
    """Prints the line of one method: time of a step, images and FLOPs a second, and each part's share of the time."""
    config = _config(options, precision)
    torch.set_num_threads(options.threads)
    with torch.device("meta"):
        method = build_method(config)
    taken = MethodStep(method, _noise_batch(method, options.batch), config.train)
    parts = taken.parts()
    tflop_per_image = _tflop_of_pass(taken) / options.batch
    taken.optimize()  # which also takes the gradients away

    def step() -> None:
        for part in parts.values():
            part()

    timing = time_interleaved({"step": step}, options.repeats, device=options.device)["step"]
    by_part = {
        name: part.p50_ms for name, part in time_interleaved(parts, options.repeats, device=options.device).items()
    }
    images_per_s = 1e3 * options.batch / timing.p50_ms
    on_gpu = options.device == "cuda"
    peak_bytes = (
        torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    gemm = {"gemm_tflop_per_s": gemm_tflop_per_s()} if on_gpu else {}
    emit(
        "method_step",
        record=options.record,
        device=options.device,
        method=options.method,
        preset=config.model.preset,
        image_size_px=config.model.image_size_px,
        num_images=options.batch,
        precision=precision,
        compile_blocks=options.compile,
        threads=options.threads,
        repeats=options.repeats,
        p20_ms=timing.p20_ms,
        p50_ms=timing.p50_ms,
        p80_ms=timing.p80_ms,
        cpu_ms=timing.cpu_ms,
        images_per_s=images_per_s,
        tflop_per_image=tflop_per_image,
        tflop_per_s=images_per_s * tflop_per_image,
        share={name: round(ms / sum(by_part.values()), 4) for name, ms in by_part.items()},
        **{"peak_gpu_mb" if on_gpu else "peak_rss_mb": round(peak_bytes / 1e6)},
        **gemm,
    )


def _config(options: Namespace, precision: str) -> RunConfig:
    preset, image_size_px = options.preset or PRESETS.get(options.method, "vit_base_patch14"), options.image_size or 224
    method: dict = {"name": options.method}
    if options.method in ("clip", "siglip"):
        crops = RunConfig.model_validate({"method": method}).method.crops
        method["crops"] = {**crops.model_dump(), "size_px": image_size_px}
        method["text"] = {"preset": options.text_preset or "text_small"}
    config = RunConfig.model_validate(
        {
            "model": {"preset": preset, "image_size_px": image_size_px},
            "method": method,
            "train": {
                "device": options.device,
                "precision": precision,
                "compile_blocks": options.compile,
                "global_batch_size": options.batch,
                "group_size": options.batch,
            },
        }
    )
    return resolve(config, world_size=1, device=options.device)


def _noise_batch(method: Method, num_images: int) -> Batch:
    """Random crops with what the method prepares for them: what the loader would hand over."""
    generator, positions = torch.Generator().manual_seed(0), np.arange(num_images)
    crops = [
        torch.randn(len(list(group)), num_images, 3, size_px, size_px, generator=generator)
        for size_px, group in groupby(recipe.size_px for recipe in method.crop_recipes())
    ]
    captions = [f"{CAPTION}, number {i}" for i in positions] if method.wants_captions else None
    batch = Batch(positions, positions.copy(), crops, torch.full((num_images,), -1), captions=captions)
    method.prepare(batch)
    return batch


def _tflop_of_pass(taken: MethodStep) -> float:
    """Forward and backward, as torch counts what is executed; without compilation, into whose kernels it cannot see."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        taken.forward()
        taken.backward()
    return counter.get_total_flops() / 1e12
