import pytest
import torch

from webssl_fast.ops import _library
from webssl_fast.ops import attention as attention_module
from webssl_fast.ops.attention import attention, attention_reference

CASES = {
    "one token": (((1, 1),), 1, 8),
    "odd": (((3, 7), (2, 1), (5, 2)), 3, 5),
    "crops": (((4, 257), (8, 50)), 2, 64),
}


def exact(qkv, groups):
    """softmax(q k^T / sqrt(d)) v in fp64, sequence by sequence and head by head."""
    qkv = qkv.double()
    rows, begin = [], 0
    for count, length in groups:
        for _ in range(count):
            q, k, v = qkv[begin : begin + length].unbind(1)
            heads = []
            for h in range(qkv.shape[2]):
                scores = q[:, h] @ k[:, h].T / qkv.shape[3] ** 0.5
                weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
                heads.append(weights / weights.sum(dim=1, keepdim=True) @ v[:, h])
            rows.append(torch.cat(heads, dim=1))
            begin += length
    return torch.cat(rows)


def random_qkv(groups, heads, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(count * length for count, length in groups)
    return torch.randn(tokens, 3, heads, width, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups,heads,width", CASES.values(), ids=CASES)
def test_matches_reference(groups, heads, width, dtype):
    qkv = random_qkv(groups, heads, width, dtype)
    expected = exact(qkv, groups)
    error = (attention(qkv, groups).double() - expected).abs().max()
    torch_error = (attention_reference(qkv, groups).double() - expected).abs().max()
    # Torch's bf16 SDPA also rounds the probabilities to bf16; a sum of them keeps a relative 2^-8.
    floor = 1e-6 if dtype == torch.float32 else 2**-8 * expected.abs().max()
    assert error <= 2 * torch_error + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups,heads,width", CASES.values(), ids=CASES)
def test_gradients_match_reference(groups, heads, width, dtype):
    qkv = random_qkv(groups, heads, width, dtype)
    weight = random_qkv(groups, heads, width, dtype, seed=1)[:, 0].flatten(1)

    def run(function, leaf):
        leaf = leaf.clone().requires_grad_()
        out = function(leaf, groups)
        out.backward(weight.to(out.dtype))
        return out.detach().double(), leaf.grad.double()

    expected = run(exact, qkv.double())
    for ours, torch_own, value in zip(run(attention, qkv), run(attention_reference, qkv), expected, strict=True):
        floor = 1e-6 if dtype == torch.float32 else 2**-8 * value.abs().max()
        assert (ours - value).abs().max() <= 2 * (torch_own - value).abs().max() + floor


def test_non_contiguous():
    groups = ((2, 5),)
    wide = random_qkv(groups, 2, 12, torch.float32)
    view = wide[..., ::2]
    torch.testing.assert_close(attention(view, groups), attention(view.contiguous(), groups))


def test_reference_can_be_forced():
    groups = ((2, 5),)
    qkv = random_qkv(groups, 2, 8, torch.float32)
    _library.force_reference(True)
    try:
        assert torch.equal(attention(qkv, groups), attention_reference(qkv, groups))
    finally:
        _library.force_reference(False)


def test_compiles_fullgraph():
    groups = ((2, 9), (4, 3))
    qkv = random_qkv(groups, 2, 8, torch.float32)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    results = []
    for function in (attention, compiled):
        leaf = qkv.clone().requires_grad_()
        out = function(leaf, groups)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


def test_compiles_where_kernels_are_looked_for():
    qkv = random_qkv(((2, 9),), 2, 64, torch.bfloat16)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(qkv, ((2, 9),)), attention(qkv, ((2, 9),)))


@pytest.mark.parametrize("capability,first", [((8, 0), "FLASH"), ((9, 0), "CUDNN"), ((10, 0), "FLASH")])
def test_torch_backends_follow_the_gpu(capability, first, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends = attention_module.torch_backends(torch.device("cuda", 0))
    assert backends[0].name == f"{first}_ATTENTION" and backends[-1].name == "MATH"


def test_says_what_runs_where(monkeypatch):
    assert attention_module.implementation(torch.device("cpu")) == "torch's scaled_dot_product_attention"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention_module, "_longest_on_gpu", lambda index, width: {64: 272, 128: 256}[width])
    said = attention_module.implementation(torch.device("cuda", 0))
    assert said.startswith("own kernels in bf16 up to 272 tokens at head width 64, 256 tokens at head width 128; else")
    assert "cudnn_attention" in said


def test_a_build_without_kernels_says_so_on_a_gpu(monkeypatch):
    monkeypatch.setattr(_library, "cuda_architectures", lambda: [])
    with pytest.warns(UserWarning, match="built without CUDA kernels.*nvcc"):
        assert attention_module._longest_on_gpu.__wrapped__(0, 64) == 0


def test_is_deterministic():
    groups = ((2, 50), (3, 17))
    qkv = random_qkv(groups, 2, 16, torch.float32)
    assert torch.equal(attention(qkv, groups), attention(qkv, groups))


@pytest.mark.parametrize(
    "shape,groups,message",
    [
        ((6, 2, 1, 4), ((1, 6),), "needs \\(tokens, 3, heads, head width\\)"),
        ((6, 3, 4), ((1, 6),), "needs \\(tokens, 3, heads, head width\\)"),
        ((6, 3, 1, 4), ((1, 5),), "hold 5 tokens, but qkv_T3Hd has 6"),
        ((6, 3, 1, 4), ((2, 3), (1, 1)), "hold 7 tokens"),
        ((6, 3, 1, 4), ((1, 6), (0, 3)), "at least 1 sequence"),
        ((0, 3, 1, 4), (), "at least 1 sequence"),
    ],
)
def test_rejects_groups_that_do_not_cover_the_tokens(shape, groups, message):
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(shape), groups)
