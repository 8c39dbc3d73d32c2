"""Images a second of feature extraction, from files to features on disk, beside the ceiling of the matrix products.

    python -m benchmarks.bench_encode --images FOLDER --preset vit_300m_patch14 --batch 256

The extraction is that of `webssl eval`, shards and all. One JSON line: images_per_second; data_wait_share, of the time
spent waiting for decoded images; gemm_share, the encoder's FLOPs (torch's counter on one batch) at that rate over the
rate of one large matrix product of the same precision, measured in the same run. Weights are random, which changes no
time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import webssl_fast.ops.flops  # noqa: F401  torch's counter leaves attention out on a CPU without it
from benchmarks.harness import argument_parser, emit, gemm_tflop_per_s
from webssl_fast.config.schema import DataConfig, ModelConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalBatch, EvalLoader, loader_threads
from webssl_fast.evals.feature_cache import FeatureCache, FrozenFeature, extract_into
from webssl_fast.models.encoders import BackboneEncoder, compile_encoder
from webssl_fast.models.vit import VisionTransformer

GEMM_SHAPE = {"cpu": (2048, 2048, 2048), "cuda": (8192, 8192, 8192)}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class TimedBatches:
    """Passes batches on and adds up the time until each is there."""

    def __init__(self, batches: Iterable[EvalBatch]):
        self._batches, self.wait_seconds, self.num_images = batches, 0.0, 0

    def __iter__(self) -> Iterator[EvalBatch]:
        iterator = iter(self._batches)
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            self.wait_seconds += time.perf_counter() - begin
            if batch is None:
                return
            self.num_images += len(batch.sample_ids)
            yield batch


def gflop_per_image(encoder: BackboneEncoder, batch: int, device: torch.device) -> float:
    images = torch.randn(batch, 3, encoder.image_size_px, encoder.image_size_px, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(images)
    return counter.get_total_flops() / batch / 1e9


def main() -> None:
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("--images", required=True, help="a folder, tar or Parquet pattern of images")
    parser.add_argument("--num-images", type=int, help="the first so many (default: all)")
    parser.add_argument("--preset", default="vit_300m_patch14")
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--compile", action="store_true", help="as eval.compile_encoder does")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)

    with device:
        backbone = VisionTransformer(ModelConfig(preset=arguments.preset, image_size_px=arguments.image_size))
    backbone.initialize(0, "backbone")
    encoder = BackboneEncoder(backbone, arguments.preset).eval().requires_grad_(False)
    gflop = gflop_per_image(encoder, min(arguments.batch, 8), device)  # what is compiled is not counted
    if arguments.compile:
        compile_encoder(encoder)
    features = [FrozenFeature(encoder.num_blocks - 1, "cls"), FrozenFeature(encoder.num_blocks - 1, "patch_mean")]
    index = Index.open(arguments.images)
    sample_ids = np.arange(min(arguments.num_images or len(index), len(index)))
    config = DataConfig()
    prefetch = 4 if device.type == "cuda" else 0  # as config/resolve.py derives it

    def extract() -> tuple[float, float]:
        """Images a second, and the share of the time that went into waiting for them."""
        loader = EvalLoader(
            index,
            config,
            preprocessing=encoder.preprocessing,
            batch_size=arguments.batch,
            sample_ids=sample_ids.tolist(),
            prefetch_batches=prefetch,
            num_threads=loader_threads(config, prefetch, arguments.threads),
        )
        with tempfile.TemporaryDirectory() as folder:
            cache, batches = FeatureCache(Path(folder), {}, sample_ids), TimedBatches(loader)
            begin = time.perf_counter()
            extract_into(
                cache,
                range(cache.num_shards),
                encoder,
                features,
                batches,
                device,
                final_norm=True,
                autocast_dtype=DTYPES[arguments.precision],
            )
            seconds = time.perf_counter() - begin
        return batches.num_images / seconds, batches.wait_seconds / seconds

    extract()  # warms up: decoders, kernels, the files' pages
    runs = [extract() for _ in range(arguments.repeats)]
    images_per_second = statistics.median(rate for rate, _ in runs)
    dtype = DTYPES[arguments.precision] or torch.float32
    ceiling = gemm_tflop_per_s(GEMM_SHAPE[device.type], dtype, repeats=5, device=device)
    emit(
        "encode",
        record=arguments.record,
        device=device,
        compiled=arguments.compile,
        preset=arguments.preset,
        image_px=arguments.image_size,
        precision=arguments.precision,
        batch=arguments.batch,
        num_images=len(sample_ids),
        threads=arguments.threads,
        repeats=arguments.repeats,
        images_per_second=images_per_second,
        data_wait_share=statistics.median(share for _, share in runs),
        gflop_per_image=gflop,
        gemm_tflop_per_s=ceiling,
        gemm_share=images_per_second * gflop / 1e3 / ceiling,
    )


if __name__ == "__main__":
    main()
