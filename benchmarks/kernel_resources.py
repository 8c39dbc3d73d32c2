"""Registers, spills and static shared memory of each compiled kernel, as ptxas told the build.

    python -m benchmarks.kernel_resources    rewrites benchmarks/kernel_resources.json from the checkout's last build

The build keeps ptxas's words beside each object (csrc/compile_cuda.py).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.provenance import ROOT

BUILD = ROOT / "build" / "editable"
RECORD = ROOT / "benchmarks" / "kernel_resources.json"

COMPILING = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


@dataclass(frozen=True)
class KernelResources:
    """Of one kernel on one architecture; a spill is in bytes per thread, shared memory without the dynamic part."""

    op: str
    kernel: str
    architecture: str
    registers: int
    spill_stores: int
    spill_loads: int
    static_shared_bytes: int


def ptxas_logs(build: Path = BUILD) -> list[Path]:
    """One for each CUDA source of the build; none where it was built without nvcc."""
    return sorted(build.glob("CMakeFiles/_C.dir/csrc/*/*.ptxas"))


def kernel_resources(log: Path) -> list[KernelResources]:
    """Every kernel of one source, by name and architecture."""
    found, kernel, spills = [], None, (0, 0)
    for line in log.read_text().splitlines():
        if match := COMPILING.search(line):
            kernel = match.groups()
        elif match := SPILLS.search(line):
            spills = int(match[2]), int(match[3])
        elif kernel is not None and (match := USED.search(line)):
            name, architecture = kernel
            registers, shared = int(match[1]), int(match[2] or 0)
            found.append(KernelResources(log.parent.name, name, architecture, registers, *spills, shared))
            kernel = None
    names = dict(zip((k.kernel for k in found), _readable([k.kernel for k in found]), strict=True))
    readable = [KernelResources(**{**asdict(k), "kernel": names[k.kernel]}) for k in found]
    return sorted(readable, key=lambda k: (k.op, k.kernel, k.architecture))


def warnings(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if re.search(r"\bwarning\b", line, re.IGNORECASE)]


def _readable(mangled: list[str]) -> list[str]:
    """Names without namespaces and parameters: row_pass<Bfloat16, true>."""
    if not mangled or shutil.which("c++filt") is None:
        return mangled
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return [_short(name) for name in done.stdout.splitlines()]


def _short(demangled: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N_\w+::", "", demangled).removeprefix("void ")
    depth, end = 0, len(name)
    for i, character in enumerate(name):  # the parameters begin at the first parenthesis outside of < >
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and not name.startswith("(bool)", i):
            end = i
            break
    return re.sub(r"\(bool\)([01])", lambda m: ("false", "true")[int(m[1])], re.sub(r"\b\w*::|\(int\)", "", name[:end]))


def main() -> int:
    logs = ptxas_logs()
    if not logs:
        print(f"no ptxas output under {BUILD}: install the checkout in place where nvcc is (make install)")
        return 1
    kernels = [asdict(kernel) for log in logs for kernel in kernel_resources(log)]
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", nvcc)
    assert release is not None, nvcc
    lines = ",\n".join("    " + json.dumps(kernel) for kernel in kernels)
    RECORD.write_text(f'{{\n  "nvcc": "{release[0]}",\n  "kernels": [\n{lines}\n  ]\n}}\n')
    print(f"{RECORD.relative_to(ROOT)}: {len(kernels)} kernels of {len(logs)} sources")
    return 0


if __name__ == "__main__":
    sys.exit(main())
