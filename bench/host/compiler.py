"""Compiles a C++ file of the benchmark for this machine."""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path


def compiled(source: Path, *options: str | Path) -> ctypes.CDLL:
    """Compile a file into a shared library and load it.

    Raises:
        OSError: there is no compiler, or it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        command = [*os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", "-o", library, source, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"{source.name} cannot be compiled: {done.stderr}")
        return ctypes.CDLL(str(library))
