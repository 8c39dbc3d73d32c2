"""Between two logged lines the host asks the device for nothing.

Without a GPU, what would wait is counted on the CPU: every way in which Python reads a tensor's values, and every
operation whose output shape depends on values.
"""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.dinov2_run import METHOD, OPTIM, TRAIN, NoiseLoader
from tests.methods.tiny import TINY, tiny_method
from webssl_fast.config.schema import DinoV2Config, ModelConfig, OptimConfig, TrainConfig
from webssl_fast.engine.blocks import checkpoint_blocks
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.loop import train
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods.dinov2 import DinoV2
from webssl_fast.records import Batch

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_consecutive", "_unique2", "equal"}


class Reads(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        to_host = name == "to" and "cpu" in args[1:]  # the loop's own copies name the device by an object
        if name in READS or to_host:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "_index_put_impl_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        )
        if name in WAITS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def run(tmp_path, train_settings, optim_settings, method_settings, device="cpu", make=tiny_method):
    """Reads of device values by step, where a line is logged every 4 steps and a checkpoint written after the last."""
    found, by_step = [], {}
    distributed = Distributed(torch.device(device))
    config = TrainConfig(**{**TRAIN, "log_every": 4, "num_steps": 12, "checkpoint_every": 12, **train_settings})
    with torch.device("meta"):
        method = make(**method_settings)
    materialize(method, 0, distributed, config)
    loader = NoiseLoader(method, config, distributed)
    batches = [loader.batch(step, 0) for step in range(config.num_steps)]  # host work, which may read its own tensors

    def batch(step, micro_step):
        by_step[step] = list(found)
        found.clear()
        return batches[step]

    loader.batch = batch  # type: ignore[method-assign]
    with Reads(found), Waits(found):
        train(
            method,
            loader,
            distributed,
            train_config=config,
            optim_config=OptimConfig(**{**OPTIM, **optim_settings}),
            output_dir=tmp_path,
        )
    return {step: reads for step, reads in by_step.items() if step > 0}  # what came before the step began


CASES = {
    "plain": ({}, {}, METHOD),
    "bf16, masks of fixed count, centering": (
        {"precision": "bf16"},
        {},
        {**METHOD, "fixed_masked_count": True, "target": "centering"},
    ),
    "all that saves memory": (
        {
            "precision": "bf16",
            "student_weights": "bf16",
            "teacher_weights": "bf16",
            "activation_checkpointing": "selective",
        },
        {"implementation": "torchao_8bit"},
        {**METHOD, "fixed_masked_count": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_between_logged_lines_reads_the_device(tmp_path, case):
    if "torchao_8bit" in str(CASES[case]):
        pytest.importorskip("torchao")
    assert_only_logged_lines_read(run(tmp_path, *CASES[case]))


@pytest.mark.parametrize("name", [name for name in TINY if name != "dinov2"])
def test_no_step_of_any_other_method_reads_the_device(tmp_path, name):
    assert_only_logged_lines_read(run(tmp_path, {"precision": "bf16"}, {}, {"init": False}, make=TINY[name]))


def assert_only_logged_lines_read(by_step):
    assert {step: reads for step, reads in by_step.items() if step % 4} == dict.fromkeys(by_step.keys() - {4, 8}, [])
    assert 0 < len(by_step[4]) == len(by_step[8]) <= 6  # the logged line's own


def test_the_counter_counts():
    found = []
    x = torch.arange(4)
    with Reads(found), Waits(found):
        x.sum().item(), x.tolist(), bool(x[0] > 0), x.nonzero(), x[x > 2], x.numpy(), x.to("cpu"), float(x[1])
        x[torch.tensor([1, 2])], x.where(x > 1, 0), np.zeros(2)
    assert {"item", "tolist", "__bool__", "nonzero", "index", "numpy", "to", "__float__"} <= set(found)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_gpu_is_not_waited_for(tmp_path, case):
    """torch itself raises where an operation waits for the GPU, other than at logged steps and checkpoints."""
    distributed = Distributed(torch.device("cuda"))
    train_settings, optim_settings, method_settings = CASES[case]
    config = TrainConfig(**{**TRAIN, "log_every": 4, "num_steps": 8, "checkpoint_every": 8, **train_settings})
    with torch.device("meta"):
        method = tiny_method(**{**METHOD, **method_settings})
    materialize(method, 0, distributed, config)
    loader = NoiseLoader(method, config, distributed)
    batches = [loader.batch(step, 0).pinned() for step in range(config.num_steps)]

    def batch(step, micro_step):
        # Steps 1, 2, 5 and 6 neither begin the run nor end in a logged line.
        torch.cuda.set_sync_debug_mode("error" if step % 4 in (1, 2) else "default")
        return batches[step]

    loader.batch = batch  # type: ignore[method-assign]
    try:
        train(
            method,
            loader,
            distributed,
            train_config=config,
            optim_config=OptimConfig(**{**OPTIM, **optim_settings}),
            output_dir=tmp_path,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def meta_step(model, config, implementation, train_config):
    """A whole step on the meta device, where reading a value raises, and so does mixing devices."""
    meta = torch.device("meta")
    with meta:
        method = DinoV2(config, model, OptimConfig(), num_steps=10, group_size=4, seed=0)
    if train_config.student_weights == "bf16":
        method.student.to(torch.bfloat16)
    checkpoint_blocks(method, train_config.activation_checkpointing)
    optimizer = Optimizer(
        method,
        OptimConfig(implementation=implementation),
        Distributed(meta),
        num_steps=10,
        global_batch_size=8,
    )
    dtype = next(method.student.parameters()).dtype
    crops = [
        torch.empty(group.num, 4, 3, group.size_px, group.size_px, dtype=dtype)
        for group in (config.global_crops, config.local_crops)
    ]
    batch = Batch(np.arange(4), np.arange(4), crops, torch.full((4,), -1))
    method.prepare(batch)
    if train_config.student_weights != train_config.teacher_weights:  # on a GPU, autocast sees to this
        method.teacher.to(dtype)
    loss, _ = method.training_step(batch.to(meta), 0)
    loss.backward()
    outcome = optimizer.step(0, loss.detach())
    method.after_step(0)
    assert loss.is_meta and outcome.found_inf.is_meta
    return sum(p.numel() for p in method.student.parameters())


@pytest.mark.parametrize("implementation", ["torch", "torchao_8bit"])
def test_a_step_runs_where_there_are_no_values(implementation):
    if implementation == "torchao_8bit":
        pytest.importorskip("torchao")
    method = tiny_method(drop_path_rate=0.3, init=False)
    config = method.config.model_copy(update={"koleo_weight": 0.0, "fixed_masked_count": True})  # KoLeo: autocast
    meta_step(method.student.backbone.config, config, implementation, TrainConfig())


def test_the_7b_takes_a_step_where_there_are_no_values():
    pytest.importorskip("torchao")
    model = ModelConfig(preset="vit_7b_patch14", drop_path_rate=0.4, swiglu_pad_multiple=64)
    config = DinoV2Config(koleo_weight=0.0, fixed_masked_count=True)
    settings = TrainConfig(student_weights="bf16", teacher_weights="bf16", activation_checkpointing="full")
    assert meta_step(model, config, "torchao_8bit", settings) > 6.4e9
