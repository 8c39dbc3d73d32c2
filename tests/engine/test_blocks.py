"""Checkpointing and compilation of the tiny DINOv2's blocks change what is stored and how it runs, and no number."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from tests.methods.tiny import noise_batch, tiny_method
from webssl_fast.engine.blocks import checkpoint_blocks, compile_blocks
from webssl_fast.models.block import Block

_aten = torch.ops.aten


class CountedOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def step(method, precision="fp32"):
    """Loss, gradients by name, bytes that the student's blocks keep for the backward, operations by name."""
    batch = noise_batch(method)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with CountedOps() as ops, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = method.training_step(batch, 0)
    with ops:
        loss.backward()
    grads = {name: p.grad for name, p in method.student.named_parameters()}
    return loss.detach(), grads, sum(kept.values()), ops.counts


def unwatched_step(method):
    """Loss and gradients; torch.compile does nothing under modes such as those above."""
    loss, _ = method.training_step(noise_batch(method), 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in method.student.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_no_number(mode, precision):
    plain, checkpointed = tiny_method(drop_path_rate=0.3), tiny_method(drop_path_rate=0.3)
    checkpoint_blocks(checkpointed, mode)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    loss, grads, *_ = step(plain, precision)
    other_loss, other_grads, *_ = step(checkpointed, precision)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


def test_full_keeps_less_than_selective_and_selective_repeats_no_product():
    found = {}
    for mode in ("none", "selective", "full"):
        method = tiny_method(drop_path_rate=0.3)
        checkpoint_blocks(method, mode)
        *_, found[mode] = step(method)
    products = {mode: counts.get("mm", 0) + counts.get("addmm", 0) for mode, counts in found.items()}
    assert products["selective"] == products["none"] < products["full"]
    norms = {mode: counts["native_layer_norm"] for mode, counts in found.items()}
    assert norms["none"] < norms["selective"] == norms["full"]


def test_full_keeps_a_blocks_input_alone():
    plain, checkpointed = tiny_method(), tiny_method()
    checkpoint_blocks(checkpointed, "full")
    kept, kept_checkpointed = step(plain)[2], step(checkpointed)[2]
    assert kept_checkpointed < 0.8 * kept  # the rest are embeddings, heads and weights


def test_only_trained_blocks_are_checkpointed():
    method = tiny_method()
    checkpoint_blocks(method, "full")
    assert all(type(block) is Block for block in method.teacher.backbone.blocks)
    assert all(type(block) is not Block and isinstance(block, Block) for block in method.student.backbone.blocks)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_one_compilation_serves_all_blocks(mode):
    torch._dynamo.reset()
    plain, compiled = tiny_method(drop_path_rate=0.3), tiny_method(drop_path_rate=0.3)
    counter = CompileCounter()
    checkpoint_blocks(compiled, mode)
    compile_blocks(compiled, backend=counter)
    loss, grads = unwatched_step(plain)
    other_loss, other_grads = unwatched_step(compiled)
    torch.testing.assert_close(loss, other_loss)
    for name in grads:
        torch.testing.assert_close(grads[name], other_grads[name], msg=name)
    assert counter.frame_count == 2  # the student's blocks, with drop-path and gradients, and the teacher's


@pytest.mark.nightly
def test_inductor_computes_the_same():
    torch._dynamo.reset()
    plain, compiled = tiny_method(drop_path_rate=0.3), tiny_method(drop_path_rate=0.3)
    checkpoint_blocks(compiled, "selective")
    compile_blocks(compiled)
    loss, grads = unwatched_step(plain)
    other_loss, other_grads = unwatched_step(compiled)
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-5)
    for name in grads:
        torch.testing.assert_close(grads[name], other_grads[name], rtol=1e-3, atol=1e-5, msg=name)
