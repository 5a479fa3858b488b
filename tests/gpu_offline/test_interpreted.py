"""Waits for the process that runs interpreted/ and tests/gpu in Triton's interpreter; see conftest.py."""

import os

import pytest

pytest.importorskip("triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_in_the_interpreter(in_the_interpreter):
    process, said = in_the_interpreter
    returned = process.wait()
    print(said.read_text()[-8000:])
    assert returned == 0
