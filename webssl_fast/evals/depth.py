"""Linear depth estimation on a frozen encoder (NYUd v2), by DINOv2's protocol "lin. 1" and "lin. 4" (arXiv 2304.07193,
App. B), trained by the scale-invariant logarithmic loss alone.

DINOv2's code adds a gradient loss of weight 0.5, but at two images a GPU, as the protocol runs, its indexing makes it
identically zero. It is left out.

Dimensions: B images, G images of one loss, H rows, W columns.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from webssl_fast import schedules
from webssl_fast.config.schema import DepthConfig
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.evals.dense_features import FeatureMaps, spread_blocks
from webssl_fast.evals.dense_heads import DepthHead
from webssl_fast.evals.dense_scores import depth_errors
from webssl_fast.evals.head_training import Ranks, train_head
from webssl_fast.models.encoders import Encoder
from webssl_fast.records import DenseSample, EvalResult

logger = logging.getLogger(__name__)

WARMUP_START, END_SHARE = 1e-3, 1e-8  # shares of the learning rate at the first and the last step
LOG_EPS, MEAN_WEIGHT = 1e-3, 0.15


def evaluate_depth(
    encoder: Encoder,
    config: DepthConfig,
    train_batches: Iterable[tuple[Tensor, Tensor]],
    test_samples: Iterable[DenseSample],
    device: torch.device | str,
    ranks: Ranks,
    *,
    seed: int,
    autocast_dtype: torch.dtype | None = None,
    on_prediction: Callable[[DenseSample, Tensor], None] | None = None,
) -> EvalResult:
    """Trains a linear head on patch and class tokens and judges it on every test sample.

    train_batches  this rank's (images fp32 [B, 3, H, W] normalised, depths fp32 [B, H, W] in metres, 0 where unknown),
                   one a step; B a multiple of config.images_per_loss
    test_samples   this rank's; gone through more than once where config.pick_best_every is set
    on_prediction  is given each test sample and its predicted depths, fp32 [H, W] on the CPU

    Returns EvalResult("depth", {"rmse", "abs_rel", "delta1"}), each the mean of the images' own, over all ranks.
    Every rank holds the whole encoder. Raises ConfigError for settings that do not fit the encoder.
    """
    device = torch.device(device)
    if config.num_blocks > encoder.num_blocks:
        raise ConfigError(
            f"eval.depth.num_blocks is {config.num_blocks}, but {encoder.name} has {encoder.num_blocks} blocks"
        )
    blocks = spread_blocks(encoder.num_blocks, config.num_blocks)
    features = FeatureMaps(encoder, blocks, final_norm=False, autocast_dtype=autocast_dtype)
    depth_range_m = (config.min_depth_m, config.max_depth_m)
    head = DepthHead(encoder.width * len(blocks), config.num_bins, depth_range_m, seed).to(device)

    def loss_of(step: int, images: Tensor, depths: Tensor) -> Tensor:
        depths = depths.to(device, non_blocking=True)
        predicted = head(features(images.to(device, non_blocking=True)), depths.shape[-2:])
        with_variance = step >= config.loss_warmup_steps
        return sig_loss(predicted, depths, config.images_per_loss, with_variance=with_variance)

    def judge(on_prediction: Callable[[DenseSample, Tensor], None] | None = None) -> dict[str, float]:
        return _judge(features, head, config, test_samples, device, ranks, on_prediction)

    best: tuple[float, dict[str, Any]] | None = None

    def keep_best(num_steps: int) -> None:
        nonlocal best
        every = config.pick_best_every
        if every is None or (num_steps % every and num_steps != config.num_steps):
            return
        head.eval()
        abs_rel = judge()["abs_rel"]
        if best is None or abs_rel < best[0]:
            best = (abs_rel, copy.deepcopy(head.state_dict()))

    train_head(
        head,
        train_batches,
        loss_of,
        lambda step: settings_at(step, config),
        ranks,
        num_steps=config.num_steps,
        weight_decay=config.weight_decay,
        clip_grad_norm=config.clip_grad_norm,
        after_step=keep_best,
        description="depth head",
    )
    if best is not None:
        head.load_state_dict(best[1])
    return EvalResult("depth", judge(on_prediction))


def settings_at(step: int, config: DepthConfig) -> dict[str, float]:
    """Half a cosine to almost nothing, times a linear warm-up; AdamW's first beta goes through one cycle."""
    lr = schedules.cosine(step, config.lr, config.lr * END_SHARE, config.num_steps)
    return {
        "lr": lr * schedules.warmup_factor(step, WARMUP_START, config.warmup_steps),
        "momentum": schedules.one_cycle_momentum(step, config.num_steps),
    }


def sig_loss(predicted_BHW: Tensor, target_BHW: Tensor, images_per_loss: int, *, with_variance: bool = True) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2), g = log(p + 1e-3) - log(t + 1e-3) where t > 0 (Eigen et al. 2014).

    Taken over each `images_per_loss` images (variance unbiased), then averaged, so that the objective is the same on
    any number of ranks. A group without a known depth adds nothing. `with_variance` False: without var(g).
    """
    if len(predicted_BHW) % images_per_loss:
        raise ValueError(f"a batch of {len(predicted_BHW)} images does not divide into losses of {images_per_loss}")
    p_GN, t_GN = (x.float().reshape(-1, images_per_loss * x[0].numel()) for x in (predicted_BHW, target_BHW))
    known_GN = t_GN > 0
    count_G = known_GN.sum(1)
    g_GN = torch.where(known_GN, (p_GN + LOG_EPS).log() - (t_GN + LOG_EPS).log(), 0.0)
    mean_G = g_GN.sum(1) / count_G.clamp_min(1)
    square_G = MEAN_WEIGHT * mean_G.square()
    if with_variance:
        deviations_GN = torch.where(known_GN, g_GN - mean_G[:, None], 0.0)
        square_G = square_G + deviations_GN.square().sum(1) / (count_G - 1).clamp_min(1)
    # The clamp's gradient is 0 where the root's would be infinite: in a group that is matched exactly, or empty.
    return square_G.clamp_min(1e-12).sqrt().mul(count_G > 0).mean()


def predict(features: FeatureMaps, head: DepthHead, sample: DenseSample, device: torch.device) -> Tensor:
    """Depths fp32 [H, W] in metres: the mean of the image's and its mirror image's, clamped to the head's range."""
    image_3HW = sample.views[0].to(device)
    both_BHW = head(features(torch.stack([image_3HW, image_3HW.flip(-1)])), tuple(sample.target.shape))
    both_BHW = both_BHW.clamp(*head.depth_range_m)
    return (both_BHW[0] + both_BHW[1].flip(-1)) / 2


@torch.no_grad()
def _judge(
    features: FeatureMaps,
    head: DepthHead,
    config: DepthConfig,
    test_samples: Iterable[DenseSample],
    device: torch.device,
    ranks: Ranks,
    on_prediction: Callable[[DenseSample, Tensor], None] | None,
) -> dict[str, float]:
    errors: list[dict[str, float] | None] = []
    for sample in tqdm(test_samples, desc="depth test", unit="image", disable=ranks.rank > 0, leave=False):
        predicted = predict(features, head, sample, device)
        errors.append(depth_errors(predicted, sample.target.to(device), head.depth_range_m, config.test_box_px))
        if on_prediction is not None:
            on_prediction(sample, predicted.cpu())
    everywhere = [error for some in ranks.gather(errors) for error in some]
    judged = [error for error in everywhere if error is not None]
    if not judged:
        raise UserError(
            f"eval.depth: none of {len(everywhere)} test images has a depth between {config.min_depth_m} and "
            f"{config.max_depth_m} m inside eval.depth.test_box_px={config.test_box_px}"
        )
    if len(judged) < len(everywhere):
        logger.warning("%d of %d test images have no depth to judge by", len(everywhere) - len(judged), len(everywhere))
    return {name: sum(error[name] for error in judged) / len(judged) for name in judged[0]}
