"""The losses of pairs against their formulas, written out pair by pair in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from webssl_fast.methods.contrastive_losses import contrastive, sigmoid_pairs

SCALE, BIAS = 7.5, -3.25


@pytest.fixture
def pairs():
    """12 pairs of unit length in 5 dimensions, fp64."""
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(12, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))


def clip_by_hand(images, texts) -> float:
    total, G = 0.0, len(images)
    for i in range(G):
        of_image = [SCALE * float(images[i] @ texts[j]) for j in range(G)]
        of_text = [SCALE * float(images[j] @ texts[i]) for j in range(G)]
        for logits in (of_image, of_text):
            total += math.log(sum(math.exp(value - logits[i]) for value in logits))
    return total / (2 * G)


def siglip_by_hand(images, texts) -> float:
    total, G = 0.0, len(images)
    for i in range(G):
        for j in range(G):
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (SCALE * float(images[i] @ texts[j]) + BIAS)))
    return total / G


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_contrastive_is_the_formula_whatever_the_number_of_ranks(pairs, num_ranks):
    images, texts = pairs
    share = len(images) // num_ranks
    losses, shares_right = zip(
        *(
            contrastive(images[i : i + share], texts[i : i + share], images, texts, i, scalar(SCALE))
            for i in range(0, len(images), share)
        ),
        strict=True,
    )
    assert sum(losses).item() / num_ranks == pytest.approx(clip_by_hand(images, texts), rel=1e-12)
    right = ((images @ texts.T).argmax(1) == torch.arange(len(images))).double().mean()
    assert sum(shares_right).item() / num_ranks == pytest.approx(right.item(), rel=1e-6)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_sigmoid_pairs_are_the_formula_whatever_the_number_of_ranks(pairs, num_ranks):
    images, texts = pairs
    share = len(images) // num_ranks
    parts = range(0, len(images), share)
    total = sum(
        sigmoid_pairs(images[i : i + share], texts[j : j + share], scalar(SCALE), scalar(BIAS), matching=i == j)
        for i in parts
        for j in parts
    )
    assert total.item() / num_ranks == pytest.approx(siglip_by_hand(images, texts), rel=1e-12)


def test_gradients_are_right(pairs):
    images, texts = (t[:4].clone().requires_grad_() for t in pairs)
    scale, bias = (scalar(v).requires_grad_() for v in (SCALE, BIAS))
    assert torch.autograd.gradcheck(lambda i, t, s: contrastive(i, t, i, t, 0, s)[0], (images, texts, scale))
    assert torch.autograd.gradcheck(
        lambda i, t, s, b: sigmoid_pairs(i, t, s, b, matching=True), (images, texts, scale, bias)
    )


def test_right_pairs_cost_less_than_wrong_ones(pairs):
    images, _ = pairs
    right, _ = contrastive(images, images, images, images, 0, scalar(100.0))
    wrong, _ = contrastive(images, images.flip(0), images, images.flip(0), 0, scalar(100.0))
    assert right < 0.2 < wrong
