"""What the build says about CUDA, with and without nvcc. (That it builds is shown by every other test.)"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parent.parent


def path_without_nvcc() -> str:
    return os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "nvcc").exists()
    )


def configure(build: Path, cuda: str) -> subprocess.CompletedProcess[str]:
    """Only configures, on a PATH without nvcc."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja come with `make install`")
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDAToolkit_ROOT")}
    environment["PATH"] = path_without_nvcc()
    command = [
        cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DWEBSSL_CUDA={cuda}",
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_without_nvcc_the_cpu_build_is_said(tmp_path: Path):
    done = configure(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no nvcc found, building the CPU kernels only") == 1


def test_asking_for_cuda_without_nvcc_is_an_error_with_a_way_out(tmp_path: Path):
    done = configure(tmp_path, "ON")
    assert done.returncode != 0
    assert "Put nvcc on PATH or set CUDACXX" in " ".join(done.stderr.split())


def test_cuda_can_be_left_out(tmp_path: Path):
    done = configure(tmp_path, "OFF")
    assert done.returncode == 0, done.stderr
    assert "CUDA" not in done.stdout
