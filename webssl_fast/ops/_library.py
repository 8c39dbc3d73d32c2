"""The one place that imports `_C` and owns the torch.library namespace `webssl`.

An op module defines its schema and implementations on `LIBRARY`, and asks `reference_forced()` whether the run wants
the plain-torch references (`ops: reference` in a config, for bisecting).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

try:
    import webssl_fast._C as C
except ImportError as error:  # a source tree that was never built
    raise ImportError(
        "webssl_fast._C is missing: the package was imported from a source tree that was not built. "
        "Run `pip install -e .` (or `make install`) there first."
    ) from error

LIBRARY = torch.library.Library("webssl", "DEF")

_reference_forced = False


def force_reference(forced: bool) -> None:
    """Switches every op to its reference implementation (or back). Set once, before the first step."""
    global _reference_forced
    _reference_forced = forced


def reference_forced() -> bool:
    return _reference_forced


def cuda_kernel(name: str) -> Callable:
    """A CUDA function of `_C`, or an error that says how to get it."""
    if not cuda_architectures():
        raise NotImplementedError(
            f"{name}: this webssl_fast was built without CUDA kernels, since CMake found no nvcc. Put nvcc on PATH (or "
            "set CUDACXX) and install again, or run the plain torch reference with `ops: reference` in the config."
        )
    return getattr(C, name)


@contextlib.contextmanager
def cuda_stream(device: torch.device) -> Iterator[int]:
    """Makes a GPU the current one, and gives the address of its current stream."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream


def cuda_architectures() -> list[str]:
    """GPU architectures compiled in, e.g. ["80", "90a"]; empty for a CPU build."""
    return C.cuda_architectures().split()
