"""What ptxas said of the kernels of this build: nothing spills, nothing warns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kernel_resources import RECORD, kernel_resources, ptxas_logs, warnings
from webssl_fast.ops import cuda_architectures
from webssl_fast.ops.evidence import cuda_ops

# (kernel, architecture): why it may spill. An entry that is no longer needed fails its test.
MAY_SPILL: dict[tuple[str, str], str] = {}

NAMES = (
    "_ZN6webssl14sinkhorn_knopp55_GLOBAL__N__6f9f184f_22_sinkhorn_knopp_cuda_cu_e49f1ca514row_potentialsIfEEvNS0_6LogitsE",
    "_ZN6webssl2op4passILb1ELi8EEEvPf",
)
LOG = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{NAMES[1]}' for 'sm_80'
ptxas info    : Function properties for {NAMES[1]}
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 27 registers, used 1 barriers, 4096 bytes smem, 424 bytes cmem[0]
ptxas info    : Compiling entry function '{NAMES[0]}' for 'sm_90a'
ptxas info    : Function properties for {NAMES[0]}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 432 bytes cmem[0]
"""


def test_reads_what_ptxas_says(tmp_path: Path):
    log = tmp_path / "op" / "op_cuda.cu.o.ptxas"
    log.parent.mkdir()
    log.write_text(LOG)
    spilling, plain = kernel_resources(log)
    assert (spilling.kernel, plain.kernel) == ("pass<true, 8>", "row_potentials<float>")
    assert (spilling.op, spilling.architecture) == ("op", "sm_80")
    assert (spilling.registers, spilling.spill_stores, spilling.spill_loads) == (27, 8, 4)
    assert spilling.static_shared_bytes == 4096
    assert (plain.architecture, plain.registers, plain.static_shared_bytes) == ("sm_90a", 32, 0)
    log.write_text("x.cu(3): warning #177-D: never referenced\n" + LOG)
    assert len(warnings(log)) == 1


@pytest.fixture(scope="module")
def logs() -> list[Path]:
    if not cuda_architectures():
        pytest.skip("built without CUDA kernels")
    if not ptxas_logs():
        pytest.skip("not an installation in place")
    return ptxas_logs()


def test_every_kernel_was_compiled_without_a_warning(logs: list[Path]):
    assert {log.parent.name for log in logs} == set(cuda_ops())
    assert [warning for log in logs for warning in warnings(log)] == []


def test_no_kernel_spills(logs: list[Path]):
    spilling = {
        (k.kernel, k.architecture) for log in logs for k in kernel_resources(log) if k.spill_stores or k.spill_loads
    }
    assert spilling == set(MAY_SPILL)


def test_the_record_knows_every_kernel(logs: list[Path]):
    """Figures change with nvcc's version; which kernels there are does not."""
    recorded = {(k["op"], k["kernel"], k["architecture"]) for k in json.loads(RECORD.read_text())["kernels"]}
    compiled = {(k.op, k.kernel, k.architecture) for log in logs for k in kernel_resources(log)}
    assert compiled <= recorded, "run `python -m benchmarks.kernel_resources`"
