"""Builds the C++ engine; what the package is stands in pyproject.toml.

LSTM_FUSED_OPENMP=0 builds it with threads of its own instead of OpenMP's, as everywhere but on Linux.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

try:
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "lstm_fused is built against the installed torch, and torch cannot be imported here "
        f"({error}). Install torch first, then lstm_fused with: pip install --no-build-isolation"
    ) from error

ROOT = Path(__file__).parent
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]
# Compiled with OpenMP but not linked to its runtime: the one that torch has loaded is the only one.
if sys.platform == "linux" and os.environ.get("LSTM_FUSED_OPENMP") != "0":
    FLAGS.append("-fopenmp")
# As system headers, torch's own warnings stay out of ours.
HEADERS = [part for path in cpp_extension.include_paths() for part in ("-isystem", path)]


class Build(cpp_extension.BuildExtension):
    """Leaves the engine out on Windows and where there is no compiler; any other failure is an error."""

    def build_extensions(self):
        if missing := why_no_compiler():
            print(f"lstm_fused: installing without the C++ engine: {missing}", file=sys.stderr)
            self.extensions.clear()
        else:
            super().build_extensions()


def why_no_compiler():
    """What keeps the engine or, elsewhere than on Windows, a small C++20 program from compiling, or None."""
    if sys.platform == "win32":
        return "it needs the vector types of GCC and Clang, which MSVC does not have"
    compiler = cpp_extension.get_cxx_compiler()
    command = [*compiler.split(), *FLAGS, "-fsyntax-only", "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input="#include <atomic>\n", capture_output=True, text=True)
    except OSError as error:
        return f"{compiler} cannot be run ({error})"
    return f"{compiler} fails: {done.stderr.strip()}" if done.returncode else None


engine = Extension(
    "lstm_fused._cpp",
    sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
    include_dirs=[str(ROOT / "csrc")],
    library_dirs=cpp_extension.library_paths(),
    libraries=["c10", "torch_cpu"],
    extra_compile_args=FLAGS + HEADERS,
    language="c++",
)

KERNELS = {"lstm_fused.kernels": "kernels", "lstm_fused.kernels.metal": "kernels/metal"}

setup(
    packages=[*find_packages(include=["lstm_fused", "lstm_fused.*"]), *KERNELS],
    package_dir=KERNELS,
    package_data={"lstm_fused.kernels.metal": ["*.metal"]},
    ext_modules=[engine],
    cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True)},
)
