"""Losses as pure functions of tensors. (The prototype losses are the op `prototype_cross_entropy`.)

Dimensions: C groups, G images of a group, D width, R masked or target patches, P pixel values of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo(x_CGD: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko entropy regulariser (Sablayrolles et al., arXiv 1806.03198): -mean log(distance to the
    nearest neighbour of the group + eps), on L2-normalised rows.

    Computed in fp32 whatever the input and autocast say: in fp16 the 1e-8 is 0 and equal rows give infinity. A group
    needs two images (ValueError).
    """
    if x_CGD.shape[1] < 2:
        raise ValueError(f"koleo needs groups of at least 2 images, got {x_CGD.shape[1]}")
    with torch.autocast(x_CGD.device.type, enabled=False):
        x_CGD = F.normalize(x_CGD.float(), dim=-1, eps=eps)
        with torch.no_grad():
            dots_CGG = x_CGD @ x_CGD.transpose(1, 2)
            dots_CGG.diagonal(dim1=1, dim2=2).fill_(-1)
            nearest_CG1 = dots_CGG.argmax(dim=-1, keepdim=True)
        neighbour_CGD = x_CGD.gather(1, nearest_CG1.expand_as(x_CGD))
        distance_CG = (x_CGD - neighbour_CGD + eps).norm(dim=-1)
        return -torch.log(distance_CG + eps).mean()


PIXEL_EPS = 1e-6  # added to the variance of a patch's pixels


def masked_pixel_loss(prediction_RP: Tensor, pixels_RP: Tensor, *, normalize: bool) -> Tensor:
    """MAE's loss (He et al., arXiv 2111.06377, section 3): the mean squared error of the masked patches' pixels.

    normalize  each patch's pixels are compared after (x - mean) / sqrt(variance + 1e-6), the variance being unbiased

    Computed in fp32 whatever the inputs and autocast say.
    """
    with torch.autocast(prediction_RP.device.type, enabled=False):
        target_RP = pixels_RP.float()
        if normalize:
            variance_R1, mean_R1 = torch.var_mean(target_RP, dim=-1, keepdim=True)
            target_RP = (target_RP - mean_R1) * torch.rsqrt(variance_R1 + PIXEL_EPS)
        return F.mse_loss(prediction_RP.float(), target_RP)


def feature_distance(prediction_RD: Tensor, target_RD: Tensor, kind: str) -> Tensor:
    """I-JEPA's loss (Assran et al., arXiv 2301.08243, equation of section 3): how far predicted features are from their
    targets, on average over patches and channels.

    kind  "l2": the square of each difference d (the paper adds up channels, which is a constant factor);
          "smooth_l1" (the authors' code): d^2 / 2 where |d| < 1, |d| - 1/2 beyond (Girshick, arXiv 1504.08083)

    Computed in fp32 whatever the inputs and autocast say.
    """
    with torch.autocast(prediction_RD.device.type, enabled=False):
        distance = {"l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[kind]
        return distance(prediction_RD.float(), target_RD.float())
