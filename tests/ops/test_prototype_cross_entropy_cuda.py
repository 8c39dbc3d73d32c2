"""The CUDA kernels of the prototype cross-entropy: emulated on the host, and (mark `gpu`) on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_prototype_cross_entropy import DTYPES, SHAPES, TEMPERATURES, exact, problem, run
from webssl_fast.ops import prototype_cross_entropy as op
from webssl_fast.ops.prototype_cross_entropy import (
    forward_kernel,
    prototype_cross_entropy,
    prototype_cross_entropy_reference,
)

# Student rows, teacher rows, pairs, prototypes; threads hold 1, 2 or 4 pieces of 8 prototypes.
CLUSTER_SHAPES = [(3, 2, 1, 32_768), (2, 3, 3, 33_000), (1, 1, 1, 70_000)]


@pytest.fixture
def emulated(cuda_on_host, monkeypatch):
    """Loss and gradient of the emulated kernels, as on an H100."""
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", "90")

    def loss_and_gradient(*arguments, with_gradient=True):
        return op._forward_cuda(*arguments, *TEMPERATURES.values(), with_gradient)

    return loss_and_gradient


def kernel_of(arguments) -> str:
    student, teacher, _, prototype_potential, *_ = arguments
    return forward_kernel(student, teacher, prototype_potential)


def check(loss_and_gradient, arguments) -> None:
    """Within twice torch's own error against fp64."""
    expected_loss, expected_grad = exact(*arguments)
    torch_loss, torch_grad = run(prototype_cross_entropy_reference, arguments)
    loss, grad = loss_and_gradient(*arguments)
    assert grad.dtype == arguments[0].dtype
    assert (loss - expected_loss).abs() <= 2 * (torch_loss - expected_loss).abs() + 3e-7 * expected_loss.abs() + 1e-6
    error, torch_error = ((g.double() - expected_grad).abs().max() for g in (grad, torch_grad))
    assert error <= 2 * torch_error + 1e-6


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*CLUSTER_SHAPES, *SHAPES, (7, 9, 2, 40)], ids=str)
def test_matches_reference(emulated, shape, dtypes):
    arguments = problem(*shape, dtypes)
    assert kernel_of(arguments) == ("cluster" if shape in CLUSTER_SHAPES else "block")
    check(emulated, arguments)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_matches_reference_without_clusters(emulated, dtypes, monkeypatch):
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", "80")
    arguments = problem(*CLUSTER_SHAPES[0], dtypes)
    assert kernel_of(arguments) == "block"
    check(emulated, arguments)


@pytest.mark.parametrize("num_prototypes", [301, 32_768])
def test_survives_large_logits(emulated, num_prototypes):
    student, teacher, row, prototype, rows, weights = problem(2, 3, 2, num_prototypes)
    student = student * 1e4
    row = torch.full_like(row, 0.0) - torch.logsumexp(teacher / 0.04, dim=1)
    check(emulated, (student, teacher, row, torch.zeros_like(prototype), rows, weights))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
@pytest.mark.parametrize("num_prototypes", [3000, 32_768])
def test_nan_stays_visible(emulated, num_prototypes, index):
    arguments = problem(1, 1, 1, num_prototypes)
    arguments[index].view(torch.int32).view(-1)[-1] = -1
    loss, grad = emulated(*arguments)
    assert loss.isnan() and grad[0, -1].isnan()


@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[1]], ids=str)
def test_a_cluster_takes_several_rows(emulated, dtypes):
    """49 rows for 16 clusters: stages are used again, after rows that were skipped too."""
    student, teacher, row, prototype, rows, weights = problem(49, 3, 2, 32_768, dtypes)
    kept = torch.zeros(49, 1, dtype=torch.bool)
    kept[[0, 16, 17, 32, 48]] = True
    weights = torch.where(kept, weights + 0.1, 0.0)
    weights[16, 0] = 0
    rows = rows.clamp_max(2)
    check(emulated, (student, teacher, row, prototype, rows, weights))


@pytest.mark.parametrize("num_prototypes", [5, 32_768])
def test_target_rows_out_of_range_make_the_loss_nan(emulated, num_prototypes):
    student, teacher, row, prototype, rows, weights = problem(4, 3, 1, num_prototypes)
    weights[1:] = 0
    weights[2] = 1
    rows[2, 0] = 3
    loss, grad = emulated(student, teacher, row, prototype, rows, weights)
    assert loss.isnan() and not grad.any()


@pytest.mark.parametrize("num_prototypes", [5, 32_768])
def test_empty(emulated, num_prototypes):
    student, teacher, row, prototype, _, _ = problem(2, 3, 1, num_prototypes)
    for num_students, num_pairs in ((0, 2), (2, 0)):
        rows = torch.zeros(num_students, num_pairs, dtype=torch.int64)
        loss, grad = emulated(student[:num_students], teacher, row, prototype, rows, rows.float())
        assert loss == 0 and torch.equal(grad, torch.zeros(num_students, num_prototypes))


@pytest.mark.parametrize("num_prototypes", [40, 32_768])
def test_no_gradient_is_written_where_none_is_wanted(emulated, num_prototypes):
    arguments = problem(2, 3, 1, num_prototypes)
    loss, grad = emulated(*arguments, with_gradient=False)
    assert grad.numel() == 0 and torch.equal(loss, emulated(*arguments)[0])


def test_non_contiguous(emulated):
    """Rows at any address and distance; the kernel on clusters wants multiples of 16 bytes."""
    student, teacher, row, prototype, rows, weights = problem(4, 3, 2, 32_776, DTYPES[1])
    for kernel, columns, step in (("cluster", slice(8, None), 2), ("block", slice(1, -7), 1)):
        view = (student[::step, columns], teacher[:, columns], row, prototype[columns].clone(), rows[::step])
        arguments = (*view, weights[::step])
        assert kernel_of(arguments) == kernel
        check(emulated, arguments)


@pytest.mark.parametrize("shape", [(4, 3, 2, 1000), (3, 2, 2, 32_776)], ids=str)
def test_is_deterministic(emulated, shape, thread_order, monkeypatch):
    """The same bits in whatever order threads run."""
    arguments = problem(*shape, DTYPES[1])
    loss, grad = emulated(*arguments)
    monkeypatch.setenv("WEBSSL_EMULATED_ORDER", "forward")
    forward_loss, forward_grad = emulated(*arguments)
    assert torch.equal(loss, forward_loss) and torch.equal(grad, forward_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset,num_elements", [(0, 5003), (1, 77), (0, 0)])
@pytest.mark.parametrize("scale", [1.0, -0.37])
def test_backward_scales_in_place(cuda_on_host, dtype, offset, num_elements, scale):
    storage = torch.randn(offset + num_elements, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad, expected = storage[offset:], (storage[offset:].float() * scale).to(dtype)
    op._backward_cuda(grad, torch.tensor(scale))
    assert torch.equal(grad, expected)


# ---------------------------------------------------------------- on a GPU

GPU_SHAPES = [(1, 1, 1, 32_768), (80, 16, 2, 32_776), (61, 40, 1, 70_000), (90, 33, 3, 131_072), (20, 7, 1, 131_080)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_gpu_long_rows_match_reference(shape, dtypes):
    arguments = problem(*shape, dtypes)
    on_gpu = [tensor.cuda() for tensor in arguments]
    on_cluster = torch.cuda.get_device_capability() == (9, 0) and shape[-1] <= 131_072
    assert kernel_of(on_gpu) == ("cluster" if on_cluster else "block")
    loss, grad = run(prototype_cross_entropy, on_gpu, 0.7)
    expected_loss, expected_grad = run(prototype_cross_entropy, arguments, 0.7)
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-5, atol=1e-5)
    rtol = 2**-7 if dtypes[0] == torch.bfloat16 else 1e-4
    torch.testing.assert_close(grad.cpu(), expected_grad, rtol=rtol, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(50, 20, 2, 3001), (200, 60, 2, 32_768)], ids=str)
def test_gpu_is_deterministic(shape):
    arguments = [tensor.cuda() for tensor in problem(*shape, DTYPES[1])]
    results = [run(prototype_cross_entropy, arguments, 0.3) for _ in range(3)]
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.gpu
@pytest.mark.parametrize("num_prototypes", [50, 32_768])
def test_gpu_opcheck(num_prototypes):
    student, *others = (tensor.cuda() for tensor in problem(4, 3, 2, num_prototypes, DTYPES[1]))
    for with_gradient in (False, True):
        leaf = student.clone().requires_grad_(with_gradient)
        torch.library.opcheck(
            torch.ops.webssl.prototype_cross_entropy, (leaf, *others, *TEMPERATURES.values(), with_gradient)
        )
    scale = torch.tensor(2.0, device="cuda")
    torch.library.opcheck(torch.ops.webssl.prototype_cross_entropy_backward, (student.clone(), scale))


@pytest.mark.gpu
@pytest.mark.parametrize("num_prototypes", [1000, 32_768])
def test_gpu_graph_capture_on_a_stream_of_its_own(num_prototypes):
    student, *others = (tensor.cuda() for tensor in problem(40, 20, 2, num_prototypes, DTYPES[1]))
    arguments = (student, *others, *TEMPERATURES.values(), True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.ops.webssl.prototype_cross_entropy(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.webssl.prototype_cross_entropy(*arguments)
    student.copy_(problem(40, 20, 2, num_prototypes, DTYPES[1], seed=1)[0])
    graph.replay()
    for a, b in zip(captured, torch.ops.webssl.prototype_cross_entropy(*arguments), strict=True):
        assert torch.equal(a, b)
