import json
import sys

import pytest
import torch

from benchmarks import bench_mae
from tests.methods.tiny import noise_batch, tiny_mae


def test_prints_a_line_for_step_and_encoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    arguments = ["bench_mae", "--device", "cpu", "--preset", "vit_mae_nano_patch14", "--image-size", "56"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--batch", "2", "--repeats", "1", "--threads", "1"])
    num_threads = torch.get_num_threads()
    try:
        bench_mae.main()
    finally:
        torch.set_num_threads(num_threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == ["mae_step", "mae_encoder"]
    assert all(line["p50_ms"] > 0 and line["all_tokens_p50_ms"] > 0 and line["flops_ratio"] > 1 for line in lines)
    assert lines[1]["flops_ratio"] > 3


def test_the_baseline_has_the_loss_of_an_encoder_that_sees_everything():
    """It differs from MAE in what its encoder sees, and in nothing where nothing is masked for it."""
    method = tiny_mae()
    everything = bench_mae.EncodesEverything(
        method.config, method.backbone.config, method.optim, num_steps=1, group_size=1, seed=0
    )
    everything.load_state_dict(method.state_dict())
    batch = noise_batch(method)
    every_patch = torch.arange(16).expand(4, -1)
    with torch.no_grad():
        features = everything._encode(batch.crops[0][0], batch.host["visible_BV"])
        expected = method._encode(batch.crops[0][0], every_patch)
        chosen = torch.stack([p[v] for p, v in zip(expected.patch_tokens, batch.host["visible_BV"], strict=True)])
    torch.testing.assert_close(features.patch_tokens, chosen)
    torch.testing.assert_close(features.cls_token, expected.cls_token)
