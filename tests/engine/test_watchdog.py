import time

import pytest
import torch

from tests.engine.toy_run import run_toy
from webssl_fast.config.schema import WatchdogConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.watchdog import Watchdog

CPU = Distributed(torch.device("cpu"))


@pytest.fixture
def ended(monkeypatch):
    """The phases that would have ended the process."""
    found = []

    def end(self, begun, lasted_s):
        if not found or found[-1] != begun:
            found.append(begun)

    monkeypatch.setattr(Watchdog, "_end", end)
    return found


def test_each_phase_has_its_own_limit(ended):
    config = WatchdogConfig(step_s=0.05, first_step_s=5, evaluation_s=None, checkpoint_s=5)
    with Watchdog(config, CPU) as watchdog:
        for phase, step in [
            ("evaluation", -1),
            ("loading data", 0),
            ("computing", 0),
            ("logging", 0),
            ("evaluation", 0),
            ("checkpoint", 0),
        ]:
            watchdog.begin(phase, step)
            time.sleep(0.15)
        assert not ended
        watchdog.begin("loading data", 1)
        time.sleep(0.15)
        watchdog.begin("logging", 7)
        time.sleep(0.15)
    assert [(begun.phase, begun.step, begun.setting) for begun in ended] == [
        ("loading data", 1, "step_s"),
        ("logging", 7, "step_s"),
    ]


def test_short_phases_may_add_up(ended):
    with Watchdog(WatchdogConfig(step_s=0.5, first_step_s=0.5), CPU) as watchdog:
        for step in range(15):
            watchdog.begin("computing", step)
            time.sleep(0.05)
    assert not ended


def test_slow_evaluation_and_slow_saves_are_no_hang(tmp_path, ended, monkeypatch):
    from webssl_fast.engine import checkpoint

    plain = checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *a: (time.sleep(1.0), plain(*a)))
    settings = {"num_steps": 2, "watchdog": {"step_s": 0.7}}
    run_toy(tmp_path, train_settings=settings, evaluate=lambda step: time.sleep(1.0) or {"x": 1.0})
    assert not ended
    assert (tmp_path / "checkpoints/step_00000002").is_dir()


def test_nothing_is_watched_before_the_first_phase_and_after_leaving(ended):
    with Watchdog(WatchdogConfig(step_s=0.05, first_step_s=0.05), CPU) as watchdog:
        time.sleep(0.1)
        watchdog.begin("computing", 0)
    time.sleep(0.1)
    assert not ended
