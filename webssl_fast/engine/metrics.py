"""What a run says about itself: metrics.jsonl, a progress bar, TensorBoard where asked for.

Device scalars are summed on the device, and read once for each logged line.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.jsonl import JsonLines, cut_back
from webssl_fast.errors import UserError
from webssl_fast.gpus import gpu_of_device


class MetricsWindow:
    """Sums of scalars over the steps since the last logged line; skipped steps are left out of the averages."""

    def __init__(self, distributed: Distributed):
        self._distributed = distributed
        self._step_values: dict[str, Tensor] = {}  # of the step in progress
        self._names: list[str] | None = None
        self._sums = torch.zeros(0)  # [S + 1] fp64 on the device, one a name; the last counts the finite steps
        self._num_bad = 0

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0, num_bad: int = 0) -> None:
        """Adds `weight` times these scalars (device, any dtype, this rank's) to the step in progress."""
        for name, value in values.items():
            term = value.detach().double() * weight
            self._step_values[name] = self._step_values[name] + term if name in self._step_values else term
        self._num_bad += num_bad

    def close_step(self, found_inf: Tensor) -> None:
        """Ends the step in progress; its scalars count unless `found_inf` (device scalar) is 1."""
        names = list(self._step_values)
        if self._names is None:
            self._names = names
            self._sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self._distributed.device)
        if names != self._names:
            raise ValueError(f"a method's metrics must have the same names at every step: {names}, then {self._names}")
        row = torch.stack([*self._step_values.values(), self._sums.new_ones(())])
        self._sums += row.where(found_inf == 0, 0.0)
        self._step_values = {}

    def read(self) -> tuple[dict[str, float], int]:
        """Averages over the window and all ranks, and the samples replaced in it; empties the window.

        Waits for the device. NaN where every step of the window was skipped.
        """
        assert self._names is not None
        bad_so_far = self._sums.new_tensor([self._num_bad])
        *sums, num_finite, num_bad = self._distributed.sum_(torch.cat([self._sums, bad_so_far])).tolist()
        self._sums.zero_()
        self._num_bad = 0
        means = [total / num_finite if num_finite else float("nan") for total in sums]
        return dict(zip(self._names, means, strict=True)), int(num_bad)

    def state(self) -> dict[str, Any]:
        """The window of every rank as JSON values, for a checkpoint between two logged lines."""
        ranks = self._distributed.gather((self._sums.tolist(), self._num_bad))
        return {"names": self._names, "sums": [r[0] for r in ranks], "num_bad": [r[1] for r in ranks]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a `state`: exactly on the number of ranks that wrote it, else with the ranks' sums evened out."""
        self._names = state["names"]
        if self._names is None:
            return
        rank, world_size = self._distributed.rank, self._distributed.world_size
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        num_bad = state["num_bad"]
        if len(num_bad) != world_size:
            sums = sums.mean(0, keepdim=True).expand(world_size, -1)
            num_bad = [sum(num_bad)] + [0] * (world_size - 1)
        self._sums = sums[rank].clone().to(self._distributed.device)
        self._num_bad = num_bad[rank]


class Clock:
    """Time of training alone: evaluations and checkpoints stand outside it."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._data_wait_s = 0.0
        self._num_steps = 0

    def tick(self) -> None:
        self._num_steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        paused_at = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - paused_at

    def read(self, global_batch_size: int, data_wait_s: float) -> dict[str, float]:
        """Throughput since the last reading. `data_wait_s`: the loader's total so far."""
        now = time.perf_counter()
        elapsed_s = max(now - self._started, 1e-9)
        values = {
            "samples_per_second": self._num_steps * global_batch_size / elapsed_s,
            "data_wait_share": min((data_wait_s - self._data_wait_s) / elapsed_s, 1.0),
        }
        self._num_steps = 0
        self._data_wait_s = data_wait_s
        self._started = now
        return values


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process and of its GPU in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = {"memory_peak_rss_gib": peak / 2 ** (30 if sys.platform == "darwin" else 20)}
    if device.type == "cuda":
        values["memory_peak_cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values


def model_flops_share(flops_per_image: float, samples_per_second: float, distributed: Distributed) -> float | None:
    """MFU: the share of the devices' dense bf16 peak that the model's own arithmetic takes; None: peak unknown."""
    if distributed.device.type != "cuda":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(distributed.device))
    if gpu is None:
        return None
    return flops_per_image * samples_per_second / (gpu.peak_tflops * 1e12 * distributed.world_size)


class Reporter:
    """Writes lines to `metrics.jsonl` and shows them; on ranks other than the first it does nothing."""

    def __init__(self, output_dir: Path, distributed: Distributed, *, step: int, num_steps: int, tensorboard: bool):
        """`step`: where the run (re)starts; lines of later steps are cut away."""
        self._lines = JsonLines(output_dir / "metrics.jsonl")
        self._active = distributed.is_main
        self._tensorboard: Any = None
        if not self._active:
            return
        cut_back(self._lines.path, step)
        if tensorboard:
            self._tensorboard = _summary_writer(output_dir / "tensorboard", step)
        # A log file gets a line every half minute, a terminal a moving bar.
        interval_s = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=num_steps, initial=step, unit="step", mininterval=interval_s, dynamic_ncols=True)

    def advance(self) -> None:
        if self._active:
            self._bar.update()

    def line(self, step: int, values: Mapping[str, float | int]) -> None:
        if not self._active:
            return
        self._lines.append([{"step": step, **values}])
        if "loss" in values:
            self._bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        if self._active:
            self._bar.close()
            if self._tensorboard is not None:
                self._tensorboard.close()


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "train.tensorboard=true needs the package tensorboard: `pip install tensorboard`, or set it to false "
            "(metrics.jsonl holds the same numbers)"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
