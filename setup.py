"""Compiles the CPU kernels while the package is built; everything else stands in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def _builder():
    # The package cannot be imported before it is built.
    spec = importlib.util.spec_from_file_location("moespac_build", HERE / "kernels" / "cpu" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Python files as ever, and the library beside them; without a compiler, without it."""

    def run(self) -> None:
        super().run()
        builder = _builder()
        folder = (
            HERE / "kernels" / "cpu" if self.editable_mode else Path(self.build_lib) / "moespac" / "kernels" / "cpu"
        )
        try:
            builder.compile_library(folder / builder.LIBRARY)
        except builder.CannotCompile as error:
            print(
                f"warning: the CPU kernels were not compiled, torch will compute experts instead, slower: {error}",
                file=sys.stderr,
            )

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        library = Path(self.build_lib) / "moespac" / "kernels" / "cpu" / _builder().LIBRARY
        return [*super().get_outputs(include_bytecode), *([str(library)] if library.exists() else [])]


class PlatformDistribution(Distribution):
    """Marks the wheel as made for one platform: it holds machine code."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=PlatformDistribution)
