"""I-JEPA at toy scale learns: by the mean of its patch tokens, classes of tiles that it has not seen are told apart
better than before training, whatever the seed, and its targets do not collapse. The figures stand in docs/log.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from webssl_fast.data.sample import make_sample_data
from webssl_fast.recipes.pretrain import pretrain

CONFIG = Path(__file__).parent.parent.parent / "configs" / "quickstart_ijepa.yaml"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbours_get_better(tmp_path, seed):
    make_sample_data(tmp_path / "data", seed=0)
    train, test, run = tmp_path / "data/train", tmp_path / "data/test", tmp_path / "run"
    overrides = [f"data.source={train}", f"eval.knn.train_source={train}", f"eval.knn.test_source={test}"]
    overrides += [f"seed={seed}", f"output_dir={run}", "train.device=cpu", "train.num_threads=1"]
    pretrain(CONFIG, overrides)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    neighbours = [line["eval/knn/patch_mean_top1"] for line in lines if "eval/knn/patch_mean_top1" in line]
    logged = [(line["loss"], line["target_deviation"]) for line in lines if "loss" in line]
    print(f"seed {seed}: k-NN {neighbours[0]:.3f} to {neighbours[-1]:.3f}")
    print(f"seed {seed}: loss {logged[0][0]:.3f} to {logged[-1][0]:.3f}, target deviation {logged[-1][1]:.2f}")
    assert neighbours[-1] > neighbours[0] + 0.025
    assert logged[-1][1] > 0.3
