"""The states of the kernels follow the sources, to the byte."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from webssl_fast.ops.evidence import Evidence, kernel_states, source_hash


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "csrc/core/philox.h": "core",
        "csrc/sinkhorn/sinkhorn_cuda.cu": "kernel",
        "csrc/sinkhorn/sinkhorn_math.h": "formulas",
        "csrc/cpu_only/cpu_only_cpu.cpp": "no CUDA here",
        "benchmarks/gpu_evidence.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _record(root: Path) -> None:
    evidence = Evidence(source_hash("sinkhorn", root), "NVIDIA H100", "2026-01-01", "2.13.0")
    (root / "benchmarks/gpu_evidence.json").write_text(json.dumps({"sinkhorn": asdict(evidence)}))


def _states(root: Path, compiled: bool = True) -> dict[str, str]:
    return {state.op: state.state for state in kernel_states(compiled, root) if state.op != "cpu_only"}


def test_an_op_without_evidence_has_never_run(root: Path) -> None:
    assert [(state.op, state.state) for state in kernel_states(True, root)] == [
        ("cpu_only", "cpu only"),
        ("sinkhorn", "never run"),
    ]


def test_verified_until_a_source_changes(root: Path) -> None:
    _record(root)
    assert _states(root) == {"sinkhorn": "verified"}
    (root / "csrc/sinkhorn/sinkhorn_math.h").write_text("other formulas")
    assert _states(root) == {"sinkhorn": "stale"}


@pytest.mark.parametrize("change", ["edit", "add", "rename"])
def test_a_change_of_the_core_makes_every_kernel_stale(root: Path, change: str) -> None:
    _record(root)
    header = root / "csrc/core/philox.h"
    if change == "edit":
        header.write_text("core!")
    elif change == "add":
        (root / "csrc/core/new.h").write_text("")
    else:
        header.rename(root / "csrc/core/random.h")
    assert _states(root) == {"sinkhorn": "stale"}


def test_evidence_does_not_count_for_a_build_without_cuda(root: Path) -> None:
    _record(root)
    assert _states(root, compiled=False) == {"sinkhorn": "not compiled"}


def test_a_moved_byte_between_files_changes_the_hash(root: Path) -> None:
    before = source_hash("sinkhorn", root)
    (root / "csrc/sinkhorn/sinkhorn_cuda.cu").write_text("kernelf")
    (root / "csrc/sinkhorn/sinkhorn_math.h").write_text("ormulas")
    assert source_hash("sinkhorn", root) != before


def test_an_unknown_op_is_an_error(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="csrc/missing"):
        source_hash("missing", root)


def test_words_name_the_gpu_and_the_way_out(root: Path) -> None:
    _record(root)
    assert "NVIDIA H100" in str(kernel_states(True, root)[1])
    (root / "csrc/sinkhorn/sinkhorn_math.h").write_text("other formulas")
    assert "make gpu-check" in str(kernel_states(True, root)[1])
