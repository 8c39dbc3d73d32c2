"""The planned memory of a step is what torch's MemTracker finds on a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from tests.plan.small_runs import method_of, noise_batch, optimizer_of, small_config, take_step
from webssl_fast.config.schema import RunConfig
from webssl_fast.plan.memory import Memory, ParameterCounts, memory_choices, step_memory
from webssl_fast.plan.step_shape import step_shape
from webssl_fast.recipes.plan import parameter_counts

TOLERANCE = 0.1


class Tracker(MemTracker):
    """MemTracker asks every parameter for its gradient, which a frozen teacher's refuse."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True):
        trained = all(p.requires_grad for p in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and trained)

    def total(self, when: str = "current") -> int:
        return self.get_tracker_snapshot(when)[torch.device("cpu")]["Total"]


def tracked_bytes(config: RunConfig) -> tuple[int, int]:
    """Of a real step: the peak, and what is alive after the backward."""
    method = method_of(config)
    batch = noise_batch(config, method)
    optimizer = optimizer_of(config, method)
    tracker = Tracker()
    tracker.track_external(method, optimizer._adamw, *batch.crops, *batch.host.values())
    with tracker:
        take_step(config, method, batch, optimizer)
    return tracker.total("peak"), tracker.total()


def planned(config: RunConfig) -> Memory:
    return step_memory(step_shape(config), parameter_counts(config), memory_choices(config, 1, on_gpu=False))


CASES = {
    "nano": {"drop_path_rate": 0.0},
    "nano, drop-path": {"num_images": 6},
    "nano, bf16": {"precision": "bf16"},
    "nano, many prototypes": {"num_prototypes": 16384},
    "tiny": {"preset": "vit_tiny_patch14", "drop_path_rate": 0.0, "num_images": 2},
    "tiny, drop-path": {"preset": "vit_tiny_patch14"},
    "tiny, drop-path, bf16": {"preset": "vit_tiny_patch14", "precision": "bf16"},
    "small, drop-path": {"preset": "vit_small_patch14", "num_images": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_peak_is_what_mem_tracker_finds(case):
    config = small_config(**CASES[case])
    peak, _ = tracked_bytes(config)
    assert planned(config).peak == pytest.approx(peak, rel=TOLERANCE)
