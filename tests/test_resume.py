"""The quickstart's own run, killed again and again, ends as an uninterrupted one does: bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from webssl_fast.data.sample import make_sample_data

ROOT = Path(__file__).parent.parent
MEASURED = ("samples_per_second", "data_wait_share", "seconds_per_step", "memory")  # differ from run to run


@pytest.fixture(scope="module")
def sample_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    make_sample_data(folder, seed=0)
    return folder


def command(sample_data: Path, output_dir: Path, num_steps: int) -> list[str]:
    return [
        sys.executable, "-m", "webssl_fast", "train", str(ROOT / "configs/quickstart.yaml"),
        f"data.source={sample_data}/train", f"eval.knn.train_source={sample_data}/test",
        f"eval.knn.test_source={sample_data}/test", f"output_dir={output_dir}",
        f"train.num_steps={num_steps}", "train.checkpoint_every=3", "train.log_every=3", "eval.every=12",
    ]  # fmt: skip


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in found]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return {k: v for file in sorted(newest.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.nightly
def test_twenty_kills_change_nothing(sample_data, tmp_path):
    num_steps, num_kills = 36, int(os.environ.get("WEBSSL_KILLS", "20"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(sample_data, whole, num_steps), check=True)
    rng, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(command(sample_data, killed, num_steps), stderr=subprocess.DEVNULL)
        if kills < num_kills:
            time.sleep(rng.uniform(4, 9))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.wait() == 0:
            break
    print(f"{kills} kills")
    assert kills >= num_kills / 2, "the run ended before it was killed often enough to say anything"
    expected, got = weights(whole), weights(killed)
    assert expected.keys() == got.keys() and len(expected) > 100
    assert [k for k in expected if not torch.equal(expected[k], got[k])] == []
    assert lines(killed) == lines(whole)
