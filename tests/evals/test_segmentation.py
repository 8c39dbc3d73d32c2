"""The evaluation on features that are known: loss, rate, and the way from windows to classes."""

import pytest
import torch
from torch import nn

from tests.evals.dense_encoder import PixelEncoder
from tests.evals.dense_run import SEGMENTATION, evaluate
from webssl_fast.config.schema import SegmentationConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError
from webssl_fast.evals.dense_features import FeatureMaps
from webssl_fast.evals.segmentation import cross_entropy, evaluate_segmentation, learning_rate, predict
from webssl_fast.records import DenseSample

ALONE = Distributed(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


def test_cross_entropy_averages_over_pixels_that_do_not_count_too():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = 255
    total = 0.0
    for b, y, x in (labels != 255).nonzero().tolist():
        total -= logits[b, :, y, x].log_softmax(0)[labels[b, y, x]].item()
    assert cross_entropy(logits, labels).item() == pytest.approx(total / 40)


def test_learning_rate_of_the_protocol():
    config = SegmentationConfig()
    assert learning_rate(0, config) == pytest.approx(1e-9)
    assert learning_rate(750, config) == pytest.approx(1e-3 * (1 - 750 / 40_000) * (1e-6 + 0.5 * (1 - 1e-6)))
    assert learning_rate(20_000, config) == pytest.approx(5e-4)
    assert learning_rate(39_999, config) == pytest.approx(2.5e-8)


def test_a_head_learns_classes_that_colours_tell():
    scores = evaluate(ALONE)
    assert scores["miou"] > 0.75 and scores["pixel_accuracy"] > 0.85
    assert scores == evaluate(ALONE)  # equal seeds, equal numbers


class ColourHead(nn.Module):
    """The three channels as logits, at the size asked for."""

    def forward(self, features_BDhw, size):
        return nn.functional.interpolate(features_BDhw, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("flip", [False, True])
def test_prediction_averages_probabilities_over_scales_and_flips(flip):
    config = SegmentationConfig(num_classes=3, crop_px=16, stride_px=8, test_flip=flip, windows_per_pass=3)
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.rand(3, *size, generator=generator) for size in ((16, 24), (32, 48)))
    sample = DenseSample(0, torch.zeros(3, 20, 30, dtype=torch.uint8), views, torch.zeros(20, 30, dtype=torch.int64))
    features, device = FeatureMaps(PixelEncoder(), [0], final_norm=False), torch.device("cpu")
    found = predict(features, ColourHead(), sample, config, device)

    def window_logits(view):  # windows of 16 every 8, summed and divided by how many there are
        total, count = torch.zeros_like(view), torch.zeros(view.shape[1:])
        for y in range(0, view.shape[1] - 15, 8):
            for x in range(0, view.shape[2] - 15, 8):
                pooled = nn.functional.avg_pool2d(view[None, :, y : y + 16, x : x + 16], 4)
                total[:, y : y + 16, x : x + 16] += nn.functional.interpolate(pooled, (16, 16), mode="bilinear")[0]
                count[y : y + 16, x : x + 16] += 1
        return nn.functional.interpolate((total / count)[None], (20, 30), mode="bilinear")[0]

    probabilities = torch.zeros(3, 20, 30)
    for view in views:
        probabilities += window_logits(view).softmax(0)
        if flip:
            probabilities += window_logits(view.flip(-1)).softmax(0).flip(-1)
    assert (found == probabilities.argmax(0)).float().mean() > 0.995  # rounding may decide between equals


def test_more_blocks_than_the_encoder_has_are_refused():
    config = SEGMENTATION.model_copy(update={"num_last_blocks": 5})
    with pytest.raises(ConfigError, match="num_last_blocks is 5, but pixels has 4 blocks"):
        evaluate_segmentation(PixelEncoder(), config, [], [], "cpu", ALONE, seed=0)
