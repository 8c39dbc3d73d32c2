"""FP8 without a GPU: which layers are converted, what is refused, and torchao's emulation against bf16."""

import importlib.util

import pytest
import torch
from torch import nn

from tests.methods.tiny import noise_batch, tiny_method
from webssl_fast.config.schema import ModelConfig
from webssl_fast.engine.float8 import convert_to_float8
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.methods.dinov2 import StudentTeacherNetworks

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao")


@pytest.fixture
def bf16():
    """Autocast on the CPU, with the GPU's state set too: that is where torchao's layer looks for the dtype."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_missing_torchao_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.fp8=both needs torchao: pip install 'webssl_fast\[fp8\]'"):
        convert_to_float8(tiny_method(), "both", "rowwise", GPU)


def test_a_cpu_and_an_old_gpu_are_refused(torchao, monkeypatch):
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and this run's device is cpu; set train.fp8=none"):
        convert_to_float8(tiny_method(), "teacher", "rowwise", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(UserError, match=r"compute capability 8.9 or more .* and A100 has 8.0"):
        convert_to_float8(tiny_method(), "teacher", "rowwise", GPU)


def test_sizes_that_fp8_cannot_have_name_the_padding(torchao):
    with torch.device("meta"):
        method = tiny_method(init=False)
        method.student.backbone.blocks[1].mlp.w3 = nn.Linear(10928 // 2, 64)
    with pytest.raises(ConfigError, match="mlp.w3 is 5464 x 64, .*set model.swiglu_pad_multiple=64"):
        convert_to_float8(method, "both", "rowwise", CPU, emulate=True)


@pytest.mark.parametrize("preset", ["vit_5b_patch14", "vit_7b_patch14"])
def test_padding_lets_the_papers_largest_sizes_through(torchao, preset):
    for multiple, fits in ((1, False), (64, True)):
        with torch.device("meta"):
            networks = StudentTeacherNetworks(
                tiny_method(init=False).config, ModelConfig(preset=preset, swiglu_pad_multiple=multiple)
            )
        sizes = {
            size for m in networks.backbone.blocks.modules() if isinstance(m, nn.Linear) for size in m.weight.shape
        }
        assert all(size % 64 == 0 for size in sizes) == fits


@pytest.mark.parametrize(("where", "num_converted"), [("none", 0), ("teacher", 8), ("both", 16)])
def test_converts_the_blocks_that_are_asked_for(torchao, where, num_converted):
    method = tiny_method()
    names = method.state_dict().keys()
    converted = convert_to_float8(method, where, "rowwise", CPU, emulate=True)
    assert len(converted) == num_converted  # 2 blocks of 4 linear layers
    assert method.state_dict().keys() == names
    found = {name for name, m in method.named_modules() if type(m).__name__ == "Float8Linear"}
    assert len(found) == num_converted and all(".blocks." in name for name in found)
    assert {name.split(".")[0] for name in found} == {"none": set(), "teacher": {"teacher"}}.get(
        where, {"student", "teacher"}
    )


@pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
def test_emulated_training_step_stays_near_bf16(torchao, bf16, scaling):
    found = {}
    for where in ("none", "teacher", "both"):
        method = tiny_method()
        convert_to_float8(method, where, scaling, CPU, emulate=True)
        loss, _ = method.training_step(noise_batch(method), 0)
        loss.backward()
        grad = method.student.backbone.blocks[0].mlp.w3.weight.grad
        found[where] = loss.item(), grad / grad.norm()
    for where in ("teacher", "both"):
        assert found[where][0] != found["none"][0]
        assert found[where][0] == pytest.approx(found["none"][0], rel=0.02)
        assert (found[where][1] * found["none"][1]).sum() > 0.9  # cosine of the gradients
