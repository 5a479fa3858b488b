"""Runs the tests in interpreted/ and tests/gpu in processes of their own, all at once; see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
ON_GPU_ALONE = "test_cuda.py"
MODULES = [
    path
    for folder in (HERE / "interpreted", HERE.parent / "gpu")
    for path in sorted(folder.glob("test_*.py"))
    if path.name != ON_GPU_ALONE
]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpreted")
    started = {}
    for module in MODULES:
        with (folder / module.stem).open("w") as output:
            started[module] = (
                folder / module.stem,
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module],
                    env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ),
            )
    yield started
    for _, process in started.values():
        process.kill()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_in_the_interpreter(module, processes):
    output, process = processes[module]
    returned = process.wait()
    print(output.read_text()[-8000:])
    assert returned == 0
