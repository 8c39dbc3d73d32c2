"""Multinomial logistic regression on features that are computed once: the quick way to a linear accuracy.

The objective is scikit-learn's, 1/2 |W|^2 + C sum_i CE_i with an unregularised bias, on features brought to mean 0 and
standard deviation 1 by the training images, minimised by L-BFGS; each C starts from the solution of the one before.

Dimensions: N images, D width, C classes (of shapes; C is also the usual name of the inverse regularisation), B rows of
a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from webssl_fast.evals.probe_heads import top_k_hits

TILE_ROWS = 16_384
KS = (1, 5)
GRADIENT_TOLERANCE, CHANGE_TOLERANCE = 1e-6, 1e-9
HISTORY = 10


@dataclass(frozen=True)
class LinearClassifier:
    """fp32, for features as they come: weight_CD and bias_C have the standardisation worked in."""

    weight_CD: Tensor
    bias_C: Tensor

    def hits(self, features_ND: Tensor, labels_N: Tensor) -> list[int]:
        """How many labels are the best class, and among the five best."""
        total = torch.zeros(len(KS), dtype=torch.int64)
        for features_BD, labels_B in zip(features_ND.split(TILE_ROWS), labels_N.split(TILE_ROWS), strict=True):
            logits_BC = F.linear(features_BD.to(self.weight_CD.device), self.weight_CD, self.bias_C)
            total += top_k_hits(logits_BC[None], labels_B.to(logits_BC.device), KS)[0].cpu()
        return total.tolist()


def fit_logistic_regressions(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    inverse_strengths: Sequence[float],
    *,
    max_iterations: int,
    device: torch.device | str = "cpu",
) -> dict[float, LinearClassifier]:
    """One classifier for each C of `inverse_strengths`.

    features_ND  fp32 [N, D], finite, on any device; brought to `device`
    labels_N     int64 [N] in [0, num_classes)
    """
    features_ND, labels_N = features_ND.to(device, torch.float32), labels_N.to(device)
    mean_D, std_D = features_ND.mean(0), features_ND.std(0, correction=0).clamp_min(1e-6)
    weight_CD = torch.zeros(num_classes, features_ND.shape[1], device=device)
    bias_C = torch.zeros(num_classes, device=device)
    found = {}
    for strength in sorted(inverse_strengths):
        optimizer = torch.optim.LBFGS(
            [weight_CD, bias_C],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=GRADIENT_TOLERANCE,
            tolerance_change=CHANGE_TOLERANCE,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def objective(strength: float = strength) -> Tensor:
            """Divided by N * C, which moves no minimum: a mean loss whose gradient has a scale of its own."""
            loss, weight_gradient_CD, bias_gradient_C = _cross_entropy(
                features_ND, mean_D, std_D, labels_N, weight_CD, bias_C
            )
            decay = 1 / (strength * len(labels_N))
            weight_CD.grad = weight_gradient_CD.add_(weight_CD, alpha=decay)
            bias_C.grad = bias_gradient_C
            return loss + 0.5 * decay * weight_CD.square().sum()

        optimizer.step(objective)  # type: ignore[arg-type]  # it takes tensors as well as floats
        scaled_CD = weight_CD / std_D
        found[strength] = LinearClassifier(scaled_CD, bias_C - scaled_CD @ mean_D)
    return found


def _cross_entropy(
    features_ND: Tensor, mean_D: Tensor, std_D: Tensor, labels_N: Tensor, weight_CD: Tensor, bias_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss and its gradients, tile by tile: a million images times a thousand classes are 4 GiB of logits."""
    loss = torch.zeros((), device=weight_CD.device)
    weight_gradient_CD, bias_gradient_C = torch.zeros_like(weight_CD), torch.zeros_like(bias_C)
    for x_BD, labels_B in zip(features_ND.split(TILE_ROWS), labels_N.split(TILE_ROWS), strict=True):
        x_BD = (x_BD - mean_D) / std_D
        log_p_BC = F.linear(x_BD, weight_CD, bias_C).log_softmax(1)
        loss -= log_p_BC.gather(1, labels_B[:, None]).sum()
        error_BC = log_p_BC.exp_()
        error_BC[torch.arange(len(labels_B), device=labels_B.device), labels_B] -= 1
        weight_gradient_CD.addmm_(error_BC.T, x_BD)
        bias_gradient_C += error_BC.sum(0)
    N = len(labels_N)
    return loss / N, weight_gradient_CD / N, bias_gradient_C / N
