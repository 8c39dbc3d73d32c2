"""Builds webssl_fast._C with CMake; everything else about the package stands in pyproject.toml.

Environment: WEBSSL_CUDA=AUTO|ON|OFF, WEBSSL_CUDA_ARCHITECTURES="80;90a", CMAKE_BUILD_PARALLEL_LEVEL.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # A checkout that is installed in place keeps its objects, so that a change of one kernel compiles one file.
        build_dir = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DWEBSSL_OUTPUT_DIR={output_dir}",
        ]  # fmt: skip
        for option, default in (("WEBSSL_CUDA", "AUTO"), ("WEBSSL_CUDA_ARCHITECTURES", "80;90a")):
            configure.append(f"-D{option}={os.environ.get(option, default)}")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)


class PackageWithKernelSources(build_py):
    """Puts the kernels' sources, their GPU evidence and the benchmarks into the wheel, so that `webssl info` can say
    there too whether the kernels were verified, and `webssl bench` can time them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sources = Path(self.build_lib) / "webssl_fast" / "_sources"
        shutil.rmtree(sources, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", sources / "csrc")
        for folder in ("benchmarks", "benchmarks/ops"):
            (sources / folder).mkdir()
            for pattern in ("*.py", "gpu_evidence.json"):
                for path in (ROOT / folder).glob(pattern):
                    shutil.copy(path, sources / folder)


setup(
    ext_modules=[Extension("webssl_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": PackageWithKernelSources},
)
