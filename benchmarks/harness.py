"""How the op benchmarks time and report: rivals take turns within one run, and each case is one JSON line."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import ROOT, provenance

RESULTS = ROOT / "benchmarks" / "results"
FLUSH_BYTES = 256 * 2**20  # several times the L2 cache of any GPU so far


def argument_parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """What every op benchmark takes: --device, --threads, --repeats and --record."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default, help=f"default here: {default}")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"timed calls of each rival (default: {repeats})")
    parser.add_argument("--record", metavar="NAME", help="also append the lines to benchmarks/results/NAME.jsonl")
    return parser


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: percentiles of the clock, and the median processor time of all threads together, also
    of the processes that multiprocessing started.

    On a GPU the clock is the device's, between two events; the processor time is that of the calls alone.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    cpu_ms: float


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1, device: str | torch.device = "cpu"
) -> dict[str, Timing]:
    """Calls the functions in turn, so that a busy machine is busy for all of them.

    CPU: the processor time says more than the clock where other programs run beside. GPU: each call is timed by events
    on the current stream, after a write that drives its inputs out of the L2 cache and gives the host time to run
    ahead, so that launches are not part of the figure unless they take longer than that.
    """
    device = torch.device(device)
    clock: dict[str, list[float]] = {name: [] for name in functions}
    processor: dict[str, list[float]] = {name: [] for name in functions}
    measure = _on_gpu(device) if device.type == "cuda" else _on_cpu
    for repeat in range(-warmup, repeats):
        for name, function in functions.items():
            elapsed_ms, cpu_ms = measure(function)
            if repeat >= 0:
                clock[name].append(elapsed_ms)
                processor[name].append(cpu_ms)
    timings = {}
    for name, times in clock.items():
        p20, p50, p80 = (torch.tensor(times).quantile(q).item() for q in (0.2, 0.5, 0.8))
        timings[name] = Timing(p20, p50, p80, statistics.median(processor[name]))
    return timings


def _on_cpu(function: Callable[[], Any]) -> tuple[float, float]:
    started, cpu_started = time.perf_counter(), _processor_seconds()
    function()
    elapsed, cpu_elapsed = time.perf_counter() - started, _processor_seconds() - cpu_started
    return elapsed * 1e3, cpu_elapsed * 1e3


def _processor_seconds() -> float:
    """Of this process, of its children that ended, and of the workers (of data loaders) that live."""
    ended = os.times()
    seconds = time.process_time() + ended.children_user + ended.children_system
    for worker in multiprocessing.active_children():
        spent = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]  # utime and stime
        seconds += sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")
    return seconds


def _on_gpu(device: torch.device) -> Callable[[Callable[[], Any]], tuple[float, float]]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def measure(function: Callable[[], Any]) -> tuple[float, float]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        flush.zero_()
        cpu_started = time.process_time()
        begin.record()
        function()
        end.record()
        cpu_elapsed = time.process_time() - cpu_started
        end.synchronize()
        return begin.elapsed_time(end), cpu_elapsed * 1e3

    return measure


# ---------------------------------------------------------------- ceilings, to be measured in the same run


def read_gb_per_s(repeats: int = 5, device: str | torch.device = "cpu") -> float:
    """Bandwidth of summing 512 MB (CPU: with torch's threads; GPU: 4 GB), the best of `repeats`."""
    num_floats = (1024 if torch.device(device).type == "cuda" else 128) * 1024 * 1024
    x = torch.ones(num_floats, device=device)
    return x.nbytes / _best_ms(x.sum, repeats, device) / 1e6


def copy_gb_per_s(repeats: int = 9, device: str | torch.device = "cuda") -> float:
    """Bandwidth of a copy of 2 GB, bytes read and written counted, the best of `repeats`."""
    x = torch.ones(512 * 1024 * 1024, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _best_ms(lambda: y.copy_(x), repeats, device) / 1e6


def gemm_tflop_per_s(
    shape: tuple[int, int, int] = (8192, 8192, 8192),
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 9,
    device: str | torch.device = "cuda",
) -> float:
    """Rate of torch's matrix product [M, K] x [K, N] on random operands, the best of `repeats`."""
    m, n, k = shape
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    return 2 * m * n * k / _best_ms(lambda: a @ b, repeats, device) / 1e9


def _best_ms(function: Callable[[], Any], repeats: int, device: str | torch.device) -> float:
    return min(time_interleaved({"it": function}, 1, device=device)["it"].p50_ms for _ in range(repeats))


# ---------------------------------------------------------------- result lines


def emit(case: str, *, record: str | None = None, device: str | torch.device = "cpu", **fields: Any) -> None:
    """Prints one result line, floats to four digits, and appends it to benchmarks/results/<record>.jsonl if told to."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
    line = json.dumps({"case": case, **rounded, **provenance(device)})
    print(line, flush=True)
    if record is not None:
        with open(RESULTS / f"{record}.jsonl", "a") as results:
            results.write(line + "\n")
