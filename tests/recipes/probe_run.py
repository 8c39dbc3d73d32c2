"""A linear probe of an untrained network on scikit-learn's digits (1797 scans of 8 x 8, UCI ML repository), in this
process or as a command, plain or under torchrun:

    python -m tests.recipes.probe_run DIGITS OUTPUT JSON
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import EvalConfig, LinearProbeConfig, LogisticRegressionConfig, ModelConfig, RunConfig
from webssl_fast.engine import distributed
from webssl_fast.evals.probe_heads import ProbeHeads
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.recipes.evaluate_linear_probe import evaluate_linear_probe
from webssl_fast.records import EvalResult

SPLITS = {"train": range(0, 1197), "val": range(1197, 1497), "test": range(1497, 1797)}
SMALL = {
    "num_steps": 12,
    "batch_size": 64,
    "encode_batch_size": 32,
    "save_every": 4,
    "num_blocks": (1, 2),
    "learning_rates": (0.01, 0.1, 0.3),
}


def write_digits(folder: Path) -> Path:
    """<folder>/{train,val,test}/<digit>/*.png of 32 x 32 pixels; writers of the three differ."""
    digits = load_digits()
    for split, numbers in SPLITS.items():
        for i in numbers:
            pixels = (digits.images[i] * 255 / 16).astype(np.uint8)
            path = folder / split / str(digits.target[i]) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(path)
    return folder


def untrained_encoder(seed: int = 0, preset: str = "vit_tiny_patch14", image_size_px: int = 28) -> BackboneEncoder:
    model = ModelConfig(preset=preset, image_size_px=image_size_px, layer_scale_init=0.3)
    backbone = VisionTransformer(model)
    backbone.initialize(seed, "backbone")
    return BackboneEncoder(backbone, f"untrained {preset}").eval().requires_grad_(False)


def probe_config(digits: Path, output: Path, world_size: int = 1, **settings) -> RunConfig:
    sources = {f"{split}_source": str(digits / split) for split in SPLITS}
    config = RunConfig(
        output_dir=str(output),
        eval=EvalConfig(
            linear_probe=LinearProbeConfig(**{**sources, **settings}),
            logistic_regression=LogisticRegressionConfig(**sources),
        ),
    )
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    return resolve(config, world_size=world_size, device="cpu")


def run_probe(
    digits: Path, output: Path, stop_at_step: int | None = None, stop_signal: int = signal.SIGTERM, **settings
) -> EvalResult:
    """stop_at_step: the last rank sends itself `stop_signal` before that step."""
    with distributed.start("cpu", num_threads=1) as ranks:
        config = probe_config(digits, output, ranks.world_size, **{**SMALL, **settings})
        if stop_at_step is not None and ranks.rank == ranks.world_size - 1:
            _send_signal_at(stop_at_step, stop_signal)
        return evaluate_linear_probe(untrained_encoder(preset="vit_nano_patch14"), config, ranks)


def _send_signal_at(stop_at_step: int, stop_signal: int) -> None:
    take_step, steps = ProbeHeads.step, itertools.count()

    def step(self, *arguments, **options):
        if next(steps) == stop_at_step:
            os.kill(os.getpid(), stop_signal)
        return take_step(self, *arguments, **options)

    ProbeHeads.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    result = run_probe(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
    print(json.dumps(result.scores))
