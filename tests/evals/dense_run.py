"""Segmentation and depth on toy data, with as many ranks as torchrun starts; the main one saves the scores."""

import sys
from pathlib import Path

import numpy as np
import torch

from tests.evals.dense_encoder import PixelEncoder
from webssl_fast.config.schema import DepthConfig, SegmentationConfig
from webssl_fast.data.dense_loading import DenseTestLoader, DenseTrainLoader
from webssl_fast.engine import distributed
from webssl_fast.evals.depth import evaluate_depth
from webssl_fast.evals.segmentation import evaluate_segmentation
from webssl_fast.records import DenseSample

SEGMENTATION = SegmentationConfig(
    num_classes=3, crop_px=24, stride_px=16, num_steps=60, warmup_steps=3, global_batch_size=4, lr=0.3
)
DEPTH = DepthConfig(
    num_blocks=4, num_bins=32, test_box_px=None, num_steps=60, warmup_steps=3, loss_warmup_steps=5, lr=0.03,
    global_batch_size=4,
)  # fmt: skip


def toy(rng: np.random.Generator, *, unlabelled: float):
    """Blocks of 4 pixels in three colours: image, classes (255 for a share that differs between images), depths."""
    classes = torch.from_numpy(np.kron(rng.integers(0, 3, (6, 8)), np.ones((4, 4), np.int64)))
    image = torch.eye(3)[classes].permute(2, 0, 1) + 0.1 * torch.from_numpy(rng.standard_normal((3, 24, 32))).float()
    known = torch.from_numpy(rng.random((24, 32)) > unlabelled * rng.random())
    return image, torch.where(known, classes, 255), torch.where(known, 1.0 + 2 * classes, 0.0)


def evaluate(ranks: distributed.Distributed) -> dict[str, float]:
    scores = {}
    for config, target in ((SEGMENTATION, 1), (DEPTH, 2)):

        def draw(_, rng, target=target):
            made = toy(rng, unlabelled=0.5)
            return made[0], made[target]

        def read(i, target=target):
            made = toy(np.random.default_rng([7, i]), unlabelled=0.1)
            return DenseSample(i, made[0], (made[0],), made[target])

        train = DenseTrainLoader(
            draw, 50, purpose="toy", seed=0, num_steps=60, global_batch_size=4, rank=ranks.rank,
            world_size=ranks.world_size,
        )  # fmt: skip
        test = DenseTestLoader(read, 5, rank=ranks.rank, world_size=ranks.world_size)
        judge = evaluate_segmentation if target == 1 else evaluate_depth
        scores.update(judge(PixelEncoder(), config, train, test, ranks.device, ranks, seed=0).scores)
    return scores


if __name__ == "__main__":
    with distributed.start("cpu", num_threads=1) as ranks:
        found = evaluate(ranks)
        if ranks.is_main:
            torch.save(found, Path(sys.argv[1]))
