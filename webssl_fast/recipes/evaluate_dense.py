"""Segmentation and depth of a frozen encoder: data from disk, a trained head, scores and pictures in output_dir."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import DepthConfig, EvalConfig, RunConfig, SegmentationConfig
from webssl_fast.data.dense_loading import DenseBatch, DenseTestLoader, DenseTrainLoader
from webssl_fast.data.depth_data import DepthSplit, DepthTransforms
from webssl_fast.data.pipeline import loader_threads
from webssl_fast.data.segmentation_data import SegmentationSplit, SegmentationTransforms
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals.depth import evaluate_depth
from webssl_fast.evals.segmentation import evaluate_segmentation
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import DenseSample, EvalResult
from webssl_fast.report.dense_pictures import save_depth, save_segmentation


def names_dense_data(config: EvalConfig) -> bool:
    """Whether a config asks for segmentation or depth."""
    return bool(config.segmentation.source or config.depth.source)


def evaluate_dense(encoder: Encoder, config: RunConfig, ranks: Distributed) -> list[EvalResult]:
    """Runs what `config.eval` names data for: segmentation, depth, or both.

    encoder  whole on every rank's device, frozen
    Writes into output_dir `segmentation.json` and `depth.json` (what was judged, by which settings, on how many images,
    the scores, the seconds) and pictures. Raises UserError where the data is incomplete.
    """
    results = []
    if config.eval.segmentation.source:
        results.append(_segmentation(encoder, config, ranks))
    if config.eval.depth.source:
        results.append(_depth(encoder, config, ranks))
    return results


def _segmentation(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    settings = config.eval.segmentation
    _check_batch("eval.segmentation", settings.global_batch_size, 1, ranks)
    train, test = (
        SegmentationSplit.open(settings.source, split, settings.allow_subset) for split in ("training", "validation")
    )
    transforms = SegmentationTransforms(settings, encoder.preprocessing.mean, encoder.preprocessing.std)
    started = time.monotonic()
    result = evaluate_segmentation(
        encoder,
        settings,
        _train_loader(lambda i, rng: transforms.training_crop(*train.read(i), rng), train, settings, config, ranks),
        _test_loader(lambda i: transforms.test_sample(i, *test.read(i)), test, config, ranks),
        ranks.device,
        ranks,
        seed=config.seed,
        autocast_dtype=_autocast_dtype(config),
        on_prediction=_saver(save_segmentation, settings.num_pictures, config),
    )
    _finish(result, encoder, settings, train, test, config, ranks, time.monotonic() - started)
    return result


def _depth(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    settings = config.eval.depth
    _check_batch("eval.depth", settings.global_batch_size, settings.images_per_loss, ranks)
    train, test = (DepthSplit.open(settings.source, split, settings.allow_subset) for split in ("train", "test"))
    transforms = DepthTransforms(settings, encoder.preprocessing.mean, encoder.preprocessing.std)
    started = time.monotonic()
    result = evaluate_depth(
        encoder,
        settings,
        _train_loader(lambda i, rng: transforms.training_crop(*train.read(i), rng), train, settings, config, ranks),
        _test_loader(lambda i: transforms.test_sample(i, *test.read(i)), test, config, ranks),
        ranks.device,
        ranks,
        seed=config.seed,
        autocast_dtype=_autocast_dtype(config),
        on_prediction=_saver(save_depth, settings.num_pictures, config),
    )
    _finish(result, encoder, settings, train, test, config, ranks, time.monotonic() - started)
    return result


def _check_batch(name: str, global_batch_size: int, images_per_loss: int, ranks: Distributed) -> None:
    if global_batch_size % (ranks.world_size * images_per_loss):
        raise ConfigError(
            f"{name}.global_batch_size is {global_batch_size}, which does not divide among {ranks.world_size} ranks in "
            f"whole losses of {images_per_loss} images; start a number of ranks that divides "
            f"{global_batch_size // images_per_loss}"
        )


def _train_loader(
    draw: Callable[[int, np.random.Generator], DenseBatch],
    split: SegmentationSplit | DepthSplit,
    settings: SegmentationConfig | DepthConfig,
    config: RunConfig,
    ranks: Distributed,
) -> DenseTrainLoader:
    assert config.data.prefetch_batches is not None
    return DenseTrainLoader(
        draw,
        len(split),
        purpose=type(settings).__name__,
        seed=config.seed,
        num_steps=settings.num_steps,
        global_batch_size=settings.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch_batches=config.data.prefetch_batches,
        num_threads=_num_threads(config),
    )


def _test_loader(
    read: Callable[[int], DenseSample], split: SegmentationSplit | DepthSplit, config: RunConfig, ranks: Distributed
) -> DenseTestLoader:
    assert config.data.prefetch_batches is not None
    return DenseTestLoader(
        read,
        len(split),
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch_samples=config.data.prefetch_batches,
        num_threads=_num_threads(config),
    )


def _num_threads(config: RunConfig) -> int:
    assert config.data.prefetch_batches is not None
    return loader_threads(config.data, config.data.prefetch_batches, torch.get_num_threads())


def _autocast_dtype(config: RunConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.train.precision == "bf16" else None


def _saver(
    save: Callable[[Path, int, np.ndarray, np.ndarray, np.ndarray], None], num_pictures: int, config: RunConfig
) -> Callable[[DenseSample, Tensor], None]:
    def on_prediction(sample: DenseSample, predicted: Tensor) -> None:
        if sample.index < num_pictures:
            image_HW3 = sample.image.permute(1, 2, 0).numpy()
            save(Path(config.output_dir), sample.index, image_HW3, sample.target.numpy(), predicted.numpy())

    return on_prediction


def _finish(
    result: EvalResult,
    encoder: Encoder,
    settings: SegmentationConfig | DepthConfig,
    train: SegmentationSplit | DepthSplit,
    test: SegmentationSplit | DepthSplit,
    config: RunConfig,
    ranks: Distributed,
    seconds: float,
) -> None:
    if not ranks.is_main:
        return
    content: dict[str, Any] = {
        "evaluation": result.name,
        "encoder": encoder.name,
        "scores": result.scores,
        "data": {
            "source": settings.source,
            "train_images": len(train),
            "test_images": len(test),
            "complete": train.is_complete and test.is_complete,
        },
        "config": settings.model_dump(mode="json"),
        "seed": config.seed,
        "precision": config.train.precision,
        "ranks": ranks.world_size,
        "seconds": round(seconds, 1),
    }
    path = Path(config.output_dir) / f"{result.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    subset = "" if content["data"]["complete"] else ", a SUBSET: not comparable with published scores"
    print(f"{result.name} of {encoder.name}: {len(train)} training, {len(test)} test images{subset}")
    print("\n".join(f"{name:22}{score:>12.4f}" for name, score in result.scores.items()))
