"""From folders in the official layouts to result files and pictures, and by the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.dense_folders import write_ade, write_nyu
from tests.evals.dense_encoder import PixelEncoder
from webssl_fast.cli import main
from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.recipes.evaluate_dense import evaluate_depth, evaluate_segmentation

ROOT = Path(__file__).parent.parent.parent
ALONE = Distributed(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"num_steps": 3, "warmup_steps": 1, "global_batch_size": 2, "num_pictures": 1, "allow_subset": True}


def config_for(folder: Path, output_dir: Path, *, prefetch_batches: int = 0) -> RunConfig:
    segmentation = {
        "source": str(folder / "ade"),
        "num_classes": 3,
        "short_side_px": 32,
        "crop_px": 24,
        "stride_px": 16,
    }
    depth = {
        "source": str(folder / "nyu"),
        "num_bins": 8,
        "crop_px": [32, 48],
        "train_box_px": None,
        "test_box_px": None,
    }
    config = RunConfig.model_validate(
        {
            "output_dir": str(output_dir),
            "data": {"prefetch_batches": prefetch_batches, "num_threads": 2},
            "train": {"precision": "fp32"},
            "eval": {"segmentation": {**segmentation, **SHORT}, "depth": {**depth, **SHORT}},
        }
    )
    return resolve(config, world_size=1, device="cpu")


def with_segmentation(config: RunConfig, **settings) -> RunConfig:
    changed = config.eval.segmentation.model_copy(update=settings)
    return config.model_copy(update={"eval": config.eval.model_copy(update={"segmentation": changed})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    write_ade(root / "ade")
    write_nyu(root / "nyu")
    return root


def test_results_say_what_was_judged_and_pictures_show_it(folder, tmp_path, caplog):
    config = config_for(folder, tmp_path)
    for evaluate, score in ((evaluate_segmentation, "miou"), (evaluate_depth, "rmse")):
        result = evaluate(PixelEncoder(), config, ALONE)
        assert score in result.scores
        assert result.data == {"train_images": 3, "test_images": 2, "complete": False}
        assert f"{result.name} on a subset" in caplog.text
        pictures = sorted((tmp_path / "eval").glob(f"{result.name}_*.png"))
        assert [path.name for path in pictures] == [
            f"{result.name}_0_{x}.png" for x in ("image", "prediction", "truth")
        ]
        assert all(Image.open(picture).size == (60, 40) for picture in pictures)


def test_equal_seeds_give_equal_scores_whatever_is_read_ahead(folder, tmp_path):
    first, again = (
        [
            evaluate(PixelEncoder(), config_for(folder, tmp_path, prefetch_batches=prefetch), ALONE).scores
            for evaluate in (evaluate_segmentation, evaluate_depth)
        ]
        for prefetch in (0, 2)
    )
    assert first == again


def test_an_incomplete_set_stops_before_anything_is_trained(folder, tmp_path):
    config = with_segmentation(config_for(folder, tmp_path), allow_subset=False)
    with pytest.raises(UserError, match="20,210"):
        evaluate_segmentation(PixelEncoder(), config, ALONE)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_does_not_divide_is_refused(folder, tmp_path):
    ranks = Distributed(torch.device("cpu"), rank=0, world_size=2)
    config = config_for(folder, tmp_path)
    with pytest.raises(ConfigError, match=r"eval.depth.global_batch_size is 2, .* among 2 ranks in whole losses of 2"):
        evaluate_depth(PixelEncoder(), config, ranks)


@pytest.mark.parametrize("name", ["ade20k_linear", "ade20k_multiscale", "nyud_lin1", "nyud_lin4"])
def test_shipped_configs_hold_the_protocols(name):
    config = load_config(ROOT / "configs" / "eval" / f"{name}.yaml").eval
    if name.startswith("ade20k"):
        s, multiscale = config.segmentation, name.endswith("multiscale")
        assert (s.num_classes, s.num_steps, s.warmup_steps, s.global_batch_size) == (150, 40_000, 1500, 16)
        assert (s.lr, s.weight_decay, s.max_class_share) == (1e-3, 1e-4, 0.75)
        assert s.num_last_blocks == (4 if multiscale else 1)
        assert (s.crop_px, s.stride_px) == ((640, 320) if multiscale else (512, 341))
        assert (s.short_side_px, s.max_long_side_px) == ((640, None) if multiscale else (512, 2048))
        assert s.train_scales == ((1.0, 3.0) if multiscale else (0.5, 2.0))
        assert s.test_scales == ((1.0, 1.32, 1.73, 2.28, 3.0) if multiscale else (1.0,))
        assert s.test_flip is multiscale and not config.depth.source
    else:
        d = config.depth
        assert (d.num_blocks, d.num_bins, d.min_depth_m, d.max_depth_m) == (
            4 if name.endswith("4") else 1,
            256,
            1e-3,
            10,
        )
        assert (d.num_steps, d.warmup_steps, d.loss_warmup_steps) == (38_400, 12_800, 100)
        assert (d.global_batch_size, d.images_per_loss, d.pick_best_every) == (16, 2, 800)
        assert (d.lr, d.weight_decay, d.clip_grad_norm, d.max_rotation_degrees) == (1e-4, 0.01, 35, 2.5)
        assert (d.train_box_px, d.crop_px, d.test_box_px) == ((45, 472, 43, 608), (416, 544), (45, 471, 41, 601))
        assert not config.segmentation.source


def test_the_command_line_judges_an_own_run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    common = ["configs/smoke/dinov2.yaml", f"output_dir={tmp_path / 'run'}", "train.num_threads=1"]
    assert main(["train", *common, f"data.source={tmp_path / 'images'}"]) == 0
    settings = {
        **SHORT,
        "source": folder / "ade",
        "num_classes": 3,
        "short_side_px": 40,
        "crop_px": 42,
        "stride_px": 28,
    }
    overrides = [f"eval.segmentation.{key}={str(value).lower()}" for key, value in settings.items()]
    assert main(["eval", *common, *overrides]) == 0
    assert "segmentation (train images: 3, test images: 2, complete: False)" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/eval/segmentation.json").read_text())
    assert result["encoder"]["name"] == "run/step_00000004" and result["config"]["num_classes"] == 3
    assert result["data"]["complete"] is False and 0 <= result["scores"]["miou"] <= 1
    assert main(["eval", *common, *overrides, "eval.segmentation.allow_subset=false"]) == 1
    assert "eval.segmentation.source: found 3 images" in capsys.readouterr().err
