"""What a result line says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """device, what it is, torch, commit (-dirty where the checkout differs from it) and date of a measurement."""
    where = _gpu(torch.device(device)) if torch.device(device).type == "cuda" else {"device": "cpu", "cpu": _cpu_name()}
    return {
        **where,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "device": "cuda",
        "gpu": torch.cuda.get_device_name(device),
        "cpu": _cpu_name(),
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def commit() -> str:
    """Short hash of the checkout; "unknown" outside one. Result lines themselves do not make it dirty."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    others = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!*.md"]
    dirty = subprocess.run(others, capture_output=True, text=True, check=True).stdout.strip()
    return head.stdout.strip() + ("-dirty" if dirty else "")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
