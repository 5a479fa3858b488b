"""The tests in interpreted/ and tests/gpu, which run in processes of their own; see conftest.py."""

import os

import pytest
from interpreted_folders import FOLDERS

pytest.importorskip("triton")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_in_the_interpreter(folder, processes):
    output, process = processes[folder]
    returned = process.wait()
    print(output.read_text()[-8000:])
    assert returned == 0
