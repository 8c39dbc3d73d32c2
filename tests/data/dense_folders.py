"""Small folders in the layouts of ADE20K and NYUd v2."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_ade(root: Path, counts=None, size=(40, 60), num_classes=3) -> Path:
    """Random images whose labels follow brightness; `counts` images a split."""
    rng = np.random.default_rng(0)
    for split, count in (counts or {"training": 3, "validation": 2}).items():
        for i in range(count):
            coarse = rng.integers(0, 256, (size[0] // 10, size[1] // 10), dtype=np.uint8)
            image = np.kron(coarse, np.ones((10, 10), np.uint8))
            labels = 1 + image.astype(int) * num_classes // 256
            labels[:3] = 0
            save_ade(root, split, f"ADE_{i:08d}", np.repeat(image[..., None], 3, 2), labels)
    return root


def save_ade(root: Path, split: str, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Labels as the set has them: 0 nothing, 1 the first class."""
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{name}.png")
    Image.fromarray(labels.astype(np.uint8)).save(root / "annotations" / split / f"{name}.png")


def write_nyu(root: Path, counts=None, size=(40, 60)) -> Path:
    """Images whose depth follows brightness."""
    rng = np.random.default_rng(0)
    for split, count in (counts or {"train": 3, "test": 2}).items():
        for i in range(count):
            coarse = rng.integers(20, 256, (size[0] // 10, size[1] // 10), dtype=np.uint8)
            image = np.kron(coarse, np.ones((10, 10), np.uint8))
            save_nyu(root, split, f"{split}/{i:05d}", np.repeat(image[..., None], 3, 2), image / 50)
    return root


def save_nyu(root: Path, split: str, name: str, image: np.ndarray, depth_m: np.ndarray) -> None:
    """Adds a pair to nyu_{split}.txt, with the slash that the published list has."""
    image_name, depth_name = f"{name}_rgb.png", f"{name}_depth.png"
    (root / image_name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.astype(np.uint8)).save(root / image_name)
    Image.fromarray((depth_m * 1000).round().astype(np.uint16)).save(root / depth_name)
    with (root / f"nyu_{split}.txt").open("a") as file:
        file.write(f"/{image_name} /{depth_name} 518.8579\n")
