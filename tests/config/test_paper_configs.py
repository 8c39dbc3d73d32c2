"""The configs of the paper say what the paper says, and resolve on the GPUs that their headers name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.models.presets import preset
from webssl_fast.plan.steps import STEPS
from webssl_fast.schedules import scaled_lr

FOLDER = Path(__file__).parent.parent.parent / "configs" / "pretrain"
BASES = ("webdino_mc2b", "webmae_mc2b", "clip_mc2b")
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in BASES)
IMAGENET_1K = 1_281_167


def resolved(name: str):
    path = FOLDER / f"{name}.yaml"
    config = load_config(path)
    if config.method.name not in STEPS:
        return resolve(config, world_size=num_ranks(path.read_text()), device="cuda")
    planned = re.search(r"^# webssl plan (\S+) --gpus (\d+)", path.read_text(), re.MULTILINE)
    assert planned, f"{name} must say in its header what webssl plan says of it"
    assert planned[1] == f"configs/pretrain/{path.name}"
    return resolve(config, world_size=int(planned[2]), device="cuda")


def num_ranks(text: str) -> int:
    """Of the header's torchrun."""
    ranks = re.search(r"--nnodes (\d+) --nproc-per-node (\d+)", text)
    return int(ranks[1]) * int(ranks[2]) if ranks else 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_header(path):
    config, text = resolved(path.stem), path.read_text()
    assert config.output_dir == f"runs/{path.stem}"
    assert "arXiv 2504.01017" in text and "not run yet" in text
    assert "DOES NOT FIT" not in text
    # One pass a step: Sinkhorn-Knopp sees the whole batch.
    assert config.train.micro_batch_size * num_ranks(text) == config.train.global_batch_size


@pytest.mark.parametrize("size", ["300m", "1b", "2b", "3b", "5b", "7b"])
def test_sizes(size):
    config = resolved(f"webdino_{size}_mc2b")
    train, optim, method = config.train, config.optim, config.method
    assert config.model.preset == f"vit_{size}_patch14" and config.model.drop_path_rate == 0.4
    assert (train.global_batch_size, optim.warmup_steps, train.num_steps) == (3072, 100_000, 651_042)
    assert scaled_lr(optim.base_lr, train.global_batch_size) == pytest.approx(3.5e-4, rel=0.02)
    assert (optim.min_lr, optim.weight_decay, optim.clip_grad_norm) == (1e-6, (0.04, 0.2), 3.0)
    assert (optim.layerwise_decay, optim.patch_embed_lr_factor, optim.betas) == (1.0, 0.2, (0.9, 0.999))
    assert (method.ema_momentum, method.teacher_temperature) == ((0.994, 1.0), (0.04, 0.07))
    assert (method.teacher_temperature_warmup_steps, method.freeze_last_layer_steps) == (37_500, 1250)
    assert (method.dino_head.bottleneck_dim, method.ibot_head.bottleneck_dim) == (384, 256)
    assert (method.global_crops.size_px, method.local_crops.size_px, method.local_crops.num) == (224, 98, 8)
    assert train.group_size == 12


@pytest.mark.parametrize("size", ["300m", "700m", "1b", "2b", "3b", "5b"])
def test_web_mae_sizes(size):
    config = resolved(f"webmae_{size}_mc2b")
    train, optim, method = config.train, config.optim, config.method
    assert config.model.preset == f"vit_mae_{size}_patch{16 if size == '300m' else 14}"
    assert (train.global_batch_size, optim.warmup_steps) == (4096, 80_000)
    assert 0 <= train.num_steps * train.global_batch_size - 2 * 10**9 < train.global_batch_size
    assert scaled_lr(optim.base_lr, train.global_batch_size, optim.lr_scaling) == pytest.approx(1.6e-3)
    assert (optim.min_lr, optim.weight_decay, optim.clip_grad_norm) == (0.0, (0.05, 0.05), None)
    assert (optim.layerwise_decay, optim.patch_embed_lr_factor, optim.betas) == (1.0, 1.0, (0.9, 0.95))
    assert (method.mask_ratio, method.normalize_pixels, method.crop_scale) == (0.75, True, (0.2, 1.0))
    assert (method.decoder_width, method.decoder_depth, method.decoder_num_heads) == (512, 8, 16)


def test_ijepa_is_its_authors_recipe():
    config = resolved("ijepa_huge_in1k")
    train, optim, method = config.train, config.optim, config.method
    size, steps_per_epoch = preset(config.model.preset), IMAGENET_1K // 2048
    assert (size.width, size.depth, size.num_heads, size.patch_size) == (1280, 32, 16, 14)
    assert (train.global_batch_size, train.num_steps) == (2048, 300 * steps_per_epoch)
    assert optim.warmup_steps == 40 * steps_per_epoch
    assert scaled_lr(optim.base_lr, train.global_batch_size, optim.lr_scaling) == pytest.approx(1e-3)
    assert (optim.min_lr, optim.weight_decay, optim.clip_grad_norm) == (1e-6, (0.04, 0.4), None)
    assert (optim.layerwise_decay, optim.patch_embed_lr_factor, optim.betas) == (1.0, 1.0, (0.9, 0.999))
    assert (method.crop_scale, method.flip_probability, method.num_target_blocks) == ((0.3, 1.0), 0.0, 4)
    assert (method.target_scale, method.target_aspect, method.context_scale) == ((0.15, 0.2), (0.75, 1.5), (0.85, 1.0))
    assert (method.predictor_width, method.predictor_depth, method.predictor_num_heads) == (384, 12, size.num_heads)
    assert (method.ema_momentum, method.loss) == ((0.996, 1.0), "smooth_l1")


@pytest.mark.parametrize("billions", [1, 4, 8])
def test_data_scaling(billions):
    train = resolved(f"webdino_7b_mc2b_{billions}b_samples").train
    assert abs(train.num_steps * train.global_batch_size - billions * 10**9) < train.global_batch_size


@pytest.mark.parametrize("size_px", [378, 518])
def test_high_resolution(size_px):
    config = resolved(f"webdino_7b_mc2b_8b_samples_{size_px}px")
    train, optim = config.train, config.optim
    assert (train.num_steps, train.global_batch_size) == (20_000, 2048)
    assert scaled_lr(optim.base_lr, train.global_batch_size) == pytest.approx(1.41e-5, rel=0.01)
    assert optim.warmup_steps / train.num_steps == 100_000 / 625_000
    assert config.method.global_crops.size_px == config.eval.image_size_px == size_px
    assert config.model.image_size_px == 224, "positions of the first training, interpolated"
    assert config.method.init_from == resolved("webdino_7b_mc2b_8b_samples").output_dir


@pytest.mark.parametrize("size", ["1b", "2b", "3b", "5b"])
def test_imagenet_control(size):
    config = resolved(f"webdino_{size}_in1k")
    epochs = config.train.num_steps * config.train.global_batch_size / IMAGENET_1K
    assert epochs == pytest.approx(300, abs=0.01)
    assert config.optim.warmup_steps / config.train.num_steps == pytest.approx(80 / 500, abs=1e-4)


@pytest.mark.parametrize("share", ["light", "heavy"])
@pytest.mark.parametrize("size", ["1b", "2b", "3b"])
@pytest.mark.parametrize("method", ["webdino", "webmae", "clip"])
def test_text_filtered(method, size, share):
    """The recipe of the whole data at another source: as many samples, so more epochs."""
    path = FOLDER / f"{method}_{size}_mc2b_{share}.yaml"
    config, whole = load_config(path), load_config(FOLDER / f"{method}_{size}_mc2b.yaml")
    assert config.data.subset == f"runs/filter_text_vlm/{share}.subset"
    assert config.model_copy(update={"data": whole.data, "output_dir": whole.output_dir}) == whole
    samples_seen = config.train.num_steps * config.train.global_batch_size
    epochs = samples_seen / (2e9 * {"light": 0.503, "heavy": 0.013}[share])
    assert f"about {epochs:.0f} epochs" in path.read_text()
