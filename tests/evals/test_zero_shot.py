from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from webssl_fast.evals.zero_shot import class_directions, zero_shot


def test_a_class_is_the_mean_of_its_prompts():
    prompts_CPD = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
    torch.testing.assert_close(class_directions(prompts_CPD), torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))


def test_scores_are_counted_by_hand():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(40, 6, generator=generator), dim=1)
    classes = F.normalize(torch.randn(8, 6, generator=generator), dim=1)
    labels = torch.randint(8, (40,), generator=generator)
    top1 = top5 = 0
    for image, label in zip(images, labels.tolist(), strict=True):
        closer = sum(float(image @ other) > float(image @ classes[label]) for other in classes)
        top1, top5 = top1 + (closer < 1), top5 + (closer < 5)
    scores = zero_shot(images, classes, labels).scores
    assert scores == {"top1": pytest.approx(top1 / 40), "top5": pytest.approx(top5 / 40)} and 0 < top1 < top5 < 40
    assert "top5" not in zero_shot(images, classes[:4], labels % 4).scores
