"""The benchmarks of frozen encoders run, and check what they time, at the smallest sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import bench_encode, bench_linear_probe


def lines_of(module, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> list[dict]:
    threads = f"--threads {torch.get_num_threads()} --repeats 1 --device cpu "
    monkeypatch.setattr(sys, "argv", ["bench", *(threads + arguments).split()])
    module.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_linear_probe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    sizes = "--width 16 --classes 5 --batch 6 --preset vit_tiny_patch14 --image-size 28 --step-batch 2"
    heads, step = lines_of(bench_linear_probe, sizes, monkeypatch, capsys)
    assert heads["heads"] == step["heads"] == 52
    assert min(heads[f"{rival}_over_ours"] for rival in ("modules", "one_optimizer", "batched")) > 0
    assert step["separate_probes_over_ours"] > 10


def test_linear_probe_refuses_to_time_what_differs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_linear_probe, "LR_FACTOR", 0.5)
    heads = bench_linear_probe.make_heads(8, 3, "cpu")
    modules = bench_linear_probe.ModuleHeads(heads, 8, 3, "cpu")
    before = {n.removesuffix(".weight"): w.clone() for n, w in heads.state().items() if n.endswith(".weight")}
    features, labels = torch.randn(4, 40), torch.randint(3, (4,))
    heads.step(features, labels, lr_factor=0.51, momentum=0.9)
    modules.step(features, labels)
    with pytest.raises(SystemExit, match="weights differ"):
        bench_linear_probe.check(heads, modules, before)


def test_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 90, 10)).save(tmp_path / f"{i}.jpg")
    sizes = f"--images {tmp_path} --preset vit_nano_patch14 --image-size 28 --batch 4 --precision fp32"
    (line,) = lines_of(bench_encode, sizes, monkeypatch, capsys)
    assert line["num_images"] == 6 and line["images_per_second"] > 0
    assert 0 < line["data_wait_share"] < 1 and 0 < line["gemm_share"] < 1
    # Two blocks of width 64 on 5 tokens, the patch embedding on 4: counted by hand from the shapes of the products.
    tokens, patches, width, hidden = 5, 4, 64, 176
    block = tokens * width * (3 * width + width + 3 * hidden) + 2 * tokens * tokens * width
    expected = 2 * (2 * block + patches * 3 * 14 * 14 * width)
    assert line["gflop_per_image"] == pytest.approx(expected / 1e9, rel=1e-3)
