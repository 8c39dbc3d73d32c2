"""`webssl plan` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from webssl_fast.cli import build_parser, main
from webssl_fast.plan.steps import STEPS

ROOT = Path(__file__).parent.parent.parent
SMALL = str(ROOT / "configs" / "pretrain" / "webdino_300m_mc2b.yaml")


def test_prints_what_a_run_takes(capsys):
    assert main(["plan", SMALL, "--gpus", "32", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    for word in ("parameters", "303.7", "teacher", "selective", "prototypes", "GPU-hours", "fits: "):
        assert word in printed


def test_says_what_to_change(capsys):
    assert main(["plan", SMALL, "--gpus", "4", "--gpu", "a100-40", "train.activation_checkpointing=none"]) == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "it would with " in printed
    assert "Smaller passes balance Sinkhorn-Knopp over fewer images" in printed


def test_json_adds_up(capsys):
    assert main(["plan", SMALL, "--gpus", "32", "--json", "--mfu", "0.25"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["mfu"] == 0.25 and plan["fits"] and plan["remedies"] == []
    assert plan["memory_bytes"]["peak"] == max(
        sum(plan["memory_bytes"][k].values()) for k in ("forward_end", "backward_end")
    )
    assert plan["flops_per_image"] == pytest.approx(sum(plan["flops_per_image_by_part"].values()))
    assert plan["peak_bytes_by_checkpointing"]["selective"] == plan["memory_bytes"]["peak"]
    assert plan["days"] == pytest.approx(plan["seconds_per_step"] * plan["num_steps"] / 86400)


def test_an_unknown_gpu_lists_the_known_ones(capsys):
    assert main(["plan", SMALL, "--gpus", "32", "--gpu", "h1000"]) == 1
    assert "known: a100-40, a100-80, b200, h100" in capsys.readouterr().err


def test_settings_may_stand_before_and_after_options():
    args = build_parser().parse_args(["plan", "run.yaml", "seed=1", "--gpus", "2", "train.num_steps=5"])
    assert args.overrides == ["seed=1", "train.num_steps=5"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["plan", "run.yaml", "--gpus", "2", "more"])


def test_plans_pairs_in_parts(capsys):
    config = str(ROOT / "configs" / "pretrain" / "clip_7b_mc2b.yaml")
    assert main(["plan", config, "--gpus", "256"]) == 0
    printed = capsys.readouterr().out
    assert "128 images a pass, 32 of them at once" in printed
    for word in ("text 693.0", "computed again", "text backward ends", "fits: "):
        assert word in printed
    assert "teacher" not in printed
    assert main(["plan", config, "--gpus", "256", "--json", "method.embed_batch_size=128"]) == 0
    plan = json.loads(capsys.readouterr().out)
    found = {change["kind"]: change["overrides"] for change in plan["remedies"]}
    assert found["embed_batch_size"] == ["method.embed_batch_size=32"], "the largest part that fits, of equal ones"
    assert plan["images_at_once"] == 128 and plan["recomputed_flops_per_image"] == 0


def test_a_method_without_a_plan_is_refused(monkeypatch, capsys):
    monkeypatch.delitem(STEPS, "mae")
    assert main(["plan", str(ROOT / "configs" / "pretrain" / "webmae_1b_mc2b.yaml"), "--gpus", "32"]) == 1
    assert "method.name is mae, of which there is no plan; known: dinov2, clip, siglip" in capsys.readouterr().err
