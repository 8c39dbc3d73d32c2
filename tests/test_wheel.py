"""A wheel works where there is no checkout: an empty environment, another folder, no build tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from webssl_fast.ops.evidence import kernel_ops

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.nightly

CONFIG = """
output_dir: run
data: {source: photos, decode: {backend: pillow}}
model: {preset: vit_nano_patch14, image_size_px: 56}
method:
  global_crops: {num: 2, size_px: 56, scale: [0.32, 1.0]}
  local_crops: {num: 2, size_px: 28, scale: [0.05, 0.32]}
  dino_head: {hidden_dim: 32, bottleneck_dim: 16, num_prototypes: 64}
  ibot_head: {hidden_dim: 32, bottleneck_dim: 16, num_prototypes: 64}
train: {precision: fp32, num_steps: 3, global_batch_size: 4, log_every: 1, checkpoint_every: 3}
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_wheel_trains_in_an_empty_environment(tmp_path: Path):
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("webssl_fast-*.whl")
    venv.create(tmp_path / "empty", with_pip=True, system_site_packages=False)
    bin_dir = tmp_path / "empty" / "bin"
    run(bin_dir / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    printed = run(bin_dir / "webssl", "info", cwd=tmp_path)
    for op in kernel_ops(ROOT):
        assert op in printed, "a wheel knows its kernels' sources"

    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.jpg")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    run(bin_dir / "webssl", "train", "tiny.yaml", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 3
    run(bin_dir / "webssl", "report", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").is_file()
