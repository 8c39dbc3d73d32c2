"""The CUDA kernels behind `attention`: on a GPU, and everywhere else compiled for the host (tests/cuda_on_host)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import webssl_fast.ops.flops  # noqa: F401
from tests.cuda_on_host import emulated
from tests.ops.test_attention import exact, random_qkv
from webssl_fast.ops import _library
from webssl_fast.ops import attention as attention_module
from webssl_fast.ops.attention import attention

# groups, heads, head width
CASES = [
    (((1, 1), (3, 7)), 2, 64),
    (((2, 16),), 1, 128),
    (((1, 17), (2, 1)), 3, 64),
    (((2, 50),), 3, 64),
    (((2, 50), (1, 37)), 1, 128),
    (((1, 98),), 1, 64),
    (((1, 128),), 1, 128),
    (((1, 129),), 1, 128),
    (((1, 257),), 1, 64),
    (((1, 257),), 1, 128),
    (((1, 272),), 1, 64),
    (((1, 272),), 1, 128),
]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A GPU; or the CPU, where for the length of a test the operator is the emulated kernels' and `attention` takes
    them for a GPU's."""
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    request.getfixturevalue("cuda_on_host")
    monkeypatch.setattr(attention_module, "longest_sequence", lambda device, head_width: 272)
    with torch.library._scoped_library("webssl", "IMPL") as library:
        library.impl("attention", attention_module._forward_cuda, "CPU")
        library.impl("attention_backward", attention_module._backward_cuda, "CPU")
        yield torch.device("cpu")


def problem(groups, heads: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(qkv, gradient of the outputs)"""
    qkv = random_qkv(groups, heads, width, torch.bfloat16).to(device)
    grad_out = random_qkv(groups, heads, width, torch.bfloat16, seed=1)[:, 0].flatten(1)
    return qkv, grad_out.contiguous().to(device)


def run(function, qkv: Tensor, groups, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, gradient of qkv)"""
    leaf = qkv.clone().requires_grad_()
    out = function(leaf, groups)
    out.backward(grad_out.to(out.dtype))
    return out.detach(), leaf.grad


def torch_attention(qkv: Tensor, groups) -> Tensor:
    outputs = []
    for part, (count, length) in zip(qkv.split([count * length for count, length in groups]), groups, strict=True):
        q, k, v = part.unflatten(0, (count, length)).transpose(1, 3).unbind(2)
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(outputs)


def check(qkv: Tensor, groups, grad_out: Tensor) -> None:
    """Outputs and gradients, each within twice the error that torch makes in bf16."""

    def parts(function, *arguments) -> dict[str, Tensor]:
        out, grad = run(function, *arguments)
        return {"out": out, "dq": grad[:, 0], "dk": grad[:, 1], "dv": grad[:, 2]}

    ours, theirs = parts(attention, qkv, groups, grad_out), parts(torch_attention, qkv, groups, grad_out)
    for name, expected in parts(exact, qkv.double(), groups, grad_out.double()).items():
        error, torch_error = ((x[name].double() - expected).abs().max().item() for x in (ours, theirs))
        assert error <= 2 * torch_error, f"{name}: {error:.2e}, torch {torch_error:.2e}"


@pytest.mark.parametrize("groups,heads,width", CASES, ids=str)
def test_matches_reference_and_so_do_gradients(device, groups, heads, width):
    qkv, grad_out = problem(groups, heads, width, device)
    check(qkv, groups, grad_out)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_scores_of_any_size(device, scale):
    """Nearly uniform probabilities, and scores so large that all but one vanish and plain exponentials overflow."""
    groups = ((1, 100),)
    qkv, grad_out = problem(groups, 1, 64, device)
    qkv[:, :2] *= scale
    check(qkv, groups, grad_out)


def test_log_sum_exp(device):
    (count, length), heads, width = (2, 50), 3, 64
    qkv, _ = problem(((count, length),), heads, width, device)
    _, log_sum_exp = torch.ops.webssl.attention(qkv, [count], [length])
    q, k, _ = qkv.double().unflatten(0, (count, length)).permute(2, 3, 0, 1, 4)
    expected = torch.logsumexp(q @ k.transpose(-2, -1) / width**0.5, dim=-1).flatten(1)
    torch.testing.assert_close(log_sum_exp.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_nan_stays_visible_and_in_its_sequence(device, part):
    groups, length = ((3, 20),), 20
    qkv, grad_out = problem(groups, 2, 64, device)
    qkv[25, part, 1, 3] = torch.nan
    out, grad = run(attention, qkv, groups, grad_out)
    touched = out.unflatten(0, (3, length)).unflatten(2, (2, 64)).isnan().any(dim=(1, 3))
    assert touched.tolist() == [[False, False], [False, True], [False, False]]
    assert not grad[:length].isnan().any() and not grad[2 * length :].isnan().any() and grad[25].isnan().any()


@pytest.mark.parametrize("groups,heads,width", [CASES[4], CASES[7], CASES[8]], ids=str)
def test_is_deterministic(device, groups, heads, width, monkeypatch):
    """The same bits every time, and in the emulation in any order of the threads."""
    qkv, grad_out = problem(groups, heads, width, device)
    results = []
    for order in ("forward", "backward", "shuffled"):
        monkeypatch.setenv("WEBSSL_EMULATED_ORDER", order)
        results.append(run(attention, qkv, groups, grad_out))
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("count,length,width", [(3, 1, 64), (2, 33, 128), (1, 129, 128)])
def test_reads_and_writes_its_rows_only(device, count, length, width):
    """A group between others: what surrounds it is NaN where it is read, and stays as it is where it is written."""
    heads, first = 2, 5
    last = first + count * length
    tokens = last + 40
    qkv, grad_out = problem(((1, tokens),), heads, width, device)
    for tensor in (qkv, grad_out):
        tensor[:first] = tensor[last:] = torch.nan
    out, grad = torch.full_like(grad_out, 7), torch.full_like(qkv, 7)
    log_sum_exp = torch.full((heads, tokens), 7.0, device=device)
    sizes = (first, count, length, tokens, heads, width)
    with _library.cuda_stream(device) as stream:
        _library.C.attention_cuda(qkv.data_ptr(), *sizes, out.data_ptr(), log_sum_exp.data_ptr(), stream)
        _library.C.attention_backward_cuda(
            qkv.data_ptr(), log_sum_exp.data_ptr(), grad_out.data_ptr(), *sizes, grad.data_ptr(), stream
        )
    groups = ((count, length),)
    expected = run(attention, qkv[first:last], groups, grad_out[first:last])
    assert torch.equal(out[first:last], expected[0]) and torch.equal(grad[first:last], expected[1])
    for written in (out, grad, log_sum_exp.T):
        assert (written[:first] == 7).all() and (written[last:] == 7).all()


def test_non_contiguous(device):
    groups = ((2, 20),)
    qkv, grad_out = problem(groups, 2, 64, device)
    strided_qkv, strided_grad = (x.repeat_interleave(2, dim=-1)[..., ::2] for x in (qkv, grad_out))
    expected = run(attention, qkv, groups, grad_out)
    out = attention(leaf := strided_qkv.requires_grad_(), groups)
    (grad,) = torch.autograd.grad(out, leaf, strided_grad)
    assert torch.equal(out, expected[0]) and torch.equal(grad, expected[1])


def test_longer_groups_and_other_dtypes_go_to_torch(device):
    groups = ((1, 273), (2, 50))
    qkv, grad_out = problem(groups, 1, 64, device)
    ours, expected = run(attention, qkv, groups, grad_out), run(exact, qkv.double(), groups, grad_out.double())
    for result, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(result.double(), value, rtol=2**-5, atol=2**-6)
    short = run(attention, qkv[273:], groups[1:], grad_out[273:])
    assert torch.equal(ours[0][273:], short[0]) and torch.equal(ours[1][273:], short[1])
    torch.testing.assert_close(attention(qkv.float(), groups), torch_attention(qkv.float(), groups))


def test_opcheck(device):
    qkv, grad_out = problem(((2, 5), (1, 3)), 2, 64, device)
    sizes = ([2, 1], [5, 3])
    for leaf in (qkv, qkv.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.webssl.attention, (leaf, *sizes))
    _, log_sum_exp = torch.ops.webssl.attention(qkv, *sizes)
    torch.library.opcheck(torch.ops.webssl.attention_backward, (qkv, log_sum_exp, grad_out, *sizes))


def test_compiles_fullgraph(device):
    """Also when groups change, which makes their numbers symbols to torch.compile."""
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    for groups in (((2, 9), (1, 3)), ((3, 10), (2, 4)), ((1, 11), (4, 5))):
        qkv, grad_out = problem(groups, 2, 64, device)
        results = run(compiled, qkv, groups, grad_out)
        for result, value in zip(results, run(attention, qkv, groups, grad_out), strict=True):
            assert torch.equal(result, value)


def test_flops_are_those_of_the_formula(device):
    groups, heads, width = ((2, 20), (1, 7)), 2, 64
    qkv, grad_out = problem(groups, heads, width, device)
    product = sum(count * 2 * heads * length**2 * width for count, length in groups)
    with FlopCounterMode(display=False) as counter:
        run(attention, qkv, groups, grad_out)
    assert counter.get_total_flops() == (2 + 5) * product


def test_a_second_derivative_is_an_error(device):
    groups = ((1, 5),)
    qkv, grad_out = problem(groups, 1, 64, device)
    out = attention(qkv.requires_grad_(), groups)
    (grad,) = torch.autograd.grad(out, qkv, grad_out, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "change,sizes,error,message",
    [
        (lambda x: x.half(), ([2], [5]), TypeError, "qkv_T3Hd is torch.float16; the kernels need torch.bfloat16"),
        (lambda x: x[..., :32], ([2], [5]), ValueError, "2 heads of width 32; .* width 64 or 128"),
        (lambda x: x[:, :, :0], ([2], [5]), ValueError, "0 heads"),
        (lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), ([2], [5]), ValueError, "has strides .*contiguous"),
        (lambda x: F.pad(x.flatten(), (1, 0))[1:].view(x.shape), ([2], [5]), ValueError, "multiple of 16 bytes"),
        (lambda x: x, ([2], [4]), ValueError, "hold 8 tokens, but qkv_T3Hd has 10"),
        (lambda x: x, ([2, 1], [5]), ValueError, "num_sequences has 2 groups and lengths 1"),
        (lambda x: x.repeat(28, 1, 1, 1)[:273], ([1], [273]), ValueError, r"lengths are \[273\]; .* up to 272 tokens"),
    ],
)
def test_rejects_what_no_kernel_takes(device, change, sizes, error, message):
    qkv, grad_out = problem(((2, 5),), 2, 64, device)
    with pytest.raises(error, match=message):
        torch.ops.webssl.attention(change(qkv), *sizes)
    log_sum_exp = torch.zeros(2, 10, device=device)
    with pytest.raises(error, match=message):
        torch.ops.webssl.attention_backward(change(qkv), log_sum_exp, grad_out, *sizes)


def test_rejects_gradients_that_do_not_fit(device):
    qkv, grad_out = problem(((2, 5),), 2, 64, device)
    log_sum_exp = torch.zeros(2, 10, device=device)
    for arguments, error, message in (
        ((log_sum_exp[:1], grad_out), ValueError, r"log_sum_exp_HT has shape \(1, 10\); it needs \(2, 10\)"),
        ((log_sum_exp.double(), grad_out), TypeError, "log_sum_exp_HT is torch.float64"),
        ((log_sum_exp, grad_out[:9]), ValueError, r"grad_out_TD has shape \(9, 128\)"),
        ((log_sum_exp, grad_out.float()), TypeError, "grad_out_TD is torch.float32"),
        ((log_sum_exp, grad_out.T.contiguous().T), ValueError, "grad_out_TD has strides"),
    ):
        with pytest.raises(error, match=message):
            torch.ops.webssl.attention_backward(qkv, *arguments, [2], [5])


def test_the_kernels_themselves_refuse_what_they_cannot_do(device):
    for count, length, heads, width in ((1, 0, 1, 64), (1, 273, 1, 64), (1, 5, 1, 96), (2**33, 5, 1, 64)):
        with pytest.raises(ValueError, match="attention: "):
            _library.C.attention_cuda(0, 0, count, length, 0, heads, width, 0, 0, 0)


# ---------------------------------------------------------------- index arithmetic


@pytest.mark.parametrize("chunks", [2, 8, 16])
def test_chunks_of_shared_memory(chunks):
    """Each place is used once, and eight rows of one chunk lie in different banks."""
    offset = emulated("_checks").attention_chunk_offset
    places = [[offset(chunks, row, chunk) for chunk in range(chunks)] for row in range(16)]
    assert sorted(sum(places, [])) == list(range(0, 16 * chunks * 8, 8))
    for first in (0, 8):
        for chunk in range(chunks):
            assert len({places[first + i][chunk] // 8 % 8 for i in range(8)}) == 8


@pytest.mark.parametrize("capability,longest", [("70", (0, 0)), ("80", (272, 256)), ("90", (272, 272))])
def test_longest_sequence_is_what_shared_memory_holds(capability, longest, monkeypatch):
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", capability)
    assert tuple(emulated("_C").attention_longest_sequence_cuda(width) for width in (64, 128)) == longest


@pytest.mark.parametrize("width,most", [(64, 8), (128, 9)])
def test_forward_warps_share_the_tiles_in_the_fewest_rounds(width, most):
    for length in range(1, 273):
        warps, tiles = emulated("_checks").attention_forward_warps(length, width), -(-length // 16)
        rounds = -(-tiles // most)
        assert 1 <= warps <= most and -(-tiles // warps) == rounds and (warps == 1 or -(-tiles // (warps - 1)) > rounds)


# ---------------------------------------------------------------- what only a GPU shows


@pytest.mark.gpu
def test_gpu_other_stream_and_graph():
    groups = ((64, 257), (256, 50))
    qkv, grad_out = problem(groups, 6, 64, torch.device("cuda"))
    expected = run(attention, qkv, groups, grad_out)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = [run(attention, qkv, groups, grad_out)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(attention, qkv, groups, grad_out)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    for out, grad in (*results, captured):
        assert torch.equal(out, expected[0]) and torch.equal(grad, expected[1])


@pytest.mark.gpu
def test_gpu_more_than_2_31_elements():
    count, length, heads, width = 5_700, 257, 8, 64
    qkv = torch.randn(count * length, 3, heads, width, device="cuda", dtype=torch.bfloat16)
    grad_out = torch.randn(count * length, heads * width, device="cuda", dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    out, grad = run(attention, qkv, ((count, length),), grad_out)
    last = ((2, length),)
    expected = run(attention, qkv[-2 * length :], last, grad_out[-2 * length :])
    assert torch.equal(out[-2 * length :], expected[0]) and torch.equal(grad[-2 * length :], expected[1])


@pytest.mark.gpu
def test_gpu_more_sequences_than_a_grid_has_rows():
    groups = ((70_000, 3),)
    qkv, grad_out = problem(groups, 1, 64, torch.device("cuda"))
    out, grad = run(attention, qkv, groups, grad_out)
    for first in (0, 65_535 * 3, 69_999 * 3):
        rows = slice(first, first + 3)
        expected = run(attention, qkv[rows], ((1, 3),), grad_out[rows])
        assert torch.equal(out[rows], expected[0]) and torch.equal(grad[rows], expected[1])
