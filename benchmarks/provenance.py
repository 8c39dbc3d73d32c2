"""What a result line says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def cpu_provenance() -> dict[str, Any]:
    """device, cpu, cores, torch, commit (-dirty where the checkout differs from it) and date of a CPU measurement."""
    return {
        "device": "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
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
