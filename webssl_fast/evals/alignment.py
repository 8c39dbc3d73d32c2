"""Alignment of a vision encoder with a language model: how often they agree on what is similar to what.

Huh et al., "The Platonic Representation Hypothesis", arXiv 2405.07987, section 2 and appendix A, as Web-SSL (arXiv
2504.01017, figure 9) measures it: both see the same N image-caption pairs; for each pair of layers, the mutual k-NN
score is the mean share of the k nearest neighbours (by cosine) that the two layers have in common; the alignment is the
best score over all pairs of layers. Chance is k / (N - 1).

Dimensions: N samples, V and L layers of the vision encoder and of the language model, D width, K neighbours.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from webssl_fast.records import EvalResult

Clamp = Literal["per_sample", "exact", "none"]


def alignment(
    vision_NVD: Tensor, language_NLD: Tensor, *, k: int = 10, clamp: Clamp = "per_sample"
) -> tuple[EvalResult, Tensor]:
    """The best mutual k-NN score over all pairs of layers, and the scores [V, L] of all of them.

    vision_NVD, language_NLD  features of the same N samples in the same order; widths may differ, dtypes are widened
    k                         neighbours, 1 <= k < N
    clamp                     how the .95 quantile of magnitudes is taken, beyond which features are cut off: over each
                              sample, then averaged (the authors' default), over everything at once, or not at all

    Raises ValueError where the numbers of samples differ or k does not fit them.
    """
    num_samples = len(vision_NVD)
    if len(language_NLD) != num_samples:
        raise ValueError(f"vision_NVD has {num_samples} samples and language_NLD {len(language_NLD)}; they are pairs")
    if not 1 <= k < num_samples:
        raise ValueError(f"k is {k}; it must be at least 1 and less than the {num_samples} samples")
    scores_VL = mutual_knn(
        _layer_neighbours(clamped(vision_NVD, clamp), k), _layer_neighbours(clamped(language_NLD, clamp), k)
    )
    vision_layer, language_layer = divmod(int(scores_VL.argmax()), scores_VL.shape[1])
    scores = {
        "alignment": scores_VL.max().item(),
        "vision_layer": float(vision_layer),
        "language_layer": float(language_layer),
        "chance": k / (num_samples - 1),
    }
    return EvalResult("alignment", scores), scores_VL


def clamped(features_NLD: Tensor, clamp: Clamp, quantile: float = 0.95) -> Tensor:
    """Features in fp32, cut off at plus and minus one bound for all of them: a few outlying dimensions of language
    models would otherwise decide every cosine."""
    features_NLD = features_NLD.float()
    if clamp == "none":
        return features_NLD
    if clamp == "exact":
        magnitudes = features_NLD.abs().flatten()
        rank = min(int(quantile * magnitudes.numel()), magnitudes.numel() - 1)
        bound = magnitudes.kthvalue(rank + 1).values
    else:
        bound = torch.stack([sample.abs().flatten().quantile(quantile) for sample in features_NLD]).mean()
    return features_NLD.clamp(-bound, bound)


def nearest_neighbours(features_ND: Tensor, k: int) -> Tensor:
    """The k nearest other samples of each by cosine, int64 [N, k]."""
    normalized_ND = F.normalize(features_ND, dim=1)
    similarity_NN = normalized_ND @ normalized_ND.T
    similarity_NN.fill_diagonal_(-torch.inf)
    return similarity_NN.topk(k, dim=1).indices


def mutual_knn(vision_VNK: Tensor, language_LNK: Tensor) -> Tensor:
    """Mean share of common neighbours for each pair of layers, fp32 [V, L], from `nearest_neighbours` of each layer."""
    num_samples, k = vision_VNK.shape[1:]
    vision_VM, language_LM = (_membership(x) for x in (vision_VNK, language_LNK))
    return vision_VM @ language_LM.T / (k * num_samples)


def _layer_neighbours(features_NLD: Tensor, k: int) -> Tensor:
    """Computed once a layer, not once a pair: [L, N, k]."""
    return torch.stack([nearest_neighbours(features_NLD[:, layer], k) for layer in range(features_NLD.shape[1])])


def _membership(neighbours_LNK: Tensor) -> Tensor:
    """1 where sample j is among the neighbours of sample i, fp32 [L, N * N]."""
    num_layers, num_samples, _ = neighbours_LNK.shape
    members_LNN = torch.zeros(num_layers, num_samples, num_samples, device=neighbours_LNK.device)
    return members_LNN.scatter_(2, neighbours_LNK, 1.0).flatten(1)
