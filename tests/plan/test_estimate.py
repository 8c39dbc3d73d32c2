"""Time, fit and what to change, at sizes for which published figures or arithmetic by hand exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.plan_tables import DINOV3_7B, published_mfu
from webssl_fast.config.load import load_config
from webssl_fast.errors import ConfigError
from webssl_fast.plan.estimate import PUBLISHED, Estimate, default_mfu, remedies
from webssl_fast.plan.steps import flops_per_image
from webssl_fast.recipes.plan import planned_run

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "pretrain"
GIB = 2**30


def planned(
    name: str = "webdino_7b_mc2b", num_gpus: int = 256, *overrides: str, gpu: str = "h100", mfu=None
) -> Estimate:
    return planned_run(load_config(CONFIGS / f"{name}.yaml", overrides), "h100", num_gpus, mfu)


def test_parameters_are_counted_on_the_method():
    parameters = planned().parameters
    assert parameters.backbone == 6_450_170_880
    mlps = sum(4096 * 2048 + 2048 + 2048**2 + 2048 + 2048 * d + d for d in (384, 256))
    assert parameters.heads == mlps + 131072 * (384 + 1 + 256 + 1)


def test_flops_of_the_7b_by_hand():
    plan = planned()
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 10928)  # weights of the blocks
    # Drop-path keeps 14 of the 24 global crops of a group of 12 images, and 57 of its 96 local ones.
    kept = (14 * 257 + 57 * 50) / 12
    patches = 2 * 588 * 4096
    assert plan.flops_by_part["student_forward"] == pytest.approx(2 * linear * kept + patches * (2 * 256 + 8 * 49))
    assert plan.flops_by_part["teacher_forward"] == pytest.approx(2 * linear * 2 * 257 + patches * 2 * 256)
    assert plan.flops_per_image == pytest.approx(flops_per_image(plan.config, 256))


def test_time_is_flops_over_the_rate():
    plan = planned(mfu=0.4)
    assert plan.seconds_per_step == pytest.approx(3072 * plan.flops_per_image / (256 * 989.4e12 * 0.4))
    assert plan.gpu_hours == pytest.approx(plan.seconds_per_step * 651_042 * 256 / 3600)
    full = plan.with_checkpointing("full")
    again = 1 + full.recomputed_flops_per_image / full.flops_per_image
    assert 1.2 < again < 1.34
    assert full.seconds_per_step / plan.seconds_per_step == pytest.approx(again)


def test_published_runs_by_our_count_of_flops():
    dinov3 = sum(DINOV3_7B.flops().values()) / DINOV3_7B.num_images
    vit_g = planned("webdino_1b_mc2b", 256).flops_per_image
    by_name = {run.name.split(",")[0]: run.mfu for run in PUBLISHED}
    assert published_mfu("h100", 61_440, 4096e6, dinov3) == pytest.approx(by_name["DINOv3 ViT-7B/16"], abs=0.02)
    assert published_mfu("a100-40", 22_000, 3072 * 625e3, vit_g) == pytest.approx(by_name["DINOv2 ViT-g/14"], abs=0.02)
    assert default_mfu(1024) < default_mfu(1536) < default_mfu(4096)


def test_weights_of_a_7b_on_one_gpu():
    """bf16 weights, gradients and teacher with moments in 8 bits are about 48 GiB, with an fp32 teacher 60."""
    settings = ["train.global_batch_size=12", "train.activation_checkpointing=full", "train.student_weights=bf16"]
    settings.append("optim.implementation=torchao_8bit")
    for teacher, expected in (("bf16", 48), ("fp32", 60)):
        held = planned("webdino_7b_mc2b", 1, *settings, f"train.teacher_weights={teacher}").memory.moments[
            "backward_end"
        ]
        weights = sum(held[name] for name in ("weights", "gradients", "optimizer", "teacher")) / GIB
        assert weights == pytest.approx(expected, rel=0.03)


def test_more_gpus_share_the_weights_and_replicas_do_not():
    few, many = planned(num_gpus=128), planned(num_gpus=256)
    assert few.memory.moments["forward_end"]["optimizer"] == 2 * many.memory.moments["forward_end"]["optimizer"]
    replicated = planned("webdino_7b_mc2b", 256, "train.sharding.num_replicas=2")
    assert replicated.memory.moments["forward_end"]["optimizer"] == few.memory.moments["forward_end"]["optimizer"]


def test_remedies_in_their_order_fit_and_are_the_least():
    config = load_config(CONFIGS / "webdino_7b_mc2b.yaml")
    failed = planned("webdino_7b_mc2b", 64)
    assert not failed.fits
    found = remedies(config, failed)
    assert [remedy.kind for remedy in found] == ["checkpointing", "micro_batch_size", "more GPUs", "8-bit optimizer"]
    assert [remedy.overrides for remedy in found[:3]] == [
        ("train.activation_checkpointing=full",),
        ("train.micro_batch_size=12",),
        (),
    ]
    assert not failed.with_checkpointing("selective").fits and not planned("webdino_7b_mc2b", 128).fits
    assert found[2].estimate.num_gpus == 256
    assert all(remedy.estimate.fits for remedy in found)
    for remedy in found:
        again = planned("webdino_7b_mc2b", remedy.estimate.num_gpus, *remedy.overrides)
        assert again.memory == remedy.estimate.memory


def test_a_7b_on_one_gpu_needs_moments_in_8_bits():
    config = load_config(CONFIGS / "webdino_7b_mc2b.yaml", ["train.global_batch_size=12"])
    found = remedies(config, planned("webdino_7b_mc2b", 1, "train.global_batch_size=12"))
    assert [remedy.kind for remedy in found] == ["8-bit optimizer"]
    assert "optim.implementation=torchao_8bit" in found[0].overrides


@pytest.mark.parametrize(
    ("num_gpus", "overrides", "mfu", "expected"),
    [
        (0, [], None, "--gpus is 0; it must be at least 1"),
        (100, [], None, "does not divide among 100 ranks"),
        (256, [], 1.5, "--mfu is 1.5"),
        (256, ["train.sharding.num_replicas=3"], None, "num_replicas is 3, which does not divide 256 ranks"),
    ],
)
def test_mistakes_are_explained(num_gpus, overrides, mfu, expected):
    with pytest.raises(ConfigError, match=expected):
        planned("webdino_7b_mc2b", num_gpus, *overrides, mfu=mfu)
