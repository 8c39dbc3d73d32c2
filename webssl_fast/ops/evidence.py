"""Which CUDA kernels have passed their tests on a real GPU, for exactly the sources that stand here.

CI has no GPU, so a kernel that compiles is not a kernel that works. `make gpu-check` writes what passed, with a hash of
the sources, into benchmarks/gpu_evidence.json; any later change of a kernel, or of the core that all share, makes its
evidence stale. Imports neither torch nor the extension.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["verified", "stale", "never run", "not compiled", "cpu only"]

_PACKAGE = Path(__file__).parent.parent
# A wheel carries the sources that its binary was built from; in a checkout they stand beside the package.
SOURCE_ROOT = _PACKAGE / "_sources" if (_PACKAGE / "_sources").is_dir() else _PACKAGE.parent


@dataclass(frozen=True)
class Evidence:
    """One passed run of an op's GPU tests."""

    source_hash: str
    gpu: str
    date: str
    torch: str


@dataclass(frozen=True)
class KernelState:
    op: str
    state: State
    evidence: Evidence | None

    def __str__(self) -> str:
        """The state in words, for a person who decides whether to trust the kernel."""
        if self.state == "verified" and self.evidence is not None:
            return f"verified on {self.evidence.gpu}, {self.evidence.date}, torch {self.evidence.torch}"
        if self.state == "stale" and self.evidence is not None:
            return f"stale: changed since it passed on {self.evidence.gpu}, {self.evidence.date}; run make gpu-check"
        return {
            "never run": "compiled for GPUs, never run on one; run make gpu-check where there is one",
            "not compiled": "CUDA sources left out of this build (no nvcc, or WEBSSL_CUDA=OFF)",
            "cpu only": "CPU; no CUDA kernel yet",
        }[self.state]


def kernel_ops(root: Path = SOURCE_ROOT) -> list[str]:
    """Ops with kernels of their own, by name."""
    return sorted(path.name for path in (root / "csrc").iterdir() if path.is_dir() and path.name != "core")


def cuda_ops(root: Path = SOURCE_ROOT) -> list[str]:
    """Those of them that have a CUDA kernel."""
    return [op for op in kernel_ops(root) if (root / "csrc" / op / f"{op}_cuda.cu").is_file()]


def source_hash(op: str, root: Path = SOURCE_ROOT) -> str:
    """SHA-256 over names and contents of csrc/<op>/ and csrc/core/. FileNotFoundError where the op has no folder."""
    folder = root / "csrc" / op
    if not folder.is_dir():
        raise FileNotFoundError(f"no kernel sources at {folder}")
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*"), *(root / "csrc" / "core").rglob("*")]):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def read_evidence(root: Path = SOURCE_ROOT) -> dict[str, Evidence]:
    """What benchmarks/gpu_evidence.json says, by op."""
    entries = json.loads((root / "benchmarks" / "gpu_evidence.json").read_text())
    return {op: Evidence(**entry) for op, entry in entries.items()}


def kernel_states(compiled: bool, root: Path = SOURCE_ROOT) -> list[KernelState]:
    """State of every op's kernels. `compiled`: whether the extension in use holds CUDA kernels at all."""
    evidence = read_evidence(root)
    with_cuda = cuda_ops(root)
    states = []
    for op in kernel_ops(root):
        found = evidence.get(op)
        state: State
        if op not in with_cuda:
            state = "cpu only"
        elif not compiled:
            state = "not compiled"
        elif found is None:
            state = "never run"
        else:
            state = "verified" if found.source_hash == source_hash(op, root) else "stale"
        states.append(KernelState(op, state, found))
    return states
