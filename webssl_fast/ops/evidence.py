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

State = Literal["verified", "stale", "never run", "not compiled"]

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
        if self.state == "verified" and self.evidence is not None:
            return f"{self.op}: verified on {self.evidence.gpu}, {self.evidence.date}, torch {self.evidence.torch}"
        if self.state == "stale" and self.evidence is not None:
            return f"{self.op}: stale (changed since it passed on {self.evidence.gpu}, {self.evidence.date})"
        return f"{self.op}: {self.state}"


def cuda_ops(root: Path = SOURCE_ROOT) -> list[str]:
    """Ops with a CUDA implementation, by name."""
    return sorted(path.parent.name for path in (root / "csrc").glob("*/*_cuda.cu"))


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
    """State of every op with CUDA sources. `compiled`: whether the extension in use holds CUDA kernels at all."""
    evidence = read_evidence(root)
    states = []
    for op in cuda_ops(root):
        found = evidence.get(op)
        state: State
        if not compiled:
            state = "not compiled"
        elif found is None:
            state = "never run"
        else:
            state = "verified" if found.source_hash == source_hash(op, root) else "stale"
        states.append(KernelState(op, state, found))
    return states
