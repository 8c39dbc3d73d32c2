"""Losses of pairs of an image and a text, as pure functions of one rank's share and of what it is compared with.

The mean over the ranks of a loss is the loss of the joint batch, and the mean of the gradients its gradient.

Dimensions: B pairs of this rank, G pairs of all ranks, C texts of another rank, D width. Features have unit length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(
    image_BD: Tensor, text_BD: Tensor, image_GD: Tensor, text_GD: Tensor, first_pair: int, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy (arXiv 2103.00020, Figure 3): each image picks its text among those of all ranks,
    and each text its image; the mean of the two. And the share of images that pick right.

    Features in fp32 or fp64; `first_pair`: which of the G pairs is the first of these B; `scale`: the factor of the
    cosines, a scalar. Returns two scalars.
    """
    label_B = torch.arange(first_pair, first_pair + len(image_BD), device=image_BD.device)
    by_image_BG = scale * image_BD @ text_GD.T
    by_text_BG = scale * text_BD @ image_GD.T
    loss = (F.cross_entropy(by_image_BG, label_B) + F.cross_entropy(by_text_BG, label_B)) / 2
    return loss, (by_image_BG.detach().argmax(1) == label_B).float().mean()


def sigmoid_pairs(image_BD: Tensor, text_CD: Tensor, scale: Tensor, bias: Tensor, *, matching: bool) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343, equation 1) of B images with the C texts of one rank: the sum over all pairs of
    -log sigmoid(z (scale cosine + bias)), divided by B; z is 1 for pair (i, i) if `matching`, and -1 otherwise.

    The loss of B images is the sum of this over the ranks' texts. Returns a scalar.
    """
    logits_BC = scale * image_BD @ text_CD.T + bias
    sign_BC = -torch.ones_like(logits_BC)
    if matching:
        sign_BC.fill_diagonal_(1.0)
    return -F.logsigmoid(sign_BC * logits_BC).sum() / len(image_BD)
