import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from webssl_fast.methods import ema
from webssl_fast.methods.ema import copy_parameters, ema_update
from webssl_fast.rounding import rounding_key


def twins(average_dtype, source_dtype):
    torch.manual_seed(0)
    source = nn.Linear(64, 64)
    average = copy.deepcopy(source).to(average_dtype)
    with torch.no_grad():
        for p in source.parameters():
            p.mul_(1.05)
    return average, source.to(source_dtype)


@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16])
def test_fp32_average_follows_its_formula(source_dtype):
    average, source = twins(torch.float32, source_dtype)
    expected = 0.9 * average.weight.double() + 0.1 * source.weight.double()
    ema_update(average, source, 0.9, seed=0, step=0)
    torch.testing.assert_close(average.weight.double(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("momentum", [0.994, 0.9995])
def test_bf16_average_stands_still_to_nearest_and_moves_when_rounded_stochastically(momentum):
    average, source = twins(torch.bfloat16, torch.float32)
    start, target = average.weight.detach().double(), source.weight.detach().double()
    nearest = average.weight.detach().clone()
    num_steps = 200
    for step in range(num_steps):
        nearest = torch.lerp(nearest.float(), source.weight.detach(), 1 - momentum).bfloat16()
        ema_update(average, source, momentum, seed=0, step=step)
    # A step is (1 - momentum) * 5% of a weight, at most 0.03%; half of bf16's spacing is at least 0.2%.
    assert torch.equal(nearest.double(), start)
    covered = ((average.weight.detach().double() - start) / (target - start)).mean().item()
    assert covered == pytest.approx(1 - momentum**num_steps, abs=0.03)


@pytest.mark.nightly
def test_what_a_gpu_compiles_is_one_graph_that_computes_the_same():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("inductor")
    compiled = torch.compile(ema._lerp_bf16_.__wrapped__, dynamic=True, fullgraph=True, backend=graphs)
    for step, size in enumerate((1000, 64, 4097)):
        average, source = torch.randn(size).bfloat16(), torch.randn(size)
        fused, weight, key = average.clone(), torch.tensor(0.01 * (step + 1)), rounding_key(0, "ema", step, "x")
        ema._lerp_bf16_(average, source, weight, key, 1000 * step)
        compiled(fused, source, weight, key, 1000 * step)
        assert torch.equal(average, fused)
    assert graphs.frame_count <= 2  # a first element of 0 is another graph


def test_bf16_average_is_a_function_of_seed_and_step():
    def once(seed, step):
        average, source = twins(torch.bfloat16, torch.float32)
        ema_update(average, source, 0.99, seed=seed, step=step)
        return average.weight

    assert torch.equal(once(0, 3), once(0, 3))
    assert not torch.equal(once(0, 3), once(0, 4)) and not torch.equal(once(0, 3), once(1, 3))


def test_copies_across_dtypes():
    average, source = twins(torch.bfloat16, torch.float32)
    copy_parameters(average, source)
    assert torch.equal(average.weight, source.weight.bfloat16())
