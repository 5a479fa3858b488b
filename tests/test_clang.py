"""The C++ engine compiles without warnings for a Mac, with Clang, which is stricter than GCC."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
if find_spec("ziglang") is None:
    pytest.skip("no Clang with a Mac's headers: make test installs it", allow_module_level=True)
FLAGS = ["-target", "aarch64-macos", "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
FLAGS += ["-UNDEBUG", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_for_a_mac(source, tmp_path):
    headers = [part for path in include_paths() for part in ("-isystem", path)]
    compiler = (sys.executable, "-m", "ziglang", "c++")
    command = [*compiler, *FLAGS, *headers, "-c", source, "-o", tmp_path / "out.o"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
