"""Result files and pictures as `webssl eval` leaves them, made on the fly."""

import json
from pathlib import Path

import numpy as np

from webssl_fast.config.load import load_config
from webssl_fast.report.dense_pictures import save_depth, save_segmentation

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "eval"

WEIGHTS = "0f3a" * 16
SCORES = {
    "knn": {"cls_top1": 0.7125, "cls_top5": 0.9, "patch_mean_top1": 0.65, "patch_mean_top5": 0.88},
    "linear_probe": {
        "best_on_val/val_top1": 0.84321,
        "best_on_val/val_top5": 0.97,
        "best_on_val/learning_rate": 0.01,
        "best_on_val/num_blocks": 4.0,
        "chance": 0.001,
        "blocks_1_lr_0.1/val_top1": 0.123,
    },
    "logistic_regression": {"best_on_val/val_top1": 0.8, "best_on_val/C": 0.01, "chance": 0.001, "C_0.1/val_top1": 0.7},
    "segmentation": {"miou": 0.45678, "pixel_accuracy": 0.8, "class_accuracy": 0.55},
    "depth": {"rmse": 0.36549, "abs_rel": 0.1, "delta1": 0.9},
    "alignment": {
        f"{model}/{key}": value
        for model, best in (("SmolLM2-135M", 0.1234), ("Llama-3.1-8B", 0.1725))
        for key, value in (("alignment", best), ("vision_layer", 11.0), ("language_layer", 20.0), ("chance", 10 / 1023))
    },
}
SIZES = {
    "knn": {"train_images": 800, "test_images": 200, "classes": 10},
    "linear_probe": {"train_images": 1_281_167, "val_images": 50_000, "classes": 1000},
    "logistic_regression": {"train_images": 800, "val_images": 200, "classes": 10},
    "segmentation": {"train_images": 20_210, "test_images": 2000, "complete": True},
    "depth": {"train_images": 24_231, "test_images": 654, "complete": True},
    "alignment": {"pairs": 1024, "complete": True},
}
SOURCES = {
    "knn": {"train_source": "photos/train", "test_source": "photos/test"},
    "linear_probe": {"train_source": "imagenet/train", "val_source": "imagenet/val", "test_source": ""},
    "logistic_regression": {"train_source": "photos/train", "val_source": "photos/val", "test_source": ""},
    "alignment": {"source": "data/wit_1024.parquet"},
}
CONFIGS_OF = {
    "segmentation": ("ade20k_linear", "ade20k_multiscale"),
    "depth": ("nyud_lin1", "nyud_lin4"),
    "linear_probe": ("imagenet1k_linear_probe",),
}


def content_of(evaluation: str, *, encoder: str = "vit_small", sha256: str = WEIGHTS, **changes) -> dict:
    """A result on the whole data; `evaluation` may be a config of configs/eval/, whose settings it then has."""
    config = SOURCES.get(evaluation, {})
    for name, configs in CONFIGS_OF.items():
        if evaluation in configs:
            config = getattr(load_config(CONFIGS / f"{evaluation}.yaml").eval, name).model_dump(mode="json")
            evaluation = name
    content = {
        "evaluation": evaluation,
        "encoder": {"name": encoder, "source": f"runs/{encoder}", "sha256": sha256},
        "scores": SCORES[evaluation],
        "data": SIZES[evaluation],
        "config": config,
        "image_size_px": 224,
        "seed": 0,
        "precision": "bf16",
        "ranks": 2,
        "seconds": 61.25,
        "date": "2026-11-24",
        "torch": "2.13.0",
    }
    return content | changes


def write_result(directory: Path, evaluation: str, **changes) -> Path:
    content = content_of(evaluation, **changes)
    path = directory / "eval" / f"{content['evaluation']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return directory


def write_pictures(directory: Path, num: int = 2) -> None:
    rng = np.random.default_rng(0)
    classes = np.indices((60, 80)).sum(0) // 20
    depth = np.linspace(0.5, 9.5, 60 * 80).reshape(60, 80)
    for i in range(num):
        image = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        save_segmentation(directory / "eval", i, image, classes, np.roll(classes, 7, 1))
        save_depth(directory / "eval", i, image, depth, depth[::-1])
