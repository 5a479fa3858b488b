"""The tests in interpreted/ and tests/gpu, which run in processes of their own; see conftest.py."""

import os

import pytest
from interpreted_modules import MODULES

pytest.importorskip("triton")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_in_the_interpreter(module, processes):
    output, process = processes[module]
    returned = process.wait()
    print(output.read_text()[-8000:])
    assert returned == 0
