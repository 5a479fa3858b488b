"""The wheel for other machines that `make wheel` has built: its tag, what its library links to, and a run."""

import os
import re
import zipfile
from pathlib import Path

import pytest
from test_packaging import check_installed, install, run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel():
    (path,) = (ROOT / "build" / "wheel" / "repaired").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("lstm_fused/_cpp.so", tmp_path_factory.mktemp("wheel")))


def test_it_fits_every_python_and_a_glibc_of_2018(wheel):
    found = re.search(r"-py3-none-.*manylinux_2_(\d+)_", wheel.name)
    assert found and int(found[1]) <= 28, wheel.name


def test_it_brings_no_library_of_others(wheel, library):
    """Torch's OpenMP is the only one in the process."""
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if ".so" in name] == ["lstm_fused/_cpp.so"]
    said = run("readelf", "--dynamic", "--wide", library, cwd=library.parent)
    needed = set(re.findall(r"Shared library: \[(.*)\]", said))
    assert needed <= {"libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}, needed
    assert "RPATH" not in said and "RUNPATH" not in said
    symbols = run("nm", "--dynamic", library, cwd=library.parent)
    assert re.search(r" U GOMP_parallel\b", symbols)
    assert re.search(r" U __cxa_throw\b", symbols), "exceptions must be those of the shared libstdc++"


def test_it_runs_outside_the_repository(wheel, tmp_path):
    python = install(wheel, tmp_path / "environment")
    check_installed(python, wheel)
    (trap,) = python.parents[1].glob("lib/python*/site-packages/triton.py")
    trap.unlink()  # PyTorch's forward mode imports Triton itself
    start = os.times().children_user
    said = run(python, "-I", "-m", "lstm_fused", "--check", cwd=tmp_path)
    assert os.times().children_user - start < 60, "seconds of processor time"
    assert "\ncpp on cpu: passed " in said and "failed" not in said, said
