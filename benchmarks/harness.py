"""How the op benchmarks time and report: rivals take turns within one run, and each case is one JSON line."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.provenance import ROOT, cpu_provenance

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: percentiles of the clock, and the median processor time of all threads together."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    cpu_ms: float


def time_interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Calls the functions in turn, so that a busy machine is busy for all of them.

    The processor time says more than the clock where other programs run beside.
    """
    clock: dict[str, list[float]] = {name: [] for name in functions}
    processor: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-warmup, repeats):
        for name, function in functions.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            function()
            elapsed, cpu_elapsed = time.perf_counter() - started, time.process_time() - cpu_started
            if repeat >= 0:
                clock[name].append(elapsed * 1e3)
                processor[name].append(cpu_elapsed * 1e3)
    timings = {}
    for name, times in clock.items():
        p20, p50, p80 = (torch.tensor(times).quantile(q).item() for q in (0.2, 0.5, 0.8))
        timings[name] = Timing(p20, p50, p80, statistics.median(processor[name]))
    return timings


def read_gb_per_s(repeats: int = 5) -> float:
    """The memory ceiling: bandwidth of summing 512 MB with torch's threads, the best of `repeats`."""
    x = torch.ones(128 * 1024 * 1024)
    best_ms = min(time_interleaved({"read": x.sum}, 1).popitem()[1].p50_ms for _ in range(repeats))
    return x.nbytes / best_ms / 1e6


def emit(case: str, *, record: str | None = None, **fields: Any) -> None:
    """Prints one result line, floats to four digits, and appends it to benchmarks/results/<record>.jsonl if told to."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
    line = json.dumps({"case": case, **rounded, **cpu_provenance()})
    print(line, flush=True)
    if record is not None:
        with open(RESULTS / f"{record}.jsonl", "a") as results:
            results.write(line + "\n")
