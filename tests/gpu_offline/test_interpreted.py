"""Runs the tests in interpreted/ in processes of their own, all at once; see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent / "interpreted"
MODULES = sorted(path.stem for path in HERE.glob("test_*.py"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpreted")
    started = {}
    for module in MODULES:
        with (folder / module).open("w") as output:
            started[module] = (
                folder / module,
                subprocess.Popen(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / f"{module}.py"],
                    env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ),
            )
    yield started
    for _, process in started.values():
        process.kill()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_in_the_interpreter(module, processes):
    output, process = processes[module]
    returned = process.wait()
    print(output.read_text()[-8000:])
    assert returned == 0
