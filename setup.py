"""Builds webssl_fast._C with CMake; everything else about the package stands in pyproject.toml.

Environment: WEBSSL_CUDA=AUTO|ON|OFF, WEBSSL_CUDA_ARCHITECTURES="80;90a", CMAKE_BUILD_PARALLEL_LEVEL.
"""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DWEBSSL_OUTPUT_DIR={output_dir}",
        ]  # fmt: skip
        for option in ("WEBSSL_CUDA", "WEBSSL_CUDA_ARCHITECTURES"):
            if option in os.environ:
                configure.append(f"-D{option}={os.environ[option]}")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)


setup(ext_modules=[Extension("webssl_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
