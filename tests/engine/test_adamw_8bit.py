import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.engine.toy_method import ToyLoader, ToyMethod
from webssl_fast.config.schema import OptimConfig
from webssl_fast.engine import adamw_8bit
from webssl_fast.engine.adamw_8bit import AdamW8bit, block_size
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.errors import UserError

pytest.importorskip("torchao")
CPU = Distributed(torch.device("cpu"))


def make(shape=(64, 128), dtype=torch.float32, seed=0, betas=(0.9, 0.99)):
    torch.manual_seed(1)
    weight = torch.randn(shape).to(dtype).requires_grad_()
    optimizer = AdamW8bit([{"params": [weight]}], {weight: ("weight", weight)}, betas, 1e-8, seed=seed)
    return weight, optimizer


def take(optimizer, weight, grad, step, lr=0.01, weight_decay=0.1, found_inf=0.0):
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, weight_decay
    weight.grad, optimizer.found_inf, optimizer.step_index = grad.to(weight.dtype), torch.tensor(found_inf), step
    optimizer.step()


@pytest.mark.parametrize("shape, tolerance", [((64, 128), 0.03), ((8, 3), 1e-5)], ids=["8 bits", "small: fp32"])
def test_stays_near_adamw_written_from_its_formulas(shape, tolerance):
    weight, optimizer = make(shape)
    generator = torch.Generator().manual_seed(0)
    w = weight.detach().double().numpy().copy()
    start, m, v = w.copy(), 0.0, 0.0
    for step in range(20):
        grad = torch.randn(shape, generator=generator) + 0.5
        take(optimizer, weight, grad, step)
        g = grad.double().numpy()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.99 ** (step + 1))
        w -= 0.01 * 0.1 * w + 0.01 * m_hat / (np.sqrt(v_hat) + 1e-8)
    error = np.linalg.norm(weight.detach().double().numpy() - w) / np.linalg.norm(w - start)
    assert error < tolerance
    assert optimizer.state[weight]["step"] == 20


@pytest.mark.nightly
def test_takes_the_first_steps_of_torchao():
    """torchao's AdamW8bit at the same block size (it compiles its step, which takes a while)."""
    from torchao.optim import AdamW8bit as Torchao

    weight, optimizer = make((64, 128))
    twin = weight.detach().clone().requires_grad_()
    other = Torchao([twin], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, block_size=128)
    assert block_size(weight.shape) == 128
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        grad = torch.randn(weight.shape, generator=generator)
        take(optimizer, weight, grad, step)
        twin.grad = grad
        other.step()
    torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6)
    same = (other.state[twin]["exp_avg"].codes == optimizer.state[weight]["exp_avg_codes"]).float().mean()
    assert same > 0.999  # a value on the edge between two codes may fall either way


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_compiles_is_one_graph_that_computes_the_same(dtype, monkeypatch):
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    compiled = torch.compile(adamw_8bit._update_8bit.__wrapped__, dynamic=True, fullgraph=True, backend=graphs)
    for shape in ((64, 128), (32, 256), (16, 2048)):
        eager, optimizer = make(shape, dtype)
        fused, other = make(shape, dtype)
        for step in range(3):
            grad = torch.randn(shape)
            take(optimizer, eager, grad, step)
            with monkeypatch.context() as patch:
                patch.setattr(adamw_8bit, "_update_8bit", compiled)
                take(other, fused, grad, step)
        torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-6)
        codes = [o.state[w]["exp_avg_codes"] for o, w in ((optimizer, eager), (other, fused))]
        assert (codes[0] == codes[1]).float().mean() > 0.999
    assert graphs.frame_count <= 2  # and not one for each of the three shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_before", [0, 3])
def test_a_step_that_is_not_finite_changes_nothing(dtype, num_before):
    weight, optimizer = make(dtype=dtype)
    for step in range(num_before):
        take(optimizer, weight, torch.randn(weight.shape), step)
    before = {k: t.clone() for k, t in {**optimizer.state[weight], "weight": weight.detach()}.items()}
    grad = torch.randn(weight.shape)
    grad[3, 5] = torch.nan
    take(optimizer, weight, grad, num_before, found_inf=1.0)
    for name, tensor in {**optimizer.state[weight], "weight": weight.detach()}.items():
        assert torch.equal(tensor, before[name]), name


def test_bf16_weights_follow_updates_that_rounding_to_nearest_would_lose():
    weight, optimizer = make(dtype=torch.bfloat16)
    start = weight.detach().float().clone()
    for step in range(100):
        # Constant gradients: each update is lr, 0.02% of a typical weight, below half of bf16's spacing.
        take(optimizer, weight, torch.ones(weight.shape), step, lr=2e-4, weight_decay=0.0)
    large = start.abs() > 0.25
    moved = (weight.detach().float() - start)[large].mean().item()
    assert moved == pytest.approx(-100 * 2e-4, rel=0.05)


def test_memory_is_a_byte_a_moment():
    weight, optimizer = make((512, 1024))
    num_bytes = sum(t.nbytes for t in optimizer.state[weight].values())
    assert num_bytes < 2.02 * weight.numel()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4096, 4096), 2048),
        ((4096, 11008), 1376),  # w3 of the 7B, padded to multiples of 64
        ((4096, 10928), 1366),
        ((2 * 10928, 4096), 2048),
        ((131072, 384), 384),
        ((1, 257, 1536), 1542),
        ((4096, 67), 67),
        ((4096, 61), None),
        ((4096,), None),
        ((8, 64), None),
    ],
)
def test_blocks_lie_within_rows(shape, expected):
    assert block_size(torch.Size(shape)) == expected
    assert expected is None or torch.Size(shape[1:]).numel() % expected == 0


def test_bf16_weights_are_refused_by_optimizers_that_round_to_nearest():
    method = ToyMethod().to(torch.bfloat16)
    with pytest.raises(UserError, match="set optim.implementation=torchao_8bit, which rounds stochastically"):
        Optimizer(method, OptimConfig(), CPU, num_steps=1, global_batch_size=8)


def test_the_engines_optimizer_trains_with_it():
    method = ToyMethod(width=64)
    method.initialize(0)
    config = OptimConfig(implementation="torchao_8bit", base_lr=0.1, warmup_steps=0)
    optimizer = Optimizer(method, config, CPU, num_steps=30, global_batch_size=256)
    losses = []
    for step in range(30):
        loss = method.training_step(ToyLoader(4, 1).batch(0, 0), step)[0]
        loss.backward()
        optimizer.step(step, loss)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    names = {p: n for n, p in method.named_parameters()}
    tensors = optimizer.state_tensors(names)
    assert tensors["student.backbone.2.weight.exp_avg_codes"].dtype == torch.uint8
    assert tensors["student.backbone.2.weight.exp_avg_scales"].shape == (64, 1)
    assert tensors["student.backbone.2.bias.exp_avg"].dtype == torch.float32
