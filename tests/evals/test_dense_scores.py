"""Scores against torchmetrics, and by hand."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from webssl_fast.evals.dense_scores import confusion_matrix, depth_errors, segmentation_scores


@pytest.mark.parametrize("num_classes", [2, 7, 150])
def test_segmentation_scores_match_torchmetrics(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    judges = {
        "miou": MulticlassJaccardIndex(num_classes, ignore_index=255),
        "pixel_accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=255),
        "class_accuracy": MulticlassAccuracy(num_classes, average="macro", ignore_index=255),
    }
    for _ in range(4):  # summed over images, not averaged over their scores
        target = torch.randint(0, num_classes, (60, 90), generator=generator)
        right = torch.rand(60, 90, generator=generator) < 0.4
        predicted = torch.where(right, target, torch.randint(0, num_classes, (60, 90), generator=generator))
        target[:5] = 255
        confusion += confusion_matrix(predicted, target, num_classes)
        for judge in judges.values():
            judge.update(predicted[None], target[None])
    scores = segmentation_scores(confusion)
    assert {name: pytest.approx(judge.compute().item(), abs=1e-6) for name, judge in judges.items()} == scores


def test_absent_classes_do_not_count():
    # Truth 0 0 1 1, predicted 0 2 1 1, of five classes: IoU 1/2, 1, 0 (only predicted); 3 and 4 are nowhere.
    scores = segmentation_scores(confusion_matrix(torch.tensor([0, 2, 1, 1]), torch.tensor([0, 0, 1, 1]), 5))
    assert scores == {"miou": 0.5, "pixel_accuracy": 0.75, "class_accuracy": 0.75}


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"classes in \[0, 3\) or 255, got 0 to 3"):
        confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 3]), 3)


def test_depth_errors_by_hand():
    target = torch.tensor([[2.0, 4.0, 0.0], [10.0, 1.0, 1e-3]])  # 0, 10 and 1e-3 do not count
    predicted = torch.tensor([[1.0, 5.5, 9.0], [1.0, 1.2, 9.0]])
    found = depth_errors(predicted, target, (1e-3, 10.0))
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 2.25 + 0.04) / 3), rel=1e-6)
    assert found["abs_rel"] == pytest.approx((0.5 + 0.375 + 0.2) / 3, rel=1e-6)
    assert found["delta1"] == pytest.approx(1 / 3)


def test_depth_errors_inside_the_box():
    target, predicted = torch.full((480, 640), 2.0), torch.full((480, 640), 9.0)
    predicted[45:471, 41:601] = 3.0
    assert depth_errors(predicted, target, (1e-3, 10.0), (45, 471, 41, 601))["rmse"] == pytest.approx(1.0)
    assert depth_errors(predicted, target, (1e-3, 10.0))["rmse"] > 1.0
    target[45:471, 41:601] = 0
    assert depth_errors(predicted, target, (1e-3, 10.0), (45, 471, 41, 601)) is None
