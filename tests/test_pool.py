"""The C++ engine's threads without OpenMP and its memory (csrc/runtime), alone and under ThreadSanitizer."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from lstm_fused.backends import cpp

if sys.platform == "win32":
    pytest.skip("the C++ engine is not built on Windows", allow_module_level=True)
if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)

ROOT = Path(__file__).parent.parent
SOURCES = (
    ROOT / "tests" / "cpp" / "pool.cpp",
    *(ROOT / "csrc" / "runtime" / f"{name}.cpp" for name in ("threads", "pool", "memory")),
)
TESTS = (
    *("sizes", "many_calls", "after_sleep", "same_threads", "concurrent", "nested"),
    *("limited", "forked", "forked_during_calls", "exits_during_calls"),
    *("memory_is_used_again", "memory_by_many_threads"),
)
UNSANITIZED = ("limited", "forked", "forked_during_calls")


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def program(request, tmp_path_factory):
    """The tests, compiled; ThreadSanitizer finds races that happen not to matter in this run."""
    sanitizer = ["-fsanitize=thread"] if request.param == "sanitized" else []
    folder = tmp_path_factory.mktemp(request.param)
    compiler = [*cpp_extension.get_cxx_compiler().split(), "-std=c++20", "-O1", "-g", "-pthread", *sanitizer]
    if sanitizer:
        (folder / "empty.cpp").write_text("int main() {}\n")
        there = subprocess.run([*compiler, folder / "empty.cpp", "-o", folder / "empty"], capture_output=True)
        if there.returncode or subprocess.run([folder / "empty"], capture_output=True).returncode:
            pytest.skip("ThreadSanitizer does not work here")
    command = [
        *compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{ROOT / 'csrc'}",
        *SOURCES,
        "-o",
        folder / "pool",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "pool", bool(sanitizer)


@pytest.mark.parametrize("name", TESTS)
def test_threads_without_openmp(program, name):
    path, sanitized = program
    if sanitized and name in UNSANITIZED:
        pytest.skip("ThreadSanitizer takes more memory, and starts no threads in a forked child")
    done = subprocess.run([path, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
