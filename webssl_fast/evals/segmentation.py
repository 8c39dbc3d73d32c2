"""Linear segmentation on a frozen encoder (ADE20K), by DINOv2's protocol "lin." and "+ms" (arXiv 2304.07193, App. B).

Dimensions: B images, D channels, H rows, W columns, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from webssl_fast import schedules
from webssl_fast.config.schema import SegmentationConfig
from webssl_fast.errors import ConfigError
from webssl_fast.evals.dense_features import FeatureMaps
from webssl_fast.evals.dense_heads import SegmentationHead
from webssl_fast.evals.dense_scores import IGNORED, confusion_matrix, segmentation_scores
from webssl_fast.evals.head_training import Ranks, train_head
from webssl_fast.evals.sliding_window import slide
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import DenseSample, EvalResult

WARMUP_START = 1e-6  # share of the learning rate at the first step


def evaluate_segmentation(
    encoder: Encoder,
    config: SegmentationConfig,
    train_batches: Iterable[tuple[Tensor, Tensor]],
    test_samples: Iterable[DenseSample],
    device: torch.device | str,
    ranks: Ranks,
    *,
    seed: int,
    autocast_dtype: torch.dtype | None = None,
    on_prediction: Callable[[DenseSample, Tensor], None] | None = None,
) -> EvalResult:
    """Trains a linear head on patch features and judges it on every test sample.

    train_batches  this rank's (images fp32 [B, 3, H, W] normalised, labels int64 [B, H, W], 255 where none counts),
                   one a step
    test_samples   this rank's
    on_prediction  is given each test sample and its predicted classes, int64 [H, W] on the CPU

    Returns EvalResult("segmentation", {"miou", "pixel_accuracy", "class_accuracy"}), shares over the samples of all
    ranks. Every rank holds the whole encoder. Raises ConfigError for settings that do not fit the encoder.
    """
    device = torch.device(device)
    if config.num_last_blocks > encoder.num_blocks:
        raise ConfigError(
            f"eval.segmentation.num_last_blocks is {config.num_last_blocks}, but {encoder.name} has "
            f"{encoder.num_blocks} blocks"
        )
    blocks = range(encoder.num_blocks - config.num_last_blocks, encoder.num_blocks)
    features = FeatureMaps(encoder, blocks, final_norm=True, autocast_dtype=autocast_dtype)
    head = SegmentationHead(encoder.width * len(blocks), config.num_classes, seed, ranks.sum_).to(device)

    def loss_of(step: int, images: Tensor, labels: Tensor) -> Tensor:
        patches_BDhw, _ = features(images.to(device, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        return cross_entropy(head(patches_BDhw, labels.shape[-2:]), labels)

    train_head(
        head,
        train_batches,
        loss_of,
        lambda step: {"lr": learning_rate(step, config)},
        ranks,
        num_steps=config.num_steps,
        weight_decay=config.weight_decay,
        description="segmentation head",
    )
    confusion_CC = torch.zeros(config.num_classes, config.num_classes, dtype=torch.int64, device=device)
    with torch.no_grad():
        for sample in tqdm(test_samples, desc="segmentation test", unit="image", disable=ranks.rank > 0):
            target = sample.target.to(device)
            predicted = predict(features, head, sample, config, device)
            confusion_CC += confusion_matrix(predicted, target, config.num_classes)
            if on_prediction is not None:
                on_prediction(sample, predicted.cpu())
    return EvalResult("segmentation", segmentation_scores(ranks.sum_(confusion_CC)))


def learning_rate(step: int, config: SegmentationConfig) -> float:
    """Straight down to 0 at the last step, times a linear warm-up."""
    return schedules.polynomial(step, config.lr, 0.0, 1.0, config.num_steps) * schedules.warmup_factor(
        step, WARMUP_START, config.warmup_steps
    )


def cross_entropy(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Mean over all pixels; those of label 255 add nothing to the sum but count in it, as in MMSegmentation 0.27.

    So the mean over ranks is the mean over the global batch, however unlabelled pixels are spread.
    """
    return F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORED, reduction="none").mean()


def predict(
    features: FeatureMaps, head: SegmentationHead, sample: DenseSample, config: SegmentationConfig, device: torch.device
) -> Tensor:
    """Classes int64 [H, W]: the largest mean, over scales and flips, of the probabilities that sliding windows give."""

    def window_logits(windows_B3hw: Tensor) -> Tensor:
        patches_BDhw, _ = features(windows_B3hw)
        return head(patches_BDhw, windows_B3hw.shape[-2:])

    probabilities: Tensor | float = 0.0
    for view in sample.views:
        image_3HW = view.to(device)
        for flipped in (False, True) if config.test_flip else (False,):
            logits_CHW = slide(
                window_logits,
                image_3HW.flip(-1) if flipped else image_3HW,
                config.crop_px,
                config.stride_px,
                config.windows_per_pass,
            )
            size = tuple(sample.target.shape)
            some_CHW = F.interpolate(logits_CHW[None], size, mode="bilinear", align_corners=False)[0].softmax(0)
            probabilities = probabilities + (some_CHW.flip(-1) if flipped else some_CHW)
    assert isinstance(probabilities, Tensor)
    return probabilities.argmax(0)
