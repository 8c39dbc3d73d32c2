"""`webssl eval` with `eval.segmentation` or `eval.depth`: data from disk, a trained head, scores and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from webssl_fast.config.schema import DepthConfig, RunConfig, SegmentationConfig
from webssl_fast.data.dense_loading import DenseTestLoader, DenseTrainLoader
from webssl_fast.data.depth_data import DepthSplit, DepthTransforms
from webssl_fast.data.pipeline import loader_threads
from webssl_fast.data.segmentation_data import SegmentationSplit, SegmentationTransforms
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals import depth, segmentation
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import DenseSample, EvalResult
from webssl_fast.report.dense_pictures import save_depth, save_segmentation


def evaluate_segmentation(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """Trains and judges the head of eval.segmentation; pictures go to output_dir/eval.

    encoder  whole on every rank's device, frozen
    Raises UserError where data is incomplete, before anything is trained.
    """
    return _run(_segmentation(encoder, config.eval.segmentation, ranks), encoder, config, ranks)


def evaluate_depth(encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    """The same of eval.depth."""
    return _run(_depth(encoder, config.eval.depth, ranks), encoder, config, ranks)


@dataclass(frozen=True)
class _Task:
    name: str
    evaluate: Callable[..., EvalResult]
    settings: SegmentationConfig | DepthConfig
    train: SegmentationSplit | DepthSplit
    test: SegmentationSplit | DepthSplit
    transforms: SegmentationTransforms | DepthTransforms
    save: Callable[[Path, int, np.ndarray, np.ndarray, np.ndarray], None]


def _segmentation(encoder: Encoder, settings: SegmentationConfig, ranks: Distributed) -> _Task:
    _check_batch("eval.segmentation", settings.global_batch_size, 1, ranks)
    train, test = (
        SegmentationSplit.open(settings.source, split, settings.num_classes, settings.allow_subset)
        for split in ("training", "validation")
    )
    transforms = SegmentationTransforms(settings, encoder.preprocessing.mean, encoder.preprocessing.std)
    return _Task(
        "segmentation", segmentation.evaluate_segmentation, settings, train, test, transforms, save_segmentation
    )


def _depth(encoder: Encoder, settings: DepthConfig, ranks: Distributed) -> _Task:
    _check_batch("eval.depth", settings.global_batch_size, settings.images_per_loss, ranks)
    train, test = (DepthSplit.open(settings.source, split, settings.allow_subset) for split in ("train", "test"))
    transforms = DepthTransforms(settings, encoder.preprocessing.mean, encoder.preprocessing.std)
    return _Task("depth", depth.evaluate_depth, settings, train, test, transforms, save_depth)


def _check_batch(name: str, global_batch_size: int, images_per_loss: int, ranks: Distributed) -> None:
    if global_batch_size % (ranks.world_size * images_per_loss):
        raise ConfigError(
            f"{name}.global_batch_size is {global_batch_size}, which does not divide among {ranks.world_size} ranks in "
            f"whole losses of {images_per_loss} images; start a number of ranks that divides "
            f"{global_batch_size // images_per_loss}"
        )


def _run(task: _Task, encoder: Encoder, config: RunConfig, ranks: Distributed) -> EvalResult:
    # A file of another kind shows now, not after the training.
    task.transforms.training_crop(*task.train.read(0), np.random.default_rng(0))
    task.test.read(0)
    prefetch_batches = config.data.prefetch_batches
    assert prefetch_batches is not None
    num_threads = loader_threads(config.data, prefetch_batches, torch.get_num_threads())
    train_loader = DenseTrainLoader(
        lambda index, rng: task.transforms.training_crop(*task.train.read(index), rng),
        len(task.train),
        purpose=task.name,
        seed=config.seed,
        num_steps=task.settings.num_steps,
        global_batch_size=task.settings.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch_batches=prefetch_batches,
        num_threads=num_threads,
    )
    test_loader = DenseTestLoader(
        lambda index: task.transforms.test_sample(index, *task.test.read(index)),
        len(task.test),
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch_samples=prefetch_batches,
        num_threads=num_threads,
    )

    def save_picture(sample: DenseSample, predicted: Tensor) -> None:
        if sample.index < task.settings.num_pictures:
            image_HW3 = sample.image.permute(1, 2, 0).numpy()
            task.save(
                Path(config.output_dir) / "eval", sample.index, image_HW3, sample.target.numpy(), predicted.numpy()
            )

    result = task.evaluate(
        encoder,
        task.settings,
        train_loader,
        test_loader,
        ranks.device,
        ranks,
        seed=config.seed,
        autocast_dtype=torch.bfloat16 if config.train.precision == "bf16" else None,
        on_prediction=save_picture,
    )
    complete = task.train.is_complete and task.test.is_complete
    sizes = {"train_images": len(task.train), "test_images": len(task.test), "complete": complete}
    return EvalResult(result.name, result.scores, sizes)
