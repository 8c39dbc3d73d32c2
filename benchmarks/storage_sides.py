"""What reading costs by where shards lie and by the length of runs (data.shuffle_run), and what an index of billions
of samples costs. Part of `python -m benchmarks.bench_data`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import emit, time_interleaved
from benchmarks.range_server import Faults, serving
from benchmarks.simulated_index import write_simulated_index
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.order import sample_ids
from webssl_fast.data.read import SampleReader

RUN_LENGTHS = (1, 4, 16, 64)
IMAGE_BYTES = 40_000  # about what a JPEG of a web crawl takes
IMAGES_PER_SHARD = 500
NUM_SHARDS = 8
READ_IMAGES = 512  # of a timed call
BATCH = 3072  # for the independent draws of a step
SIMULATED_SAMPLES, SIMULATED_SHARDS = 2**31 + 12_345, 200_000


def measure_storage(arguments: argparse.Namespace) -> None:
    """Prints a line for each place and run length: the page cache, the disk after its cache was dropped, and a local
    HTTP server that waits `--latency-ms` before each answer."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.scratch)))
        for shard in range(NUM_SHARDS):
            _write_shard(folder / f"{shard}.tar", shard)
        local = f"{folder}/{{0..{NUM_SHARDS - 1}}}.tar"
        build_index(local, folder / "local.index")
        faults = Faults(latency_s=arguments.latency_ms / 1e3)
        url = stack.enter_context(serving(folder, faults))
        build_index(f"{url}/{{0..{NUM_SHARDS - 1}}}.tar", folder / "http.index")
        pool = stack.enter_context(ThreadPoolExecutor(arguments.storage_threads))
        for place in ("page_cache", "cold_disk", "http"):
            index = Index.open(str(folder / ("http.index" if place == "http" else "local.index")))
            shards = list(folder.glob("*.tar"))
            sides = {
                str(length): partial(_read, index, length, pool, shards if place == "cold_disk" else [])
                for length in RUN_LENGTHS
            }
            timings = time_interleaved(sides, arguments.repeats)
            for length in RUN_LENGTHS:
                before = faults.num_requests
                sides[str(length)]()
                timing = timings[str(length)]
                emit(
                    "storage",
                    record=arguments.record,
                    place=place,
                    run_length=length,
                    images_per_second=1e3 * READ_IMAGES / timing.p50_ms,
                    cpu_ms_per_image=timing.cpu_ms / READ_IMAGES,
                    requests_per_image=(faults.num_requests - before) / READ_IMAGES if place == "http" else None,
                    latency_ms=arguments.latency_ms if place == "http" else None,
                    threads=arguments.storage_threads,
                    image_bytes=IMAGE_BYTES,
                    draws_of_a_batch=-(-BATCH // length),
                )


def _write_shard(path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(IMAGES_PER_SHARD):
            for extension, size in (("jpg", IMAGE_BYTES), ("txt", 100)):
                info = tarfile.TarInfo(f"{i:05d}.{extension}")
                info.size = size
                tar.addfile(info, BytesIO(draws.bytes(size)))


def _read(index: Index, run_length: int, pool: ThreadPoolExecutor, dropped: list[Path]) -> None:
    """As the loader does it: each thread takes a run, or eight images."""
    for path in dropped:
        _drop_from_cache(path)
    ids = sample_ids(0, len(index), np.arange(READ_IMAGES), run_length)
    chunk = max(8, run_length)
    reader = SampleReader()  # as many remote reads at once as it has by default

    def work(part: np.ndarray) -> int:
        found = reader.read_many([index.locate(i) for i in part.tolist()])
        return sum(len(data) for data in found if isinstance(data, bytes))

    total = sum(pool.map(work, [ids[i : i + chunk] for i in range(0, len(ids), chunk)]))
    reader.close()
    if total != READ_IMAGES * IMAGE_BYTES:
        raise RuntimeError(f"read {total} bytes of {READ_IMAGES * IMAGE_BYTES}")


def _drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- an index of billions

IN_A_FRESH_PROCESS = """
import json, resource, sys, time
import numpy as np
from webssl_fast.data.index import Index
from webssl_fast.data.order import sample_ids
def rss(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, begin = rss(), time.perf_counter()
index = Index.open(sys.argv[1])
opened_s, opened_bytes = time.perf_counter() - begin, rss() - before
positions = np.arange(200_000) + 3 * len(index)
begin = time.perf_counter()
ids = sample_ids(0, len(index), positions)
order_s = time.perf_counter() - begin
begin = time.perf_counter()
in_runs = sample_ids(0, len(index), positions, 16)
runs_s = time.perf_counter() - begin
num, before, begin = 10_000, rss(), time.perf_counter()
for sample_id in ids[:num].tolist():
    index.locate(sample_id)
print(json.dumps({
    "open_ms": 1e3 * opened_s, "open_mib": opened_bytes / 2**20, "order_ns_per_sample": 1e9 * order_s / len(ids),
    "order_in_runs_ns_per_sample": 1e9 * runs_s / len(ids), "locate_us": 1e6 * (time.perf_counter() - begin) / num,
    "mib_after_10000_locations": (rss() - before) / 2**20,
}))
"""


def measure_index(arguments: argparse.Namespace) -> None:
    """Prints one line: an index of more than 2^31 samples, simulated by a sparse file, opened in a fresh process."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = Path(folder) / "simulated.index"
        write_simulated_index(path, SIMULATED_SAMPLES, SIMULATED_SHARDS)
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(path)]
        runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
        medians: dict[str, Any] = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        emit(
            "index",
            record=arguments.record,
            num_samples=SIMULATED_SAMPLES,
            num_shards=SIMULATED_SHARDS,
            file_gib=path.stat().st_size / 2**30,
            bytes_per_sample=path.stat().st_size / SIMULATED_SAMPLES,
            **medians,
        )
