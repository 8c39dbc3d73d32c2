"""Weighted k-NN on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4; with T = 0.07 as DINO uses it).

Each of the k training images nearest by cosine similarity s votes for its class with weight exp(s / T).

Dimensions: N training images, M test images, D width, K neighbours, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from webssl_fast.config.schema import KnnConfig
from webssl_fast.evals.base import LabelledBatch, extract_features, labelled
from webssl_fast.records import EvalResult

TRAIN_ROWS, TEST_ROWS = 32_768, 512  # one tile of similarities and its sort keys: 16.8 M entries, about 0.3 GiB


def evaluate_knn(
    encoder: nn.Module,
    config: KnnConfig,
    train_batches: Iterable[LabelledBatch],
    test_batches: Iterable[LabelledBatch],
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> EvalResult:
    """k-NN accuracy of a frozen encoder for each of `config.features`.

    Batches are (images [B, 3, S, S], labels int64 [B], sample ids [B]); see `base.extract_features` for the encoder.
    Returns EvalResult("knn", {"cls_top1": ..., "patch_mean_top1": ...}), shares in [0, 1]; `..._top5` as well where
    there are 6 classes or more. Raises UserError for a sample without a label, naming its source.
    """
    names, device = config.features, torch.device(device)
    train, train_labels = extract_features(
        encoder, labelled(train_batches, config.train_source or "eval.knn.train_source"), device, names, autocast_dtype
    )
    test, test_labels = extract_features(
        encoder, labelled(test_batches, config.test_source or "eval.knn.test_source"), device, names, autocast_dtype
    )
    return judge_features(config, train, train_labels, test, test_labels, device)


def judge_features(
    config: KnnConfig,
    train: Mapping[str, Tensor],
    train_labels: Tensor,
    test: Mapping[str, Tensor],
    test_labels: Tensor,
    device: torch.device | str,
) -> EvalResult:
    """What `evaluate_knn` returns, from features [N, D] and [M, D] by name that are computed already."""
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    scores = {}
    for name in config.features:
        found = knn_scores(
            train[name], train_labels, test[name], test_labels, config.k, config.temperature, num_classes, device=device
        )
        scores.update({f"{name}_{score}": value for score, value in found.items()})
    return EvalResult("knn", scores)


@torch.no_grad()
def knn_scores(
    train_features_ND: Tensor,
    train_labels_N: Tensor,
    test_features_MD: Tensor,
    test_labels_M: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    *,
    device: torch.device | str | None = None,
    train_rows: int = TRAIN_ROWS,
    test_rows: int = TEST_ROWS,
) -> dict[str, float]:
    """Share of test images whose class gets the most votes: {"top1": ...}, and {"top5": ...} from 6 classes on.

    Features of any float dtype, on any device; labels int64 in [0, num_classes). They are brought to `device` (default:
    where the training features are) and compared there in tiles of `test_rows` x `train_rows`, in fp32.
    Of equally near training images the one with the lower index is taken, of classes with equal votes the lower class;
    a class without a vote is never right. A k beyond N is cut to N, with a warning.
    """
    _check(train_features_ND, train_labels_N, "train", num_classes)
    _check(test_features_MD, test_labels_M, "test", num_classes)
    if k < 1 or not temperature > 0:
        raise ValueError(f"k must be at least 1 and temperature positive, got k={k}, temperature={temperature}")
    num_train = len(train_features_ND)
    if k > num_train:
        warnings.warn(
            f"k-NN: k={k} but only {num_train} training images; all of them vote. Scores are not comparable with k={k} "
            "elsewhere: lower eval.knn.k or give eval.knn.train_source more images.",
            stacklevel=2,
        )
        k = num_train

    device = torch.device(device) if device is not None else train_features_ND.device
    train_labels_N = train_labels_N.to(device)
    keys_MK = _nearest(train_features_ND, test_features_MD, k, device, train_rows, test_rows)
    within = {"top1": 1, "top5": 5} if num_classes >= 6 else {"top1": 1}
    hits = dict.fromkeys(within, 0)
    for keys_K, labels in zip(keys_MK.split(test_rows), test_labels_M.split(test_rows), strict=True):
        similarities, indices = _unpack(keys_K)
        rank = _rank_of(labels.to(device), similarities, train_labels_N[indices], temperature, num_classes)
        for score, limit in within.items():
            hits[score] += int((rank < limit).sum())
    return {score: count / len(test_labels_M) for score, count in hits.items()}


def _check(features: Tensor, labels: Tensor, name: str, num_classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"{name}_features and {name}_labels must be [rows, D] and [rows] with at least one row, "
            f"got {list(features.shape)} and {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{name}_labels must be in [0, {num_classes}), got {int(labels.min())} to {int(labels.max())}; "
            "an image without a label (-1) cannot be judged by k-NN"
        )
    bad_rows = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad_rows):
        raise ValueError(
            f"{name}_features: {len(bad_rows)} of {len(features)} rows are not finite (first: row {int(bad_rows[0])}); "
            "the encoder's weights or its precision are broken, so there is nothing to compare"
        )


def _nearest(
    train_ND: Tensor, test_MD: Tensor, k: int, device: torch.device, train_rows: int, test_rows: int
) -> Tensor:
    """Keys (see `_pack`) of the k most similar training images of each test image, nearest first: int64 [M, K].

    The outer loop is over the training set, the larger one: each of its rows goes to the device once.
    """
    keys_MK = torch.empty(len(test_MD), 0, dtype=torch.int64, device=device)
    for start in range(0, len(train_ND), train_rows):
        train_unit = F.normalize(train_ND[start : start + train_rows].to(device, torch.float32), dim=1)
        merged = []
        for test_tile, best in zip(test_MD.split(test_rows), keys_MK.split(test_rows), strict=True):
            test_unit = F.normalize(test_tile.to(device, torch.float32), dim=1)
            with torch.autocast(device.type, enabled=False):
                similarities = test_unit @ train_unit.T
            candidates = torch.cat([best, _pack(similarities, start)], dim=1)
            merged.append(candidates.topk(min(k, candidates.shape[1]), dim=1).values)
        keys_MK = torch.cat(merged)
    return keys_MK


def _pack(similarities: Tensor, first_index: int) -> Tensor:
    """One int64 a pair that sorts by similarity, then by lower training index, so that no two are equal.

    `topk` promises nothing about equal values, and duplicates are common in web data. The bits of an fp32, read as an
    integer, sort like the number itself once those of negative numbers are inverted; they fill the upper 32 bits.
    """
    bits = (similarities + 0.0).view(torch.int32)  # + 0.0 makes -0.0 a 0.0
    sortable = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    indices = first_index + torch.arange(similarities.shape[1], device=similarities.device)
    return (sortable << 32) + (0xFFFFFFFF - indices)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities (fp32) and training indices (int64) of `_pack`'s keys."""
    sortable = (keys >> 32).int()
    bits = torch.where(sortable < 0, sortable ^ 0x7FFFFFFF, sortable)
    return bits.view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _rank_of(
    labels_M: Tensor, similarities_MK: Tensor, neighbour_labels_MK: Tensor, temperature: float, num_classes: int
) -> Tensor:
    """How many classes beat the true one, int64 [M]; num_classes where the true one got no vote."""
    # Relative to the nearest: votes keep their order, and a low temperature cannot overflow.
    weights_MK = ((similarities_MK - similarities_MK[:, :1]).double() / temperature).exp()
    votes_MC = torch.zeros(len(labels_M), num_classes, dtype=torch.float64, device=labels_M.device)
    for neighbour in range(weights_MK.shape[1]):  # one at a time: the order of a scatter's sums is undefined on CUDA
        column = slice(neighbour, neighbour + 1)
        votes_MC.scatter_add_(1, neighbour_labels_MK[:, column], weights_MK[:, column])
    own_M1 = votes_MC.gather(1, labels_M[:, None])
    classes = torch.arange(num_classes, device=labels_M.device)
    beaten_by = (votes_MC > own_M1) | ((votes_MC == own_M1) & (classes < labels_M[:, None]))
    return torch.where(own_M1[:, 0] > 0, beaten_by.sum(dim=1), num_classes)
