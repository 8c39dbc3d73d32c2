"""What an encoder on visible patches alone saves: a step of MAE against the same step with the encoder on all tokens.

    python -m benchmarks.bench_mae --preset vit_mae_base_patch16 --batch 8 --threads 2 --repeats 5

Prints one JSON line each for the whole step (draws of the masks, forward, backward, AdamW; the decoder sees all tokens
on both sides, which bounds the gain) and for the encoder alone (forward and backward). `flops_ratio` is what the
arithmetic promises. The two sides share their weights and take turns within one run. Before timing, an encoder that is
shown every patch must give what the encoder on all tokens gives.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import argument_parser, emit, time_interleaved
from webssl_fast.config.schema import MaeConfig, ModelConfig, OptimConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.methods.mae import Mae
from webssl_fast.models.embed import take_patches
from webssl_fast.plan.mae_step import MaeStep, mae_step_of
from webssl_fast.records import Batch, Features

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


class EncodesEverything(Mae):
    """The same objective from an encoder that computes every token, of which the masked ones are then thrown away."""

    def _encode(self, images_B3HW: Tensor, visible_BV: Tensor) -> Features:
        features = self.backbone([images_B3HW])[0]
        return Features(features.cls_token, take_patches(features.patch_tokens, visible_BV))


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--preset", default="vit_mae_base_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    method, everything = networks(options)
    batch = noise_batch(method, options)
    check(method, batch, options)

    optimizer = Optimizer(
        method,
        OptimConfig(),
        Distributed(torch.device(options.device)),
        num_steps=1000,
        global_batch_size=options.batch,
    )
    sides = {"visible": method, "all_tokens": everything}
    planned = {
        name: mae_step_of(method.config, method.backbone.config, 1, encodes_all=name == "all_tokens") for name in sides
    }
    flops = {
        "step": {name: sum(step.flops().values()) for name, step in planned.items()},
        "encoder": {name: encoder_flops(step) for name, step in planned.items()},
    }
    for part, function in (("step", partial(step, optimizer)), ("encoder", encoder_step)):
        calls: dict[str, Callable] = {name: partial(function, side, batch, options) for name, side in sides.items()}
        timings = time_interleaved(calls, options.repeats, device=options.device)
        visible, all_tokens = timings["visible"], timings["all_tokens"]
        emit(
            f"mae_{part}",
            record=options.record,
            device=options.device,
            preset=options.preset,
            image_size_px=options.image_size,
            num_images=options.batch,
            mask_ratio=options.mask_ratio,
            precision=options.precision,
            threads=options.threads,
            repeats=options.repeats,
            p20_ms=visible.p20_ms,
            p50_ms=visible.p50_ms,
            p80_ms=visible.p80_ms,
            cpu_ms=visible.cpu_ms,
            all_tokens_p50_ms=all_tokens.p50_ms,
            all_tokens_cpu_ms=all_tokens.cpu_ms,
            speedup=all_tokens.p50_ms / visible.p50_ms,
            cpu_speedup=all_tokens.cpu_ms / visible.cpu_ms,
            flops_ratio=flops[part]["all_tokens"] / flops[part]["visible"],
        )


def encoder_flops(step: MaeStep) -> int:
    """Forward and backward of one image."""
    blocks = step.encoder.blocks
    linear = step.encoder.forward_flops + step.encoder.backward_flops
    return linear + blocks.attention_flops + blocks.attention_backward_flops


def networks(options: Namespace) -> tuple[Mae, Mae]:
    """Two methods with the same modules."""
    config = MaeConfig(mask_ratio=options.mask_ratio)
    model = ModelConfig(preset=options.preset, image_size_px=options.image_size)
    with torch.device(options.device):
        method = Mae(config, model, OptimConfig(), num_steps=1000, group_size=1, seed=0)
    with torch.device("meta"):
        everything = EncodesEverything(config, model, OptimConfig(), num_steps=1000, group_size=1, seed=0)
    method.initialize(0)
    everything.backbone, everything.decoder = method.backbone, method.decoder
    return method, everything


def noise_batch(method: Mae, options: Namespace) -> Batch:
    positions = np.arange(options.batch)
    size = (1, options.batch, 3, options.image_size, options.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    batch = Batch(positions, positions, [images], torch.full((options.batch,), -1))
    method.prepare(batch)
    return batch.to(torch.device(options.device))


def check(method: Mae, batch: Batch, options: Namespace) -> None:
    images = batch.crops[0][0][:2]
    every_patch_BN = torch.arange(method.num_patches, device=images.device).expand(2, -1)
    with torch.no_grad(), autocast(options):
        expected = method.backbone([images])[0]
        found = method.backbone([images], visible=[every_patch_BN])[0]
    tolerance = TOLERANCE[options.precision]
    torch.testing.assert_close(found.cls_token, expected.cls_token, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.patch_tokens, expected.patch_tokens, rtol=tolerance, atol=tolerance)


def step(optimizer: Optimizer, method: Mae, batch: Batch, options: Namespace) -> None:
    method.prepare(batch)
    batch = batch.to(torch.device(options.device))
    with autocast(options):
        loss, _ = method.training_step(batch, 0)
    loss.backward()
    optimizer.step(0, loss.detach())


def encoder_step(method: Mae, batch: Batch, options: Namespace) -> None:
    visible = None if isinstance(method, EncodesEverything) else [batch.host["visible_BV"]]
    with autocast(options):
        features = method.backbone([batch.crops[0][0]], visible=visible)[0]
        loss = features.cls_token.float().sum() + features.patch_tokens.float().sum()
    loss.backward()
    method.zero_grad()


def autocast(options: Namespace) -> torch.autocast:
    return torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16")


if __name__ == "__main__":
    main()
