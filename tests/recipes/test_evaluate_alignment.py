"""Alignment of an untrained vision transformer with a real language model on tiles of real photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import packaged
from tests.recipes.captioned import DESCRIPTIONS, PHRASES
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import AlignmentConfig, EvalConfig, ModelConfig, RunConfig
from webssl_fast.data.sample import make_sample_data
from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.vit import VisionTransformer
from webssl_fast.recipes.evaluate_alignment import evaluate_alignment

HERE = Distributed(torch.device("cpu"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tiles of each photograph, each with a caption of its own."""
    root = tmp_path_factory.mktemp("pairs")
    make_sample_data(root / "tiles")
    (root / "captioned").mkdir()
    for name, description in DESCRIPTIONS.items():
        for i in range(8):
            tile = root / "captioned" / f"{name}-{i}.jpg"
            shutil.copy(root / "tiles" / "train" / name / f"{i:03d}.jpg", tile)
            tile.with_suffix(".txt").write_text(f"{PHRASES[i % 4].format(description)} {i}")
    return root / "captioned"


@pytest.fixture(scope="module")
def language_model() -> str:
    return str(packaged.minilm())


@pytest.fixture(scope="module")
def encoder() -> BackboneEncoder:
    backbone = VisionTransformer(ModelConfig(preset="vit_tiny_patch14", image_size_px=56, layer_scale_init=0.3))
    backbone.initialize(0, "backbone")
    return BackboneEncoder(backbone, "untrained").eval()


def run_config(**settings) -> RunConfig:
    config = RunConfig(eval=EvalConfig(alignment=AlignmentConfig(**settings)))
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    return resolve(config, world_size=1, device="cpu")


def test_is_above_chance_with_a_real_language_model(encoder: BackboneEncoder, pairs: Path, language_model: str):
    config = run_config(source=str(pairs), language_models=(language_model,), language_precision="fp32")
    result = evaluate_alignment(encoder, config, HERE)
    assert result.scores["model/chance"] == pytest.approx(10 / 127)
    assert result.scores["model/alignment"] > 2 * result.scores["model/chance"]


def test_is_at_chance_with_captions_of_other_images(
    encoder: BackboneEncoder, pairs: Path, language_model: str, tmp_path: Path
):
    images = sorted(pairs.glob("*.jpg"))
    for image, other in zip(images, np.random.default_rng(0).permutation(len(images)), strict=True):
        shutil.copy(image, tmp_path)
        shutil.copy(images[other].with_suffix(".txt"), tmp_path / image.with_suffix(".txt").name)
    config = run_config(source=str(tmp_path), language_models=(language_model,), language_precision="fp32")
    scores = evaluate_alignment(encoder, config, HERE).scores
    assert scores["model/alignment"] < 1.5 * scores["model/chance"], "the best of 12 x 7 pairs of layers"


@pytest.mark.nightly
def test_is_above_chance_with_a_decoder(encoder: BackboneEncoder, pairs: Path):
    """SmolLM2-135M-Instruct, 31 layers; its tokenizer alone takes half a minute to convert."""
    weights = packaged.smollm2()
    config = run_config(source=str(pairs), language_models=(str(weights),), language_precision="fp32")
    scores = evaluate_alignment(encoder, config, HERE).scores
    assert scores[f"{weights.name}/alignment"] > 2 * scores[f"{weights.name}/chance"]


def test_a_pair_without_its_image_is_an_error(
    encoder: BackboneEncoder, pairs: Path, language_model: str, tmp_path: Path
):
    for image in sorted(pairs.glob("*.jpg"))[:12]:
        shutil.copy(image, tmp_path)
        shutil.copy(image.with_suffix(".txt"), tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    (tmp_path / "broken.txt").write_text("nothing")
    with pytest.raises(UserError, match="1 images cannot be decoded, and every caption needs its image"):
        evaluate_alignment(encoder, run_config(source=str(tmp_path), language_models=(language_model,), k=2), HERE)


def test_rejects_missing_settings(encoder: BackboneEncoder, pairs: Path):
    with pytest.raises(ConfigError, match="eval.alignment.source is empty"):
        evaluate_alignment(encoder, run_config(language_models=("x",)), HERE)
    with pytest.raises(ConfigError, match="eval.alignment.language_models is empty"):
        evaluate_alignment(encoder, run_config(source=str(pairs)), HERE)
