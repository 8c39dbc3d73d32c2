from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.vqa.tiny_benchmarks import write_tiny_benchmarks


@pytest.fixture(scope="session")
def tiny_benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all 16 benchmarks' data, a few rows each. Not to be changed."""
    return write_tiny_benchmarks(tmp_path_factory.mktemp("tiny_benchmarks"))
