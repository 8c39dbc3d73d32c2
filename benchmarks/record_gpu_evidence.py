"""Runs every op's GPU tests and writes down which sources passed, on which GPU: `make gpu-check`.

An op's evidence is replaced when its tests pass, and removed when they fail; an op without a GPU test gets none. The
exit status is 1 where a test failed or an op with CUDA sources has no test.
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


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is false): evidence is for what ran, so nothing is written")
        return 1
    if not _library.cuda_architectures():
        print("this build has no CUDA kernels: put nvcc on PATH and run `make build` again")
        return 1
    evidence = read_evidence(ROOT)
    all_passed = True
    for op in cuda_ops(ROOT):
        before = source_hash(op, ROOT)
        test = ROOT / "tests" / "ops" / f"test_{op}.py"
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "gpu", str(test)], cwd=ROOT, check=False
        ).returncode
        if status == 0:
            evidence[op] = Evidence(before, torch.cuda.get_device_name(), date.today().isoformat(), torch.__version__)
            print(f"{op}: verified")
            continue
        all_passed = False
        evidence.pop(op, None)
        print(f"{op}: no GPU test in {test}" if status == NO_TESTS_COLLECTED else f"{op}: FAILED")
    entries = {op: asdict(entry) for op, entry in sorted(evidence.items())}
    (ROOT / "benchmarks" / "gpu_evidence.json").write_text(json.dumps(entries, indent=2) + "\n")
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
