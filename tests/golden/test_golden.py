"""The first 20 losses of each method, at fixed seeds. A refactor leaves them as they are. A numerical change writes
them anew and says why:

    python -m tests.golden.test_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.methods.tiny import TINY, noise_batch, noise_pairs
from webssl_fast.config.schema import OptimConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer

GOLDEN = Path(__file__).parent
EMA = {"num_steps": 20, "ema_momentum": (0.9, 1.0)}
SETTINGS = {"dinov2": {"drop_path_rate": 0.3, **EMA}, "ijepa": EMA}


def first_losses(name: str) -> list[float]:
    method = TINY[name](**SETTINGS.get(name, {}))
    optimizer = Optimizer(
        method,
        OptimConfig(base_lr=2e-2, warmup_steps=5),
        Distributed(torch.device("cpu")),
        num_steps=20,
        global_batch_size=8,
    )
    losses = []
    for step in range(20):
        batch = noise_pairs(method, 8 * step) if method.wants_captions else noise_batch(method, 8 * step, 8, seed=step)
        loss, _ = method.training_step(batch, step)
        loss.backward()
        optimizer.step(step, loss.detach())
        method.after_step(step)
        losses.append(round(loss.item(), 5))
    return losses


@pytest.mark.parametrize("name", TINY)
def test_first_losses_are_the_golden_ones(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    losses = first_losses(name)
    # Machines round differently, and training amplifies it; a change of the objective moves the first steps already.
    assert losses[:5] == pytest.approx(golden[:5], rel=1e-4)
    assert losses == pytest.approx(golden, rel=5e-3)


if __name__ == "__main__":
    for name in TINY:
        (GOLDEN / f"{name}.json").write_text(json.dumps(first_losses(name)) + "\n")
