"""The emulation itself: what is right runs as on a GPU, what is wrong shows."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_host import emulated


@pytest.fixture(scope="module")
def checks():
    return emulated("_checks")


@pytest.mark.parametrize("transposed_b", [False, True])
def test_tensor_core_product_with_its_loads(checks, thread_order, transposed_b):
    a, b = (torch.randn(16, n, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (16, 8))
    stored_b = b.contiguous() if transposed_b else b.T.contiguous()
    d = torch.empty(16, 8)
    checks.product(a.data_ptr(), stored_b.data_ptr(), d.data_ptr(), transposed_b)
    torch.testing.assert_close(d, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_barrier(checks, thread_order):
    x, out = torch.arange(96.0), torch.empty(96)
    checks.rotate(x.data_ptr(), out.data_ptr(), 96, True)
    assert torch.equal(out, x.roll(-1))


def test_a_missing_barrier_shows_in_the_order_of_threads(checks, monkeypatch):
    x, outs = torch.arange(96.0), []
    for order in ("forward", "backward"):
        monkeypatch.setenv("WEBSSL_EMULATED_ORDER", order)
        outs.append(torch.empty(96))
        checks.rotate(x.data_ptr(), outs[-1].data_ptr(), 96, False)
    assert not torch.equal(*outs)
    assert outs[0].isnan().any(), "shared memory that nobody wrote is NaN"


def test_functions_of_a_warp(checks, thread_order):
    x, out = torch.arange(64.0), torch.empty(64)
    checks.warp_sums(x.data_ptr(), out.data_ptr(), 64)
    assert torch.equal(out, x.view(2, 32).sum(1).repeat_interleave(32))


def test_a_barrier_that_a_thread_never_reaches_is_an_error(checks, thread_order):
    with pytest.raises(RuntimeError, match="waits for threads that never come|call different functions"):
        checks.barrier_that_one_thread_skips()


def test_a_write_beyond_shared_memory_is_an_error(checks):
    with pytest.raises(RuntimeError, match="beyond the 128 bytes"):
        checks.write_beyond_shared_memory()


def test_a_copy_lands_at_its_wait(checks):
    x, out = torch.arange(128.0), torch.empty(32)
    checks.read_before_the_copy_landed(x.data_ptr(), out.data_ptr())
    assert out.isnan().all()


def test_clusters(checks, thread_order, monkeypatch):
    x, out = torch.arange(12.0), torch.empty(12)
    checks.rotate_in_cluster(x.data_ptr(), out.data_ptr(), 12, 4)
    assert torch.equal(out, x.view(3, 4).roll(-1, 1).flatten())
    monkeypatch.setenv("WEBSSL_EMULATED_CAPABILITY", "80")
    with pytest.raises(RuntimeError, match="clusters need capability"):
        checks.rotate_in_cluster(x.data_ptr(), out.data_ptr(), 12, 4)
