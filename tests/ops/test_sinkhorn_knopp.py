import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from webssl_fast.ops import _library
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp, sinkhorn_knopp_reference, softmax_potentials

SHAPES = [(1, 1), (1, 1000), (5, 1), (7, 33), (61, 4099), (300, 257)]


def exact_targets(logits, temperature, num_iterations=3):
    """The published form: scaling of the K x B matrix Q with its constants, as logarithms in fp64."""
    log_q = logits.double().T / temperature
    num_prototypes, num_rows = log_q.shape
    log_q = log_q - log_q.flatten().logsumexp(0)
    for _ in range(num_iterations):
        log_q = log_q - log_q.logsumexp(1, keepdim=True) - math.log(num_prototypes)
        log_q = log_q - log_q.logsumexp(0, keepdim=True) - math.log(num_rows)
    return (log_q + math.log(num_rows)).T.exp()


def targets(logits, temperature, potentials):
    row, prototype = (p.double() for p in potentials)
    return torch.exp(logits.double() / temperature + row[:, None] + prototype)


def random_logits(num_rows, num_prototypes, dtype=torch.float32, spread=0.3, row_spread=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, num_prototypes, generator=generator) * spread
    return (logits + row_spread * torch.randn(num_rows, 1, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_iterations", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, num_iterations, dtype):
    logits = random_logits(*shape, dtype)
    expected = exact_targets(logits, 0.04, num_iterations)
    ours = targets(logits, 0.04, sinkhorn_knopp(logits, 0.04, num_iterations=num_iterations))
    torch_own = targets(logits, 0.04, sinkhorn_knopp_reference(logits, 0.04, num_iterations=num_iterations))
    assert (ours - expected).abs().max() <= 2 * (torch_own - expected).abs().max() + 1e-6
    assert (ours.sum(dim=1) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
def test_survives_large_row_offsets(temperature):
    logits = random_logits(67, 501, spread=0.1, row_spread=2.0)
    expected = exact_targets(logits, temperature)
    ours = targets(logits, temperature, sinkhorn_knopp(logits, temperature))
    torch_own = targets(logits, temperature, sinkhorn_knopp_reference(logits, temperature))
    assert (ours - expected).abs().max() <= 2 * (torch_own - expected).abs().max() + 1e-6


def test_survives_large_logits():
    """At logits of 1e4 and temperature .04 an fp32 potential has a resolution of 1/32, and so have log targets."""
    logits = random_logits(41, 77).sign() * 1e4 + random_logits(41, 77, seed=1)
    expected = exact_targets(logits, 0.04)
    potentials = sinkhorn_knopp(logits, 0.04)
    assert all(torch.isfinite(p).all() for p in potentials)
    ours = targets(logits, 0.04, potentials)
    torch_own = targets(logits, 0.04, sinkhorn_knopp_reference(logits, 0.04))
    assert (ours - expected).abs().max() <= 2 * (torch_own - expected).abs().max() + 1e-6


@pytest.mark.parametrize("magnitude", [1e-30, 1e20, 1e36])
def test_is_finite_for_extreme_logits(magnitude):
    potentials = sinkhorn_knopp(random_logits(9, 40) * magnitude, 0.04)
    assert all(torch.isfinite(p).all() for p in potentials)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", [(0, 0), (6, 2500)])
def test_nan_stays_visible(position, dtype):
    logits = random_logits(9, 3000, dtype)
    # Of any payload: all bits set.
    logits.view(torch.int32 if dtype == torch.float32 else torch.int16)[position] = -1
    assert logits[position].isnan()
    row, prototype = sinkhorn_knopp(logits, 0.05)
    assert row[position[0]].isnan() and prototype[position[1]].isnan()


def test_is_finite_where_a_prototype_underflows_everywhere():
    logits = torch.zeros(6, 10)
    logits[:, 3] = -1e5
    logits[2, :] += 1e3
    torch.testing.assert_close(
        targets(logits, 0.1, sinkhorn_knopp(logits, 0.1)), exact_targets(logits, 0.1), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("function", [sinkhorn_knopp, sinkhorn_knopp_reference])
def test_ignores_masked_rows(function):
    logits = random_logits(37, 129)
    mask = torch.arange(37) % 3 != 1
    logits[~mask] = 1e6
    row, prototype = function(logits, 0.05, row_mask_R=mask)
    row_alone, prototype_alone = function(logits[mask], 0.05)
    torch.testing.assert_close(row[mask], row_alone)
    torch.testing.assert_close(prototype, prototype_alone)
    assert torch.equal(row[~mask], torch.full(((~mask).sum(),), -torch.inf))


@pytest.mark.parametrize("function", [sinkhorn_knopp, sinkhorn_knopp_reference])
def test_empty(function):
    row, prototype = function(torch.zeros(0, 5), 0.05)
    assert row.shape == (0,) and torch.equal(prototype, torch.zeros(5))
    row, prototype = function(torch.ones(3, 5), 0.05, row_mask_R=torch.zeros(3, dtype=torch.bool))
    assert torch.equal(row, torch.full((3,), -torch.inf)) and torch.equal(prototype, torch.zeros(5))


def test_non_contiguous():
    logits = random_logits(40, 90)
    for view in (logits[:, 5:70], logits[::3], logits.T, logits[:, ::2]):
        torch.testing.assert_close(sinkhorn_knopp(view, 0.05), sinkhorn_knopp(view.contiguous(), 0.05), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_potentials(dtype):
    logits, center = random_logits(13, 333, dtype), random_logits(1, 333, seed=1)[0]
    ours = targets(logits, 0.04, softmax_potentials(logits, 0.04, center))
    expected = torch.softmax((logits.double() - center.double()) / 0.04, dim=1)
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-9)
    _library.force_reference(True)
    try:
        reference = targets(logits, 0.04, softmax_potentials(logits, 0.04, center))
    finally:
        _library.force_reference(False)
    torch.testing.assert_close(reference, expected, rtol=2e-5, atol=1e-9)


def test_carries_no_gradient():
    logits = random_logits(4, 6).requires_grad_()
    assert not any(p.requires_grad for p in sinkhorn_knopp(logits, 0.05))


def test_reference_can_be_forced():
    logits = random_logits(8, 20)
    _library.force_reference(True)
    try:
        forced = sinkhorn_knopp(logits, 0.05)
    finally:
        _library.force_reference(False)
    assert all(torch.equal(a, b) for a, b in zip(forced, sinkhorn_knopp_reference(logits, 0.05), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    logits, potential = random_logits(9, 21, dtype), random_logits(1, 21)[0]
    for mask in (None, torch.arange(9) % 2 == 0):
        torch.library.opcheck(torch.ops.webssl.sinkhorn_column_pass, (logits, 0.05, mask))
        for with_column_sums in (False, True):
            torch.library.opcheck(torch.ops.webssl.sinkhorn_row_pass, (logits, 0.05, potential, mask, with_column_sums))


def test_compiles_fullgraph():
    logits = random_logits(9, 21)
    compiled = torch.compile(sinkhorn_knopp, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, 0.05), sinkhorn_knopp(logits, 0.05), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_deterministic(dtype):
    logits = random_logits(150, 5000, dtype)
    num_threads = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(sinkhorn_knopp(logits, 0.05))
    finally:
        torch.set_num_threads(num_threads)
    for row, prototype in results[1:]:
        assert torch.equal(row, results[0][0]) and torch.equal(prototype, results[0][1])


@pytest.mark.parametrize(
    "kwargs,error,message",
    [
        ({"logits_RK": torch.zeros(3)}, ValueError, "needs 2"),
        ({"logits_RK": torch.zeros(3, 0)}, ValueError, "no prototypes"),
        ({"logits_RK": torch.zeros(3, 4, dtype=torch.float64)}, TypeError, "float32 or bfloat16"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"num_iterations": 0}, ValueError, "num_iterations is 0"),
        ({"row_mask_R": torch.ones(2, dtype=torch.bool)}, ValueError, "logits_RK have 3 rows"),
        ({"row_mask_R": torch.ones(3)}, TypeError, "must be bool"),
    ],
)
def test_rejects_bad_arguments(kwargs, error, message):
    arguments = {"logits_RK": torch.zeros(3, 4), "temperature": 0.05} | kwargs
    with pytest.raises(error, match=message):
        sinkhorn_knopp(**arguments)


def test_rejects_a_center_of_another_size():
    with pytest.raises(ValueError, match="need \\(4,\\)"):
        softmax_potentials(torch.zeros(3, 4), 0.05, torch.zeros(5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 5), (700, 4097)])
def test_gpu_matches_reference(shape, dtype):
    logits = random_logits(*shape, dtype, row_spread=0.5)
    mask = torch.arange(shape[0]) % 5 != 1 if shape[0] > 4 else None
    row, prototype = sinkhorn_knopp(logits.cuda(), 0.04, row_mask_R=None if mask is None else mask.cuda())
    cpu_row, cpu_prototype = sinkhorn_knopp(logits, 0.04, row_mask_R=mask)
    torch.testing.assert_close(row.cpu(), cpu_row, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(prototype.cpu(), cpu_prototype, rtol=1e-5, atol=2e-5)


@pytest.mark.gpu
def test_gpu_more_than_2_31_elements():
    logits = torch.randn(16_400, 131_072, device="cuda", dtype=torch.bfloat16) * 0.3
    assert logits.numel() > 2**31
    row, prototype = sinkhorn_knopp(logits, 0.04)
    last = torch.exp(logits[-5:].double() / 0.04 + row[-5:, None].double() + prototype.double())
    torch.testing.assert_close(last.sum(dim=1), torch.ones(5, device="cuda", dtype=torch.float64), rtol=0, atol=1e-4)


SPLITS = [(20, 30), (0, 50)]  # rows of each rank


def _rank(rank, path, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for split in SPLITS:
        logits = random_logits(50, 300, row_spread=0.5).split(split)[rank]
        results[rank, split] = (sinkhorn_knopp(logits, 0.05), sinkhorn_knopp_reference(logits, 0.05))
    dist.destroy_process_group()


def test_two_processes_match_one(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(tmp_path / "rendezvous", results), nprocs=2)
        results = dict(results)
    row, prototype = sinkhorn_knopp(random_logits(50, 300, row_spread=0.5), 0.05)
    for split in SPLITS:
        for ranks in zip(results[0, split], results[1, split], strict=True):  # ours, then the reference
            torch.testing.assert_close(torch.cat([r for r, _ in ranks]), row, rtol=1e-5, atol=2e-5)
            for _, rank_prototype in ranks:
                torch.testing.assert_close(rank_prototype, prototype, rtol=1e-5, atol=2e-5)
