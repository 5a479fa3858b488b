"""Builds the C++ engine; what the package is stands in pyproject.toml.

LSTM_FUSED_OPENMP=0 builds it with threads of its own instead of OpenMP's, as everywhere but on Linux.
LSTM_FUSED_OPTIMIZE=1 compiles faster and to slower code, for tests that measure no times.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup

if int(setuptools.__version__.partition(".")[0]) < 77:
    raise SystemExit(
        f"lstm_fused needs setuptools 77 or newer to be built, and this is {setuptools.__version__}. "
        "Leave out --no-build-isolation, or first: pip install --upgrade setuptools"
    )


def add_the_environment():
    """Make torch importable in an isolated build, which hides the environment to install into."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if environment := os.environ.get("VIRTUAL_ENV"):
        paths = {"base": environment, "platbase": environment}
        folders += [sysconfig.get_path(name, vars=paths) for name in ("purelib", "platlib")]
    # Behind everything else: the isolated build's setuptools stays the one in use.
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


add_the_environment()
try:
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        f"lstm_fused is compiled with torch's headers, and {sys.executable} finds no torch here ({error}). "
        "If you have torch in another environment, activate that one; otherwise: pip install torch. "
        "Then install lstm_fused again"
    ) from error
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402 (old versions lack it)

ROOT = Path(__file__).parent
FLAGS = [
    "-std=c++20",
    f"-O{os.environ.get('LSTM_FUSED_OPTIMIZE', '3')}",
    "-g0",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the library loads in torch 2.11 and newer
]
# Compiled with OpenMP but not linked to its runtime: the one that torch has loaded is the only one.
if sys.platform == "linux" and os.environ.get("LSTM_FUSED_OPENMP") != "0":
    FLAGS.append("-fopenmp")
# As system headers, torch's own warnings stay out of ours.
HEADERS = [part for path in cpp_extension.include_paths() for part in ("-isystem", path)]


class Wheel(bdist_wheel):
    """Tags the wheel for every Python: the engine uses PyTorch's stable ABI, and not Python's."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2] if self.distribution.ext_modules else "any"


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
    libraries=["torch_cpu"],
    extra_compile_args=FLAGS + HEADERS,
    language="c++",
)

KERNELS = {"lstm_fused.kernels": "kernels", "lstm_fused.kernels.metal": "kernels/metal"}

setup(
    packages=[*find_packages(include=["lstm_fused", "lstm_fused.*"]), *KERNELS],
    package_dir=KERNELS,
    package_data={"lstm_fused.kernels.metal": ["*.metal"]},
    ext_modules=[engine],
    cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True), "bdist_wheel": Wheel},
)
