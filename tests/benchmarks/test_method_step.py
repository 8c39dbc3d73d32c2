"""`bench_step --method` of every method that has no baseline."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_step
from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import MaeConfig, ModelConfig, RunConfig
from webssl_fast.methods import METHODS
from webssl_fast.plan.steps import flops_per_image

SMOKE = Path(__file__).parent.parent.parent / "configs" / "smoke"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dinov2"])
def test_prints_time_rate_and_shares(monkeypatch, capsys, name):
    preset = load_config(SMOKE / f"{name}.yaml").model.preset
    arguments = ["bench_step", "--method", name, "--preset", preset, "--image-size", "84"]
    arguments += ["--text-preset", "text_nano"] if name in ("clip", "siglip") else []
    monkeypatch.setattr(sys, "argv", [*arguments, "--batch", "2", "--repeats", "2", "--threads", "1"])
    num_threads = torch.get_num_threads()
    try:
        bench_step.main()
    finally:
        torch.set_num_threads(num_threads)
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (line["case"], line["method"], line["preset"], line["precision"]) == ("method_step", name, preset, "bf16")
    assert line["images_per_s"] == pytest.approx(2e3 / line["p50_ms"], rel=1e-2)
    assert line["tflop_per_s"] == pytest.approx(line["images_per_s"] * line["tflop_per_image"], rel=1e-2) != 0
    assert list(line["share"]) == ["prepare", "forward", "backward", "optimize", "after_step"]
    assert sum(line["share"].values()) == pytest.approx(1, abs=1e-3) and line["share"]["backward"] > 0.1
    if name == "mae":
        config = RunConfig(method=MaeConfig(), model=ModelConfig(preset=preset, image_size_px=84))
        expected = flops_per_image(resolve(config, world_size=1, device="cpu"), num_ranks=1)
        # A CPU computes attention in bf16 from its formula, with a product less.
        assert line["tflop_per_image"] == pytest.approx(expected / 1e12, rel=1e-2)


@pytest.mark.parametrize(("method", "option"), [("mae", "--prototypes"), ("dinov2", "--image-size")])
def test_an_option_of_another_method_is_refused(monkeypatch, capsys, method, option):
    monkeypatch.setattr(sys, "argv", ["bench_step", "--method", method, option, "64"])
    with pytest.raises(SystemExit):
        bench_step.main()
    assert f"{option} says nothing about --method {method}" in capsys.readouterr().err
