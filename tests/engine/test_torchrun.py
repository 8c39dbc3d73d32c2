"""Runs of two ranks under torchrun, as a cluster starts them: it starts killed ranks again, and they go on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.comparison import assert_same_run
from tests.engine.rank_processes import exit_statuses, start_ranks
from tests.engine.toy_run import run_toy

TRAIN = {"log_every": 2, "checkpoint_every": 3}
LOADER = {"nonfinite_positions": [50], "bad_positions": [16, 75]}
MOMENTS = ("after saving", "while training", "while training", "after saving", "while starting")


class Torchrun:
    """torchrun with two ranks of the toy run, what they print, and their process ids."""

    def __init__(self, folder: Path, train: dict, *options: str):
        self.folder = folder
        folder.mkdir()
        settings = json.dumps({"train": train, "step_time_s": 0.01, **LOADER})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
        self._log = folder / "log"
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "-m", "tests.engine.toy_run", str(folder), settings], stdout=log, stderr=log
            )

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def log(self) -> str:
        return self._log.read_text()

    def ranks(self) -> list[int]:
        """Process ids of the living ranks, in their order."""
        threads = Path(f"/proc/{self.process.pid}/task")
        try:
            children = sorted({int(pid) for file in threads.glob("*/children") for pid in file.read_text().split()})
            return [pid for pid in children if b"tests.engine.toy_run" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        except OSError:  # one of them has just ended
            return []

    def wait_for_new_ranks(self, gone: list[int]) -> list[int]:
        ranks: list[int] = []

        def both_are_new() -> bool:
            ranks[:] = self.ranks()
            return len(ranks) == 2 and not set(ranks) & set(gone)

        self._wait_for(both_are_new)
        return ranks

    def wait_for_training(self, since_ns: int) -> None:
        """Until the run has begun, or begun again, after a moment: it then touches its metrics."""
        path = self.folder / "metrics.jsonl"
        self._wait_for(lambda: path.exists() and path.stat().st_mtime_ns > since_ns)

    def wait_for_checkpoint(self, after: int) -> None:
        self._wait_for(lambda: self.newest_checkpoint() > after)

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def newest_checkpoint(self) -> int:
        found = (self.folder / "checkpoints").glob("step_*")
        return max((int(path.name.removeprefix("step_")) for path in found), default=0)


@pytest.mark.parametrize("num_kills", [2, pytest.param(30, marks=pytest.mark.nightly)])
def test_killed_ranks_go_on_from_the_last_complete_checkpoint(tmp_path, num_kills):
    draw = random.Random(0)
    train = {**TRAIN, "num_steps": 20 + 15 * num_kills}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    num_checked = 0
    begin = time.monotonic()
    with Torchrun(killed, train, f"--max-restarts={num_kills}") as run:
        ranks: list[int] = []
        for kill in range(num_kills):
            moment = MOMENTS[kill % len(MOMENTS)]
            ranks = run.wait_for_new_ranks(ranks)
            newest, moment_ns = run.newest_checkpoint(), time.time_ns()
            if moment == "while starting":
                time.sleep(draw.uniform(0, 2))
            else:
                run.wait_for_training(moment_ns)
                if newest:
                    assert int(re.findall(r"resuming after step (\d+)", run.log())[-1]) == newest
                    num_checked += 1
                if moment == "after saving":
                    run.wait_for_checkpoint(newest)
                time.sleep(draw.uniform(0, 0.6))
            os.kill(draw.choice(ranks), signal.SIGKILL)
        assert run.process.wait(120) == 0, run.log()
    seconds = time.monotonic() - begin
    print(f"{num_kills} kills in {seconds:.0f} s, {num_checked} resumptions compared with the newest checkpoint")
    assert num_checked >= num_kills // 2
    assert exit_statuses(start_ranks(run_whole, whole, train, logs=tmp_path / "logs")) == [0, 0]
    assert_same_run(killed, whole)
    assert all(path.name.startswith("step_") for path in (killed / "checkpoints").iterdir())


def run_whole(distributed, folder, train):
    run_toy(folder, distributed=distributed, train_settings=train, **LOADER)


@pytest.mark.nightly  # the same without torchrun is in test_faults.py
def test_sigterm_to_torchrun_saves_on_every_rank(tmp_path):
    with Torchrun(tmp_path / "run", {**TRAIN, "num_steps": 5000}, "--max-restarts=2") as run:
        run.wait_for_training(0)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) != 0
        stopped_at = int(re.findall(r"stopped by signal 15 after step (\d+)", run.log())[0])
        assert run.newest_checkpoint() == stopped_at
