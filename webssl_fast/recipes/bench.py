"""`webssl bench`: the microbenchmarks of the kernels, as `python -m benchmarks.ops.bench_<op>` runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from webssl_fast.errors import UserError
from webssl_fast.ops.evidence import SOURCE_ROOT


def bench(op: str | None = None, root: Path = SOURCE_ROOT, **options: object) -> None:
    """Runs one op's benchmark, or all of them in turn, each with the options that are not None; one JSON line a case.

    Raises:
        UserError: no such benchmark, or one that failed.
    """
    benchmarks = available_benchmarks(root)
    if op is not None and op not in benchmarks:
        raise UserError(f"no benchmark of an op {op!r}; there are {', '.join(benchmarks)}")
    arguments = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    failed = []
    for name in benchmarks if op is None else [op]:
        print(f"# {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.ops.bench_{name}", *arguments]
        if subprocess.run(command, cwd=root, check=False).returncode:
            failed.append(name)
    if failed:
        raise UserError(f"the benchmark of {', '.join(failed)} failed; its own words stand above")


def available_benchmarks(root: Path = SOURCE_ROOT) -> list[str]:
    """Names of the ops that have a benchmark."""
    return sorted(path.stem.removeprefix("bench_") for path in (root / "benchmarks" / "ops").glob("bench_*.py"))
