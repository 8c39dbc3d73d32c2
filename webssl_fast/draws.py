"""Random choices on the host as pure functions of (seed, purpose, index): no generator's state lives between calls.

Built on numpy's counter-based Philox4x64 (Salmon et al., SC 2011).
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A fresh generator for one purpose ("mask", "drop_path") at one index (the group of images it concerns)."""
    key = [seed, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
