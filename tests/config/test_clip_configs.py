"""The configs of CLIP say what the paper says, and resolve on the GPUs that their headers name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.models.presets import text_preset
from webssl_fast.schedules import scaled_lr

FOLDER = Path(__file__).parent.parent.parent / "configs" / "pretrain"
SIZES = ["300m", "1b", "2b", "3b", "5b", "7b"]


def resolved(name: str):
    path = FOLDER / f"{name}.yaml"
    ranks = re.search(r"--nnodes (\d+) --nproc-per-node (\d+)", path.read_text())
    assert ranks, f"{name} must open with the command that runs it"
    num_ranks = int(ranks[1]) * int(ranks[2])
    config = resolve(load_config(path), world_size=num_ranks, device="cuda")
    assert config.train.micro_batch_size * num_ranks == config.train.global_batch_size, "a pass is the whole batch"
    assert config.train.micro_batch_size % config.method.embed_batch_size == 0
    return config


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    config = resolved(f"clip_{size}_mc2b")
    train, optim, method = config.train, config.optim, config.method
    assert config.output_dir == f"runs/clip_{size}_mc2b"
    assert (method.name, config.model.preset) == ("clip", f"vit_{size}_patch14")
    assert config.model.preset == load_config(FOLDER / f"webdino_{size}_mc2b.yaml").model.preset
    assert (train.global_batch_size, optim.warmup_steps, train.num_steps) == (32_768, 2000, 61_035)
    assert scaled_lr(optim.base_lr, train.global_batch_size) == pytest.approx(4e-4, rel=1e-3)
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.98), 1e-6, (0.2, 0.2))
    text = text_preset(method.text.preset)
    assert (text.width, text.depth, text.num_heads, method.joint_dim) == (1280, 32, 20, 1280)
    assert (method.text.context_length, method.text.activation) == (77, "quick_gelu")


@pytest.mark.parametrize("billions", [1, 4, 8])
def test_data_scaling(billions):
    train = resolved(f"clip_7b_mc2b_{billions}b_samples").train
    assert abs(train.num_steps * train.global_batch_size - billions * 10**9) < train.global_batch_size
