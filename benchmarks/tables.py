"""Writes the tables of README and docs from result lines and plans, so that no figure is typed in.

    python -m benchmarks.tables            rewrites what stands between `<!-- table: NAME -->` and `<!-- /table -->`,
                                           and in configs the line under `# webssl plan ...`
    python -m benchmarks.tables --check    only says what is out of date (exit status 1)

Result lines are what the benchmarks print, kept in benchmarks/results/*.jsonl; of several lines about one case, the
last one in its file counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data_needs
from benchmarks.plan_tables import PLAN_TABLES, planned_configs, rewritten_header
from webssl_fast.ops.evidence import cuda_ops, read_evidence, source_hash

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Line = dict[str, Any]
NO_LOADER_LINE = (
    "No result line yet: `python -m benchmarks.bench_data --images ...` prints some for benchmarks/results/.\n"
)
NO_STORAGE_LINE = (
    "No result line yet: `python -m benchmarks.bench_data --storage` prints some for benchmarks/results/.\n"
)


def result_lines(
    case: str, keys: tuple[str, ...], folder: Path = ROOT / "benchmarks" / "results", device: str = "cpu"
) -> list[Line]:
    """The last line on a kind of device for each combination of `keys`, in the order of the files."""
    latest: dict[tuple[str, ...], Line] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["case"] == case and line.get("device", "cpu") == device:
                latest[tuple(str(line.get(key)) for key in keys)] = line
    return list(latest.values())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def train_step() -> str:
    lines = result_lines("train_step", ("preset", "num_images", "precision", "threads", "cpu", "num_prototypes"))
    if not lines:
        return "No result line yet: `python -m benchmarks.bench_step` prints one for benchmarks/results/.\n"
    rows = [
        [
            f"{line['preset']}, {line['num_images']} images, {line['precision']}",
            f"{line['cpu']}, {line['threads']} threads",
            f"{line['ms_per_step']:,.0f} ms",
            f"{line['baseline_ms_per_step']:,.0f} ms",
            f"{line['speedup']:.2f}x ({line['speedup_least']:.2f} to {line['speedup_most']:.2f})",
            f"{line['peak_rss_mb'] / 1000:.1f} / {line['baseline_peak_rss_mb'] / 1000:.1f} GB",
            f"{line['date']}, {line['commit']}",
        ]
        for line in lines
    ]
    header = ["training step", "processor", "webssl_fast", "plain PyTorch", "speed-up", "peak memory", "measured"]
    return markdown(header, rows)


def train_step_gpu() -> str:
    lines = result_lines("train_step", ("preset", "num_images", "precision", "gpu", "compile_blocks"), device="cuda")
    if not lines:
        return "No result line of a GPU yet: `python -m benchmarks.bench_step --device cuda --compile` prints one.\n"
    rows = [
        [
            f"{line['preset']}, {line['num_images']} images, {line['precision']}",
            line["gpu"],
            f"{line['images_per_s']:,.0f}",
            f"{line['baseline_images_per_s']:,.0f}",
            f"{line['speedup']:.2f}x ({line['speedup_least']:.2f} to {line['speedup_most']:.2f})",
            f"{line['share_of_gemm']:.0%}",
            f"{line['date']}, {line['commit']}",
        ]
        for line in lines
    ]
    header = ["training step", "GPU", "images/s", "plain PyTorch", "speed-up", "share of GEMM rate", "measured"]
    return markdown(header, rows)


def train_step_profile() -> str:
    lines = result_lines("train_step_profile", ("side", "precision", "threads", "batch", "cpu"))
    if not lines:
        return "No result line yet: `python -m benchmarks.profile_step` prints one for benchmarks/results/.\n"
    kinds = sorted({kind for line in lines for kind in line["ms_by_kind"]}, key=lambda kind: _most(kind, lines))
    rows = [[kind.replace("_", " "), *(f"{line['ms_by_kind'].get(kind, 0):,.0f}" for line in lines)] for kind in kinds]
    return markdown(["ms of a step", *(f"{line['side']}, {line['precision']}" for line in lines)], rows)


def _most(kind: str, lines: list[Line]) -> float:
    return -max(line["ms_by_kind"].get(kind, 0) for line in lines)


def multi_crop() -> str:
    lines = result_lines("multi_crop", ("recipe", "image_px", "threads", "cpu"))
    lines = [line for line in lines if {"torchvision_over_ours", "albumentations_over_ours"} <= line.keys()]
    if not lines:
        return "No result line yet: `python -m benchmarks.ops.bench_multi_crop` prints one for benchmarks/results/.\n"
    rows = [
        [
            f"{line['recipe']} of {line['image_px']}",
            f"{line['cpu']}, {line['threads']} thread{'s' if line['threads'] > 1 else ''}",
            f"{line['ms_per_image']:.1f} ({line['cpu_ms_per_image']:.1f})",
            *(_rival_crop_time(rival, line) for rival in ("torchvision", "albumentations")),
            f"{line['date']}, {line['commit']}",
        ]
        for line in lines
    ]
    header = ["crops", "processor", "webssl_fast", "torchvision, Pillow", "albumentations, OpenCV", "measured"]
    return markdown(header, rows)


def _rival_crop_time(rival: str, line: Line) -> str:
    return (
        f"{line[f'{rival}_ms_per_image']:.1f} ({line[f'{rival}_cpu_ms_per_image']:.1f}): "
        f"{line[f'{rival}_over_ours']:.1f}x ({line[f'{rival}_over_ours_cpu']:.1f}x)"
    )


def data_index() -> str:
    lines = result_lines("index", ("num_samples", "num_shards", "cpu"))
    if not lines:
        return NO_STORAGE_LINE
    rows = [
        [
            f"{line['num_samples']:,} in {line['num_shards']:,} shards",
            f"{line['bytes_per_sample']:.1f}",
            f"{line['open_ms']:.2f} ms, {line['open_mib']:.1f} MiB",
            f"{line['order_ns_per_sample']:.0f} ns ({line['order_in_runs_ns_per_sample']:.0f} ns in runs of 16)",
            f"{line['locate_us']:.0f} µs; {line['mib_after_10000_locations']:.0f} MiB after 10,000",
            f"{line['date']}, {line['commit']}",
        ]
        for line in lines
    ]
    return markdown(["samples", "bytes of each", "opening", "order, a sample", "look-up, a sample", "measured"], rows)


def data_storage() -> str:
    lines = result_lines("storage", ("place", "run_length", "latency_ms", "cpu"))
    if not lines:
        return NO_STORAGE_LINE
    rows = [
        [
            line["place"].replace("_", " ").replace("http", f"HTTP, {line['latency_ms'] or 0:g} ms away"),
            str(line["run_length"]),
            f"{line['draws_of_a_batch']:,}",
            f"{line['images_per_second']:,.0f}",
            "" if line["requests_per_image"] is None else f"{line['requests_per_image']:.2f}",
            f"{line['date']}, {line['commit']}",
        ]
        for line in lines
    ]
    header = ["shards", "`data.shuffle_run`", "runs in a batch of 3072", "images/s", "requests an image", "measured"]
    return markdown(header, rows)


def data_loaders() -> str:
    """Ours, and each other loader with the number of workers that suits it best."""
    lines = _stage_lines("together")
    rivals: dict[str, Line] = {}
    for line in lines.values():
        fastest = rivals.get(line["side"], line)
        if "workers" in line and line["images_per_second"] >= fastest["images_per_second"]:
            rivals[line["side"]] = line
    if not rivals or "loader_cpu" not in lines:
        return NO_LOADER_LINE
    rows = [_loader_row("webssl_fast", lines["loader_cpu"], "")]
    for name, line in rivals.items():
        versions = ", ".join(f"{package} {version}" for package, version in line["versions"].items())
        what = f"{LOADERS[name]} ({versions}), {line['workers']} worker{'s' if line['workers'] > 1 else ''}"
        rows.append(_loader_row(what, line, f"{line['ours_over_it']:.1f}x ({line['ours_over_it_cpu']:.1f}x)"))
    header = ["loader", "processor", "images/s", "ms of a core for an image", "webssl_fast is faster by", "measured"]
    return markdown(header, rows)


LOADERS = {
    "torchvision_v1": "DataLoader, ImageFolder and torchvision, as DINOv2 uses them",
    "torchvision_v2": "the same with torchvision's v2 transforms",
    "webdataset": "webdataset and torchvision",
}


def _loader_row(name: str, line: Line, faster_by: str) -> list[str]:
    return [
        name,
        f"{line['cpu']}, {line['cores']} cores",
        f"{line['images_per_second']:,.0f}",
        f"{line['cpu_ms_per_image']:.1f}",
        faster_by,
        f"{line['date']}, {line['commit']}",
    ]


def _stage_lines(stage: str) -> dict[str, Line]:
    """Of bench_data, by side and number of workers."""
    lines = [line for line in result_lines("data", ("stage", "side", "workers")) if line["stage"] == stage]
    return {" ".join(str(line[key]) for key in ("side", "workers") if key in line): line for line in lines}


def data_needs_stored() -> str:
    lines = result_lines("index", ("cpu",))
    return _plan_table(partial(data_needs.stored, lines[-1]["bytes_per_sample"])) if lines else NO_STORAGE_LINE


def data_needs_rates() -> str:
    requests = {
        line["run_length"]: line["requests_per_image"]
        for line in result_lines("storage", ("place", "run_length"))
        if line["place"] == "http" and line["run_length"] in (1, 16)
    }
    decode, loader = _stage_lines("decode"), _stage_lines("together")
    if not requests or "nvimgcodec" not in decode or "loader_cpu" not in loader:
        return NO_LOADER_LINE
    measured_kb = decode["nvimgcodec"]["mean_kib"] * 1.024
    costs = decode["nvimgcodec"]["cpu_ms_per_image"], loader["loader_cpu"]["cpu_ms_per_image"]
    return _plan_table(partial(data_needs.needs, measured_kb, *costs, requests))


def gpu_kernels() -> str:
    evidence = read_evidence(ROOT)
    rows = []
    for op in cuda_ops(ROOT):
        found = evidence.get(op)
        if found is None:
            rows.append([f"`{op}`", "compiles; never run on a GPU", "", ""])
        else:
            state = "verified" if found.source_hash == source_hash(op, ROOT) else "stale: changed since it passed"
            rows.append([f"`{op}`", state, found.gpu, f"{found.date}, torch {found.torch}"])
    if not rows:
        return "No op has a CUDA kernel yet: ops run on the CPU, and say so when they are given tensors of a GPU.\n"
    return markdown(["CUDA kernel", "state", "GPU", "last passed"], rows)


def _plan_table(rows: Callable[[], list[list[str]]]) -> str:
    header, *body = rows()
    return markdown(header, body)


TABLES: dict[str, Callable[[], str]] = {
    "train_step": train_step,
    "train_step_gpu": train_step_gpu,
    "train_step_profile": train_step_profile,
    "multi_crop": multi_crop,
    "data_index": data_index,
    "data_storage": data_storage,
    "data_loaders": data_loaders,
    "data_needs_stored": data_needs_stored,
    "data_needs_rates": data_needs_rates,
    "gpu_kernels": gpu_kernels,
    **{name: partial(_plan_table, rows) for name, rows in PLAN_TABLES.items()},
}


def rewritten(text: str) -> str:
    """A document with every marked table, and a config with every plan, made anew. KeyError for a table that TABLES
    does not know."""
    return rewritten_header(MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text))


def documents() -> list[Path]:
    marked = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if MARKED.search(path.read_text())]
    return marked + planned_configs()


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the tables of README and docs from result lines.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where a table is out of date"
    )
    check = parser.parse_args().check
    outdated = [path for path in documents() if rewritten(path.read_text()) != path.read_text()]
    for path in outdated:
        if not check:
            path.write_text(rewritten(path.read_text()))
        print(f"{path.relative_to(ROOT)}: {'out of date; run python -m benchmarks.tables' if check else 'rewritten'}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
