"""Classification without training: an image's class is the one whose texts are closest (arXiv 2103.00020, section 3.1).

Dimensions: N images, C classes, P prompts of a class, D width of the joint space. Features have unit length.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from webssl_fast.records import EvalResult


def class_directions(prompts_CPD: Tensor) -> Tensor:
    """[C, D]: the mean of a class's prompts, of unit length again."""
    return F.normalize(prompts_CPD.mean(dim=1), dim=-1)


def zero_shot(images_ND: Tensor, classes_CD: Tensor, labels_N: Tensor) -> EvalResult:
    """Shares of images whose class (int64 labels) is the closest ("top1"), or among the five closest ("top5", with more
    than five classes)."""
    closest_NK = (images_ND @ classes_CD.T).topk(min(5, len(classes_CD)), dim=1).indices
    hits_NK = closest_NK == labels_N[:, None]
    scores = {"top1": hits_NK[:, 0].float().mean().item()}
    if len(classes_CD) > 5:
        scores["top5"] = hits_NK.any(dim=1).float().mean().item()
    return EvalResult("zero_shot", scores)
