"""Scores of predicted maps: of classes over a whole set, of depths image by image.

Dimensions: N pixels, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = 255


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """int64 [C, C]: pixels of each true class (row) by predicted class; those of target 255 do not count.

    Raises ValueError for a class outside [0, C).
    """
    counted = target != IGNORED
    predicted, target = predicted[counted], target[counted]
    if target.numel() and (int(target.max()) >= num_classes or int(target.min()) < 0):
        raise ValueError(
            f"target must hold classes in [0, {num_classes}) or {IGNORED}, "
            f"got {int(target.min())} to {int(target.max())}"
        )
    return torch.bincount(target * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(confusion_CC: Tensor) -> dict[str, float]:
    """Shares in [0, 1] of a confusion matrix, true classes in its rows.

    "miou" is the mean over the classes that are in truth or prediction, "class_accuracy" over those in truth.
    """
    confusion = confusion_CC.double()
    hits, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    union = true + predicted - hits
    return {
        "miou": (hits / union)[union > 0].mean().item(),
        "pixel_accuracy": (hits.sum() / true.sum()).item(),
        "class_accuracy": (hits / true)[true > 0].mean().item(),
    }


def depth_errors(
    predicted_HW: Tensor,
    target_HW: Tensor,
    depth_range_m: tuple[float, float],
    box_px: tuple[int, int, int, int] | None = None,
) -> dict[str, float] | None:
    """Of one image: "rmse" in metres, "abs_rel" (|p - t| / t) and "delta1" (share with max(p/t, t/p) < 1.25).

    Over pixels strictly within `depth_range_m` and inside `box_px` (top, bottom, left, right); None where none is.
    Eigen et al. 2014 define the scores and the box (45, 471, 41, 601) of NYUd.
    """
    if box_px is not None:
        top, bottom, left, right = box_px
        predicted_HW, target_HW = (x[top:bottom, left:right] for x in (predicted_HW, target_HW))
    low, high = depth_range_m
    counted = (target_HW > low) & (target_HW < high)
    if not counted.any():
        return None
    p_N, t_N = predicted_HW[counted].double(), target_HW[counted].double()
    return {
        "rmse": (p_N - t_N).square().mean().sqrt().item(),
        "abs_rel": ((p_N - t_N).abs() / t_N).mean().item(),
        "delta1": (torch.maximum(p_N / t_N, t_N / p_N) < 1.25).double().mean().item(),
    }
