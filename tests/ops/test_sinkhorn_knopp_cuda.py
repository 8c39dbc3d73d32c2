"""The CUDA kernels of Sinkhorn-Knopp: emulated on the host, and (mark `gpu`) on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_sinkhorn_knopp import exact_targets, random_logits, targets
from webssl_fast.ops import sinkhorn_knopp as op
from webssl_fast.ops.sinkhorn_knopp import row_pass_kernel, sinkhorn_knopp, sinkhorn_knopp_reference

# Rows are held by 8 blocks x 512 threads x 1, 2 or 4 pieces of 8 prototypes.
CLUSTER_SHAPES = [(3, 32768), (1, 33000), (2, 70000)]
SLAB_SHAPES = [(1, 1), (5, 1), (7, 33), (13, 1000), (9, 4099)]


@pytest.fixture
def emulated(cuda_on_host, monkeypatch):
    """`sinkhorn_knopp` runs the emulated kernels on CPU tensors, as on an H100."""
    monkeypatch.setattr(torch.ops.webssl, "sinkhorn_column_pass", op._column_pass_cuda)
    monkeypatch.setattr(torch.ops.webssl, "sinkhorn_row_pass", op._row_pass_cuda)
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", "90")
    return cuda_on_host


@pytest.fixture
def on_sm_80(emulated, monkeypatch):
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", "80")


def kernel_of(logits: torch.Tensor) -> str:
    return row_pass_kernel(logits, torch.zeros(logits.shape[1]))


def check_targets(logits: torch.Tensor, num_iterations: int = 2, temperature: float = 0.04) -> None:
    expected = exact_targets(logits, temperature, num_iterations)
    ours = targets(logits, temperature, sinkhorn_knopp(logits, temperature, num_iterations=num_iterations))
    torch_own = sinkhorn_knopp_reference(logits, temperature, num_iterations=num_iterations)
    torch_error = (targets(logits, temperature, torch_own) - expected).abs().max()
    assert (ours - expected).abs().max() <= 2 * torch_error + 1e-6
    assert (ours.sum(dim=1) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*CLUSTER_SHAPES, *SLAB_SHAPES], ids=str)
def test_matches_reference(emulated, shape, dtype):
    logits = random_logits(*shape, dtype, row_spread=0.5)
    assert kernel_of(logits) == ("cluster" if shape in CLUSTER_SHAPES else "slabs")
    check_targets(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_reference_without_clusters(on_sm_80, dtype):
    logits = random_logits(3, 32768, dtype)
    assert kernel_of(logits) == "slabs"
    check_targets(logits)


def test_several_slabs(emulated):
    logits = random_logits(33, 131_080)  # 32 rows of fp32 are 16 MiB
    assert kernel_of(logits) == "slabs"
    row, sums = op._row_pass_cuda(logits, 0.3, torch.zeros(131_080), None, True)
    softmax = torch.softmax(logits.double() / 0.3, dim=1)
    torch.testing.assert_close(row.double(), -torch.logsumexp(logits.double() / 0.3, dim=1), rtol=0, atol=2e-5)
    torch.testing.assert_close(sums.double(), softmax.sum(dim=0), rtol=2e-5, atol=0)


@pytest.mark.nightly
def test_rows_that_share_one_read_of_the_potentials(emulated):
    """Without prototype sums, from 1,024 rows on four to a block; the last block has two."""
    logits, potential = random_logits(1026, 40, torch.bfloat16), random_logits(1, 40, seed=1)[0]
    mask = torch.arange(1026) % 5 != 1
    row, sums = op._row_pass_cuda(logits, 0.3, potential, mask, False)
    expected = -torch.logsumexp(logits.double() / 0.3 + potential.double(), dim=1)
    torch.testing.assert_close(row.double(), expected.masked_fill(~mask, -torch.inf), rtol=1e-6, atol=1e-6)
    assert sums.numel() == 0


@pytest.mark.parametrize("num_prototypes", [501, 32_776])
def test_survives_large_row_offsets(emulated, num_prototypes):
    check_targets(random_logits(6, num_prototypes, torch.bfloat16, spread=0.1, row_spread=2.0))


@pytest.mark.parametrize("num_prototypes", [40, 32_768])
@pytest.mark.parametrize("magnitude", [1e-30, 1e36])
def test_is_finite_for_extreme_logits(emulated, magnitude, num_prototypes):
    potentials = sinkhorn_knopp(random_logits(2, num_prototypes) * magnitude, 0.04, num_iterations=2)
    assert all(torch.isfinite(p).all() for p in potentials)


@pytest.mark.parametrize("num_prototypes", [1000, 32_768])
def test_nan_stays_visible(emulated, num_prototypes):
    logits = random_logits(2, num_prototypes)
    logits[1, 700] = torch.nan
    row, prototype = sinkhorn_knopp(logits, 0.05, num_iterations=2)
    assert row[1].isnan() and prototype[700].isnan()


@pytest.mark.parametrize("shape", [(37, 129), (21, 1024), (9, 32_768)], ids=str)
def test_ignores_masked_rows(emulated, shape):
    logits = random_logits(*shape)
    mask = torch.arange(shape[0]) % 3 != 1
    logits[~mask] = 1e6
    assert kernel_of(logits) == ("cluster" if shape[1] == 32_768 else "slabs")
    row, prototype = sinkhorn_knopp(logits, 0.05, row_mask_R=mask, num_iterations=2)
    row_alone, prototype_alone = sinkhorn_knopp_reference(logits[mask], 0.05, num_iterations=2)
    torch.testing.assert_close(row[mask], row_alone, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(prototype, prototype_alone, rtol=1e-5, atol=2e-5)
    assert torch.equal(row[~mask], torch.full(((~mask).sum(),), -torch.inf))


@pytest.mark.parametrize("num_prototypes", [5, 32_768])
def test_empty(emulated, num_prototypes):
    row, prototype = sinkhorn_knopp(torch.zeros(0, num_prototypes), 0.05)
    assert row.shape == (0,) and torch.equal(prototype, torch.zeros(num_prototypes))
    masked = torch.zeros(3, dtype=torch.bool)
    row, prototype = sinkhorn_knopp(torch.ones(3, num_prototypes), 0.05, row_mask_R=masked)
    assert torch.equal(row, torch.full((3,), -torch.inf)) and torch.equal(prototype, torch.zeros(num_prototypes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_non_contiguous(emulated, dtype):
    """Rows at any address and distance; the kernel on clusters wants multiples of 16 bytes."""
    wide = random_logits(4, 33_000, dtype)
    views = {
        "aligned": (wide[::2, 8 : 8 + 32_768], "cluster"),
        "not aligned": (wide[::2, 1 : 1 + 32_768], "slabs"),
        "odd stride": (wide.flatten()[: 3 * 32_769].view(3, 32_769)[:, :32_768], "slabs"),
        "repeated row": (wide[:1, :32_768].expand(2, -1), "cluster"),
    }
    for name, (view, kernel) in views.items():
        assert kernel_of(view) == kernel, name
        row, prototype = sinkhorn_knopp(view, 0.05, num_iterations=2)
        expected_row, expected_prototype = sinkhorn_knopp_reference(view, 0.05, num_iterations=2)
        torch.testing.assert_close(row, expected_row, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(prototype, expected_prototype, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(9, 1000), (3, 32_776)], ids=str)
def test_is_deterministic(emulated, shape, thread_order, monkeypatch):
    """The same bits in whatever order threads run."""
    logits = random_logits(*shape, torch.bfloat16)
    results = [sinkhorn_knopp(logits, 0.05, num_iterations=2)]
    monkeypatch.setenv("WEBSSL_EMULATED_ORDER", "forward")
    results.append(sinkhorn_knopp(logits, 0.05, num_iterations=2))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("on_clusters", [False, True])
def test_workspaces_are_small(cuda_on_host, on_clusters):
    """At 5,000 x 131,072 bf16 logits, all that a pass holds besides them is under 2% of them."""
    num_rows, num_prototypes = 5000, 131_072
    column_partitions = cuda_on_host.sinkhorn_num_column_partitions_cuda(num_rows, num_prototypes)
    row_partitions = cuda_on_host.sinkhorn_num_row_partitions_cuda(num_rows, num_prototypes, on_clusters)
    vectors_K = 4 + max(2 * column_partitions, row_partitions)  # maximum, sum, potential and its successor
    num_bytes = 4 * (vectors_K * num_prototypes + num_rows)
    assert num_bytes < 0.02 * num_rows * num_prototypes * 2


# ---------------------------------------------------------------- on a GPU

GPU_SHAPES = [(1, 32_768), (37, 32_776), (61, 65_536), (300, 70_000), (130, 131_072), (40, 131_080), (1030, 32_768)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_gpu_long_rows_match_reference(shape, dtype):
    logits = random_logits(*shape, dtype, row_spread=0.5).cuda()
    on_cluster = torch.cuda.get_device_capability() == (9, 0) and shape[1] <= 131_072
    assert row_pass_kernel(logits, torch.zeros(shape[1], device="cuda")) == ("cluster" if on_cluster else "slabs")
    row, prototype = sinkhorn_knopp(logits, 0.04)
    expected_row, expected_prototype = sinkhorn_knopp_reference(logits, 0.04)
    torch.testing.assert_close(row, expected_row, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(prototype, expected_prototype, rtol=1e-5, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(150, 5000), (400, 32_768)], ids=str)
def test_gpu_is_deterministic(shape):
    logits = random_logits(*shape, torch.bfloat16).cuda()
    results = [sinkhorn_knopp(logits, 0.05) for _ in range(3)]
    for row, prototype in results[1:]:
        assert torch.equal(row, results[0][0]) and torch.equal(prototype, results[0][1])


@pytest.mark.gpu
@pytest.mark.parametrize("num_prototypes", [21, 32_768])
def test_gpu_opcheck(num_prototypes):
    logits = random_logits(9, num_prototypes, torch.bfloat16).cuda()
    potential = torch.zeros(num_prototypes, device="cuda")
    for mask in (None, torch.arange(9, device="cuda") % 2 == 0):
        torch.library.opcheck(torch.ops.webssl.sinkhorn_column_pass, (logits, 0.05, mask))
        for with_column_sums in (False, True):
            torch.library.opcheck(torch.ops.webssl.sinkhorn_row_pass, (logits, 0.05, potential, mask, with_column_sums))


@pytest.mark.gpu
@pytest.mark.parametrize("num_prototypes", [1000, 32_768])
def test_gpu_graph_capture_on_a_stream_of_its_own(num_prototypes):
    logits = random_logits(70, num_prototypes, torch.bfloat16).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sinkhorn_knopp(logits, 0.05)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sinkhorn_knopp(logits, 0.05)
    logits.copy_(random_logits(70, num_prototypes, torch.bfloat16, seed=1))
    graph.replay()
    for a, b in zip(captured, sinkhorn_knopp(logits, 0.05), strict=True):
        assert torch.equal(a, b)
