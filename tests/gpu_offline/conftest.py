"""Starts the process that runs kernels in Triton's interpreter, beside the tests in this folder.

Triton decides at its import whether it interprets or compiles, so the two need a process each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDERS = (HERE / "interpreted", HERE.parent / "gpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["interpreted/*"]


@pytest.fixture(scope="session", autouse=True)
def in_the_interpreter(request, tmp_path_factory):
    """The process that runs the tests of those folders, if it is wanted, and the file that it writes to."""
    if INTERPRETED or not any(item.module.__name__ == "test_interpreted" for item in request.session.items):
        yield None
        return
    said = tmp_path_factory.mktemp("interpreted") / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FOLDERS],
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield process, said
    process.kill()
