"""The loss by hand, the schedule by its formula, and the evaluation on features that are known."""

import math

import numpy as np
import pytest
import torch

from tests.evals.dense_encoder import PixelEncoder
from tests.evals.dense_run import DEPTH, evaluate
from webssl_fast.config.schema import DepthConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError
from webssl_fast.evals.dense_features import FeatureMaps
from webssl_fast.evals.depth import evaluate_depth, predict, settings_at, sig_loss
from webssl_fast.records import DenseSample

ALONE = Distributed(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


def depths(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None]


def test_sig_loss_by_hand():
    # g = log 2, 0, -log 2 but for the 1e-3: mean 0, unbiased variance (log 2)^2; the pixel without depth is left out.
    target = depths([1 - 1e-3, 1 - 1e-3, 1 - 1e-3, 0.0])
    predicted = depths([2 - 1e-3, 1 - 1e-3, 0.5 - 1e-3, 7.0])
    assert sig_loss(predicted, target, 1).item() == pytest.approx(math.log(2), rel=1e-5)
    assert sig_loss(predicted, target, 1, with_variance=False).item() == pytest.approx(0, abs=1e-5)
    # Everything twice as far: variance 0, mean log 2.
    assert sig_loss(2 * target + 1e-3, target, 1).item() == pytest.approx(math.sqrt(0.15) * math.log(2), rel=1e-5)


def test_sig_loss_is_taken_over_its_images_and_then_averaged():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand(4, 3, 5, generator=generator) * 5 for _ in range(2))
    target[target < 1] = 0
    pairs = []
    for first in (0, 2):
        known = target[first : first + 2] > 0
        p, t = (x[first : first + 2][known].double().numpy() for x in (predicted, target))
        g = np.log(p + 1e-3) - np.log(t + 1e-3)
        pairs.append(math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2))
    assert sig_loss(predicted, target, 2).item() == pytest.approx(np.mean(pairs), rel=1e-5)
    with pytest.raises(ValueError, match="batch of 4 images does not divide into losses of 3"):
        sig_loss(predicted, target, 3)


def test_sig_loss_has_finite_gradients_where_nothing_is_known_or_nothing_is_wrong():
    target = torch.stack([torch.zeros(3, 3), torch.full((3, 3), 2.0), torch.full((3, 3), 2.0)])
    predicted = torch.stack([torch.full((3, 3), 5.0), torch.full((3, 3), 2.0), torch.full((3, 3), 4.0)])
    predicted.requires_grad_()
    loss = sig_loss(predicted, target, 1)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss.item() == pytest.approx(math.sqrt(0.15) * math.log(4.001 / 2.001) / 3, rel=1e-3)
    assert torch.isfinite(gradient).all() and (gradient[:2] == 0).all() and (gradient[2] > 0).all()


def test_settings_of_the_protocol():
    config = DepthConfig()
    for step in (0, 5, 6400, 12_800, 30_000, 38_399):
        regular = 1e-12 + (1e-4 - 1e-12) * (1 + math.cos(math.pi * step / 38_400)) / 2
        warm = 1 - (1 - step / 12_800) * (1 - 1e-3) if step < 12_800 else 1.0
        assert settings_at(step, config)["lr"] == pytest.approx(regular * warm, rel=1e-9)
    assert settings_at(0, config)["momentum"] == 0.95
    assert settings_at(11_519, config)["momentum"] == pytest.approx(0.85)


class ColourDepth(torch.nn.Module):
    """Depth is the first channel's patch mean, repeated, as far as a range goes."""

    depth_range_m = (0.2, 0.8)

    def forward(self, features, size):
        patches, _ = features
        return torch.nn.functional.interpolate(patches[:, :1], size, mode="nearest")[:, 0]


def test_prediction_is_the_clamped_mean_of_image_and_mirror_image():
    image = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0))  # ten columns: padded by one on each side
    sample = DenseSample(0, torch.zeros(3, 8, 10, dtype=torch.uint8), (image,), torch.ones(8, 10))
    found = predict(FeatureMaps(PixelEncoder(), [0], final_norm=False), ColourDepth(), sample, torch.device("cpu"))

    def one(view):
        pooled = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(view, (1, 1))[None, :1], 4)
        return torch.nn.functional.interpolate(pooled, (8, 10), mode="nearest")[0, 0].clamp(0.2, 0.8)

    torch.testing.assert_close(found, (one(image) + one(image.flip(-1)).flip(-1)) / 2)
    torch.testing.assert_close(
        predict(
            FeatureMaps(PixelEncoder(), [0], final_norm=False),
            ColourDepth(),
            DenseSample(0, sample.image, (image.flip(-1),), sample.target),
            torch.device("cpu"),
        ),
        found.flip(-1),
    )


def test_a_head_learns_depths_that_colours_tell():
    scores = evaluate(ALONE)
    assert scores["rmse"] < 1.0 and scores["abs_rel"] < 0.3  # a constant has an rmse of 1.6


def test_the_best_head_by_abs_rel_is_kept():
    """Seven steps, then ruin: the head of step 7 is the one that is judged."""
    config = DEPTH.model_copy(update={"num_steps": 14, "warmup_steps": 0, "pick_best_every": 7, "lr": 0.3})

    def batches():
        for step in range(14):
            image = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            yield image, torch.full((4, 8, 8), 3.0 if step < 7 else 9.5)

    test = [DenseSample(0, torch.zeros(3, 8, 8, dtype=torch.uint8), (torch.rand(3, 8, 8),), torch.full((8, 8), 3.0))]
    scores = []
    for every in (7, None):
        kept = config.model_copy(update={"pick_best_every": every})
        result = evaluate_depth(PixelEncoder(), kept, batches(), test, "cpu", ALONE, seed=0)
        scores.append(result.scores["abs_rel"])
    assert scores[0] < scores[1]


def test_no_depth_to_judge_by_is_said():
    test = [DenseSample(0, torch.zeros(3, 8, 8, dtype=torch.uint8), (torch.rand(3, 8, 8),), torch.zeros(8, 8))]
    with pytest.raises(UserError, match="none of 1 test images has a depth"):
        evaluate_depth(PixelEncoder(), DEPTH, [], test, "cpu", ALONE, seed=0)
