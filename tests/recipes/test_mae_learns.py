"""MAE at toy scale learns: it predicts masked patches of tiles that it has not seen, and its features tell classes
apart, both better than before training, whatever the seed. The figures stand in docs/log.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import TrainLoader
from webssl_fast.data.sample import make_sample_data
from webssl_fast.engine.checkpoint import load_weights
from webssl_fast.engine.distributed import Distributed
from webssl_fast.methods import build_method
from webssl_fast.methods.base import Method
from webssl_fast.recipes.pretrain import pretrain

CONFIG = Path(__file__).parent.parent.parent / "configs" / "quickstart_mae.yaml"
NUM_BATCHES = 10  # all test tiles, once


def masked_patch_loss(method: Method, config: RunConfig, source: Path) -> float:
    """Mean over the crops and masks that seed 0 draws of the images of `source`."""
    with TrainLoader(
        Index.open(str(source)),
        config.data,
        method.crop_recipes(),
        seed=0,
        global_batch_size=64,
        micro_batch_size=64,
        rank=0,
        world_size=1,
        prepare=method.prepare,
        prefetch_batches=0,
        num_threads=1,
        output_dir=config.output_dir,
    ) as loader:
        with torch.no_grad():
            losses = [method.training_step(loader.batch(step, 0), step)[0].item() for step in range(NUM_BATCHES)]
    return sum(losses) / NUM_BATCHES


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_neighbours_get_better(tmp_path, seed):
    make_sample_data(tmp_path / "data", seed=0)
    train, test, run = tmp_path / "data/train", tmp_path / "data/test", tmp_path / "run"
    overrides = [f"data.source={train}", f"eval.knn.train_source={train}", f"eval.knn.test_source={test}"]
    overrides += [f"seed={seed}", f"output_dir={run}", "train.device=cpu", "train.num_threads=1"]
    pretrain(CONFIG, overrides)
    config = resolve(load_config(CONFIG, overrides), world_size=1, device="cpu")
    method = build_method(config)
    method.initialize(seed)
    losses = [masked_patch_loss(method, config, test)]
    load_weights(run, method, Distributed(torch.device("cpu")))
    losses.append(masked_patch_loss(method, config, test))

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    neighbours = [line["eval/knn/cls_top1"] for line in lines if "eval/knn/cls_top1" in line]
    print(f"seed {seed}: held-out loss {losses[0]:.3f} to {losses[1]:.3f}")
    print(f"seed {seed}: k-NN {neighbours[0]:.3f} to {neighbours[-1]:.3f}")
    assert losses[1] < 0.7 * losses[0]
    assert neighbours[-1] > neighbours[0] + 0.08
