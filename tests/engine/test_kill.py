import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.engine.comparison import assert_same_run
from tests.engine.rank_processes import PROCESSES
from tests.engine.toy_run import run_toy

LOADER = {"nonfinite_positions": [50], "bad_positions": [16, 75]}
TRAIN = {"num_steps": 60, "log_every": 2, "checkpoint_every": 3}


def run_in_a_process(folder):
    torch.set_num_threads(1)
    run_toy(folder, train_settings=TRAIN, step_time_s=0.01, **LOADER)


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_random_moments_equals_uninterrupted(tmp_path, num_kills):
    draw = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(num_kills):
        run = PROCESSES.Process(target=run_in_a_process, args=(killed,))
        run.start()
        time.sleep(draw.uniform(0.1, 0.6))
        run.kill()
        run.join()
    run = PROCESSES.Process(target=run_in_a_process, args=(killed,))
    run.start()
    run.join()
    assert run.exitcode == 0
    run_in_a_process(whole)
    assert_same_run(killed, whole)
    leftovers = [path.name for path in (killed / "checkpoints").iterdir() if not path.name.startswith("step_")]
    assert not leftovers


def test_sigterm_saves_and_tells_the_shell(tmp_path):
    settings = json.dumps({"train": {**TRAIN, "num_steps": 5000}, "step_time_s": 0.02})
    command = [sys.executable, "-m", "tests.engine.toy_run", str(tmp_path), settings]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "metrics.jsonl").exists() and run.poll() is None:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75
    newest = max((tmp_path / "checkpoints").iterdir())
    assert f"after step {int(newest.name.removeprefix('step_'))}; the same command resumes there" in errors
