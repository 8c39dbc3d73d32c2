"""Runs every op's GPU tests and benchmark, and writes down which sources passed, on which GPU: `make gpu-check`.

An op's evidence is replaced when its tests pass, and removed when they fail; an op without a GPU test gets none. What
passed is then timed, and its result lines appended to benchmarks/results/ops_gpu.jsonl. Evidence is written after each
op, so that a machine that goes away takes nothing with it. The exit status is 1 where a test or benchmark failed, or an
op with CUDA sources has no test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from webssl_fast.ops import _library
from webssl_fast.ops.evidence import Evidence, cuda_ops, read_evidence, source_hash

ROOT = Path(__file__).parent.parent
NO_TESTS_COLLECTED = 5  # pytest's exit status
# A kernel that waits for what never comes must not keep the other ops from their turn.
LIMIT_S = 150  # for one op's tests, and for its benchmark
TIMED_OUT = 124


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is false): evidence is for what ran, so nothing is written")
        return 1
    if not _library.cuda_architectures():
        print("this build has no CUDA kernels: put nvcc on PATH and run `make build` again")
        return 1
    return 0 if all([_check(op) for op in cuda_ops(ROOT)]) else 1


def _check(op: str) -> bool:
    hash_before = source_hash(op, ROOT)
    files = sorted((ROOT / "tests" / "ops").glob(f"test_{op}*.py"))
    tests = _run("-m", "pytest", "-m", "gpu", *map(str, files))
    evidence = read_evidence(ROOT)
    if tests == 0:
        gpu, today = torch.cuda.get_device_name(), date.today().isoformat()
        evidence[op] = Evidence(hash_before, gpu, today, torch.__version__)
    else:
        evidence.pop(op, None)
    entries = {op: asdict(entry) for op, entry in sorted(evidence.items())}
    (ROOT / "benchmarks" / "gpu_evidence.json").write_text(json.dumps(entries, indent=2) + "\n")
    said = {0: "verified", NO_TESTS_COLLECTED: f"no GPU test in tests/ops/test_{op}*.py", TIMED_OUT: "TIMED OUT"}
    print(f"{op}: {said.get(tests, 'FAILED')}", flush=True)
    return tests == 0 and _run("-m", f"benchmarks.ops.bench_{op}", "--device", "cuda", "--record", "ops_gpu") == 0


def _run(*arguments: str) -> int:
    try:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False, timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


if __name__ == "__main__":
    sys.exit(main())
