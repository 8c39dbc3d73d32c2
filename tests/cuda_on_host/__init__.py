"""The CUDA kernels compiled for the host and run there, thread by thread: what they compute without a GPU.

An op's CUDA implementation (`_row_pass_cuda`, ...) can be called with CPU tensors while the fixture
`cuda_on_host` is active. Shared memory, barriers, warp functions, tensor-core products, asynchronous copies, clusters
behave as on a GPU, see emulation.h; speed and everything that the hardware alone decides do not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch

from webssl_fast.ops import _library

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "cuda_on_host"


@cache
def emulated(name: str) -> ModuleType:
    """The module `name` ("_C", "_checks") of CMakeLists.txt; built where its sources changed."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja come with `make install`")
    configure = [
        cmake, "-S", str(Path(__file__).parent), "-B", str(BUILD), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    for command in (configure, [cmake, "--build", str(BUILD), "--target", name]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
    (library,) = BUILD.glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(f"cuda_on_host.{name}", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _no_stream(device: torch.device) -> Iterator[int]:
    yield 0


@pytest.fixture
def cuda_on_host(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Ops find the emulated kernels, and a stream, on the CPU. Returns the extension."""
    extension = emulated("_C")
    monkeypatch.setattr(_library, "C", extension)
    monkeypatch.setattr(_library, "cuda_stream", _no_stream)
    return extension


@pytest.fixture(params=["forward", "backward", "shuffled"])
def thread_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The order in which the emulation runs threads."""
    monkeypatch.setenv("WEBSSL_EMULATED_ORDER", request.param)
    return request.param
