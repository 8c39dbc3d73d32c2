"""`webssl info`: what this installation can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from webssl_fast.ops import cuda_architectures
from webssl_fast.ops.attention import implementation
from webssl_fast.ops.evidence import kernel_states

PACKAGES = ("webssl_fast", "torch", "numpy", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12", "transformers", "apex")


def info() -> None:
    """Prints versions, devices, decoders and the state of each kernel."""
    print("versions")
    print(f"  python                  {platform.python_version()}")
    for package in PACKAGES:
        print(f"  {package:23} {_version(package)}")
    print("devices")
    print(f"  cpu                     {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} compute threads")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        capability = f"sm_{properties.major}{properties.minor}"
        print(f"  cuda:{i:<18} {properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("  cuda                    none found")
    compiled = cuda_architectures()
    print("kernels")
    architectures = "".join(f", sm_{a}" for a in compiled)
    print(f"  compiled for            cpu{architectures or ' only (no nvcc when it was built)'}")
    for kernel in kernel_states(compiled=bool(compiled)):
        print(f"  {kernel.op:23} {kernel}")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    print(f"  {f'attention on {device}':23} {implementation(device)}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
