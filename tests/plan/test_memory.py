"""The planned memory of a step is what torch's MemTracker finds on a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from tests.plan.small_runs import noise_batch, optimizer_of, small_config, small_mae, small_pairs, take_step
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine import sharding
from webssl_fast.engine.distributed import Distributed
from webssl_fast.methods.base import Method
from webssl_fast.plan.choices import memory_choices
from webssl_fast.plan.memory import Memory, step_memory
from webssl_fast.plan.steps import step_of
from webssl_fast.recipes.plan import parameter_counts
from webssl_fast.recipes.setup import describe_method

TOLERANCE = 0.1
TINY = {"preset": "vit_tiny_patch14", "num_images": 2}


CONFIGS: dict[str, Callable[..., RunConfig]] = {
    "dinov2": small_config,
    "mae": small_mae,
    "clip": partial(small_pairs, "clip"),
    "siglip": partial(small_pairs, "siglip"),
}


class Tracker(MemTracker):
    """MemTracker asks every parameter for its gradient, which a frozen teacher's refuse, and keeps statistics of a
    module's one call, where gradient caching makes several; the peak of all modules together needs none."""

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True):
        trained = all(p.requires_grad for p in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and trained)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if self._mod_tracker.is_bw or module not in self.memory_tracking:
            super()._pre_fw_hook(module, inputs)


def tracked_peak(config: RunConfig, method: Method, distributed: Distributed) -> int:
    """Bytes of a real step on this rank."""
    batch = noise_batch(config, method, distributed.rank)
    optimizer = optimizer_of(config, method, distributed)
    tracker = Tracker()
    tracker.track_external(method, optimizer._adamw, *batch.crops, *batch.host.values())
    with tracker:
        take_step(config, method, batch, optimizer)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def planned(config: RunConfig, num_ranks: int = 1) -> Memory:
    choices = memory_choices(config, num_ranks, on_gpu=False)
    return step_memory(step_of(config, num_ranks), parameter_counts(config), choices)


def check_peak(choices: dict, mode: str = "none", of: str = "dinov2") -> None:
    config = CONFIGS[of](**choices, activation_checkpointing=mode)
    method, here = describe_method(config), Distributed(torch.device("cpu"))
    sharding.materialize(method, config.seed, here, config.train)
    peak = tracked_peak(config, method, here)
    assert planned(config).peak == pytest.approx(peak, rel=TOLERANCE)


@pytest.mark.parametrize(
    "choices",
    [{"drop_path_rate": 0.0}, {"num_images": 6}, {"precision": "bf16"}, {"num_prototypes": 16384}],
    ids=str,
)
def test_peak_is_what_torch_tracks(choices):
    check_peak(choices)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_peak_under_activation_checkpointing(mode):
    check_peak({}, mode)


def test_peak_of_weights_in_bf16_and_moments_in_8_bits():
    low = {"student_weights": "bf16", "teacher_weights": "bf16", "optimizer": "torchao_8bit"}
    check_peak({"precision": "bf16", **low})


def test_peak_of_a_deeper_network():
    check_peak({**TINY, "drop_path_rate": 0.0})


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peak_of_a_deeper_network_under_every_choice(precision, mode):
    check_peak({**TINY, "precision": precision}, mode)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "choices", [{}, {"mask_ratio": 0.4}, {"precision": "bf16", "image_size_px": 336}, {"decoder_depth": 4}], ids=str
)
def test_peak_of_mae(choices, mode):
    check_peak(choices, mode, "mae")


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("method", "choices"),
    [
        ("clip", {}),
        ("clip", {"num_images": 24, "image_size_px": 224, "precision": "bf16"}),
        ("clip", {"num_images": 48, "context_length": 77, "activation": "quick_gelu"}),
        ("clip", {"num_images": 24, "image_size_px": 224, "embed_batch_size": 8}),
        ("siglip", {"num_images": 24, "image_size_px": 224, "embed_batch_size": 8, "precision": "bf16"}),
        ("clip", {"num_images": 2048, "image_size_px": 28, "embed_batch_size": 512, "context_length": 8}),
        ("siglip", {"num_images": 2048, "image_size_px": 28, "embed_batch_size": 512, "context_length": 8}),
    ],
    ids=str,
)
def test_peak_of_pairs(method, choices, mode):
    check_peak(choices, mode, method)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("embed_batch_size", [None, 4])
def test_peak_of_deeper_pairs(embed_batch_size, mode):
    sizes = {"preset": "vit_tiny_patch14", "text": "text_tiny", "image_size_px": 224, "num_images": 12}
    check_peak({**sizes, "embed_batch_size": embed_batch_size}, mode, "clip")


def check_peak_of_two_ranks(choices: dict, of: str = "dinov2") -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.plan.test_memory", of, json.dumps(choices)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])["peak"]
    assert planned(CONFIGS[of](world_size=2, **choices), 2).peak == pytest.approx(peak, rel=TOLERANCE)


def test_peak_of_two_ranks():
    check_peak_of_two_ranks({"num_images": 2, "num_prototypes": 16384})


@pytest.mark.parametrize(
    ("of", "choices"),
    [("mae", {"num_images": 2}), ("clip", {}), ("clip", {"num_images": 12, "embed_batch_size": 4})],
    ids=str,
)
def test_peak_of_two_ranks_of_other_methods(of, choices):
    check_peak_of_two_ranks(choices, of)


@pytest.mark.nightly
@pytest.mark.parametrize("choices", [TINY, {**TINY, "precision": "bf16"}], ids=str)
def test_peak_of_two_ranks_with_a_deeper_network(choices):
    check_peak_of_two_ranks(choices)


def main(of: str, choices: dict) -> None:
    """One of two gloo ranks with FSDP2; the first prints its peak."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    distributed = Distributed(torch.device("cpu"), rank, 2, rank, 2)
    config = CONFIGS[of](world_size=2, **choices)
    method = describe_method(config)
    sharding.materialize(method, config.seed, distributed, config.train)
    peak = tracked_peak(config, method, distributed)
    if rank == 0:
        print(json.dumps({"peak": peak}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
