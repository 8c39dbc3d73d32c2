"""What every CUDA op does before its kernel: a build that has it, the right device, the caller's stream."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from webssl_fast.ops import _library


class FakeDevices:
    """Stands in for torch.cuda on a machine with two GPUs whose current streams are 100 and 101: no real second device
    is needed to see on which one an op would launch."""

    def __init__(self) -> None:
        self.current, self.launches = 0, []

    @contextlib.contextmanager
    def device(self, device: torch.device):
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def current_stream(self) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=100 + self.current)


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> FakeDevices:
    devices = FakeDevices()
    monkeypatch.setattr(torch.cuda, "device", devices.device)
    monkeypatch.setattr(torch.cuda, "current_stream", devices.current_stream)
    return devices


def test_the_device_of_the_tensors_is_current_and_its_stream_is_taken(fake_devices: FakeDevices):
    with _library.cuda_stream(torch.device("cuda", 1)) as stream:
        assert (fake_devices.current, stream) == (1, 101)
    assert fake_devices.current == 0


def test_the_guard_ends_with_an_error(fake_devices: FakeDevices):
    with pytest.raises(ValueError, match="kernel"), _library.cuda_stream(torch.device("cuda", 1)):
        raise ValueError("kernel")
    assert fake_devices.current == 0


@pytest.mark.parametrize("architectures", ["", "80 90a"])
def test_a_build_without_cuda_says_how_to_get_it(architectures: str, monkeypatch: pytest.MonkeyPatch):
    kernel = object()
    extension = SimpleNamespace(cuda_architectures=lambda: architectures, some_kernel_cuda=kernel)
    monkeypatch.setattr(_library, "C", extension)
    if architectures:
        assert _library.cuda_kernel("some_kernel_cuda") is kernel
    else:
        with pytest.raises(NotImplementedError, match="some_kernel_cuda.*nvcc.*ops: reference"):
            _library.cuda_kernel("some_kernel_cuda")


def test_ops_take_their_stream_from_the_guard():
    """So that none launches on another device than its tensors'."""
    for path in Path(_library.__file__).parent.glob("*.py"):
        if path.name != "_library.py":
            assert "current_stream" not in path.read_text(), f"{path.name}: use _library.cuda_stream"
