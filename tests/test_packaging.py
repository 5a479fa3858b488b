"""Packaging: the sdist, and its wheels with and without a compiler."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).parent.parent
NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "out", "*.so", "*.egg-info", ".*_cache", "__pycache__"
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Run in the environment where lstm_fused is installed: checks that the package is complete and works.
PROGRAM = """
from importlib.util import find_spec
from pathlib import Path
import torch, lstm_fused, lstm_fused.kernels

folder = Path(lstm_fused.__file__).parent
assert folder.is_relative_to(FOLDER), f"imported from {folder}"
assert (folder / "py.typed").exists(), "py.typed is missing"
assert (folder / "kernels/metal/cell.metal").exists(), "the Metal sources are missing"
assert find_spec("kernels") is None, "kernels is installed at the top level"
assert lstm_fused.__version__ == VERSION, lstm_fused.__version__
x = torch.randn(5, 2, 3, requires_grad=True)
lstm_fused.LSTM(3, 4)(x)[0].sum().backward()
assert x.grad.isfinite().all()
"""


def run(*command, cwd, **variables):
    """Run a command and return its output, which is also the message of a failure."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build_wheel(sdist, folder, **variables):
    """Build a wheel from an sdist, offline; return it and pip's output."""
    said = run(
        *(*PIP, "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, sdist),
        cwd=folder,
        **variables,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel, said


def install(wheel, folder):
    """Install a wheel in an empty environment with access to torch; return its interpreter.

    Installing torch again would take longer than all other tests, so a .pth file adds this environment's
    packages. Python does not read the .pth files in there, so the editable lstm_fused stays hidden.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    (packages / "torch.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    for name in ("triton", "onnx", "matplotlib"):
        (packages / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return python


def check_that_it_says_why_it_does_not_load(python, folder):
    """Replace the installed library by one that no torch can load, and by one of other sources."""
    (library,) = python.parents[1].glob("lib/python*/site-packages/lstm_fused/_cpp.so")
    good = library.read_bytes()
    for old, new, reason in (
        (
            b"torch_from_blob\0",
            b"torch_from_glob\0",
            "undefined symbol: torch_from_glob",
        ),
        (
            b"Tensor h0, Tensor c0, Tensor? lengths",
            b"Tensor h9, Tensor c0, Tensor? lengths",
            "cpp_forward differs",
        ),
        (b"cpp_products(Tensor dxw", b"cpp_productz(Tensor dxw", "cpp_products differs"),
    ):
        assert old in good
        library.unlink()
        library.write_bytes(good.replace(old, new))
        said = run(python, "-I", "-c", "import lstm_fused; print(lstm_fused.engines()['cpp'])", cwd=folder)
        assert said.count("RuntimeWarning: lstm_fused runs without its C++ engine") == 1, said
        assert reason in said and "pip install --force-reinstall --no-deps --no-cache-dir" in said, said
        assert "_cpp.so" in said.splitlines()[-1], said


def check_installed(python, wheel, *options):
    """Run the program above outside of the tree."""
    folder = python.parent.parent
    version = wheel.name.split("-")[1]
    run(
        python,
        "-I",
        "-W",
        "error",
        *options,
        "-c",
        f"FOLDER, VERSION = {str(folder)!r}, {version!r}\n{PROGRAM}",
        cwd=folder,
    )


def test_every_package_that_make_installs_has_its_version():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    commands = re.findall(r"\$\(PIP\) install (.*-c constraints\.txt.*)", text)
    words = [word for command in commands for word in shlex.split(command.split("&&")[0])]
    named = {re.match(r"[\w-]+", word)[0] for word in words if re.match(r"\w", word)} - {"constraints"}
    assert {"torch", "tensorflow-cpu", "ziglang"} <= named
    assert named <= pinned, named - pinned


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the sdist of a copy of this tree."""
    clone = shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "tree", ignore=NOT_IN_A_CLONE)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", cwd=clone)
    (archive,) = (clone / "dist").iterdir()
    return archive


def test_sdist_is_complete(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "examples", "kernels", "lstm_fused", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".h", ".metal", ".typed"}:
                assert str(path.relative_to(ROOT)) in names
    assert names >= {"LICENSE", "Makefile", "README.md", "constraints.txt", "setup.py"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel(sdist, tmp_path):
    wheel, _ = build_wheel(sdist, tmp_path, LSTM_FUSED_OPTIMIZE="1")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "lstm_fused",
        f"lstm_fused-{wheel.name.split('-')[1]}.dist-info",
    }
    assert "lstm_fused/_cpp.so" in names
    assert "-py3-none-" in wheel.name and "any" not in wheel.name
    python = install(wheel, tmp_path / "environment")
    check_installed(python, wheel)
    (trap,) = python.parents[1].glob("lib/python*/site-packages/triton.py")
    trap.unlink()  # PyTorch's forward mode imports Triton itself
    start = os.times().children_user
    said = run(python, "-I", "-m", "lstm_fused", "--check", "--engine", "cpp", cwd=tmp_path)
    assert os.times().children_user - start < 60, "seconds of processor time"
    assert "not built" not in said and said.count("ready") == 2, said  # cpp and reference
    check_that_it_says_why_it_does_not_load(python, tmp_path)
    assert "\ncpp on cpu: passed " in said


def test_wheel_without_compiler(sdist, tmp_path):
    (tmp_path / "empty").mkdir()
    wheel, said = build_wheel(sdist, tmp_path, PATH=str(tmp_path / "empty"), CXX="c++")
    assert "installing without the C++ engine: c++ cannot be run" in said
    assert wheel.name.endswith("-py3-none-any.whl")
    python = install(wheel, tmp_path / "environment")
    check_installed(python, wheel, "-W", "ignore::RuntimeWarning")
    said = run(python, "-I", "-m", "lstm_fused", cwd=tmp_path)
    assert said.count("RuntimeWarning: lstm_fused runs without its C++ engine, in plain PyTorch on CPUs") == 1
    assert "not available: not built (no C++ compiler when lstm_fused was installed)" in said
    assert said.count("ready") == 1, said


def test_on_windows_it_installs_without_the_engine(sdist, tmp_path):
    """As far as can be told elsewhere: setuptools and torch are imported as on this system."""
    program = (
        "import runpy, sys, setuptools\n"
        "from torch.utils import cpp_extension\n"
        "assert cpp_extension.BuildExtension\n"
        "sys.platform, sys.argv = 'win32', ['setup.py', '-q', 'build', '-b', 'built']\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    said = run(sys.executable, "-c", program, cwd=tree)
    assert "\nlstm_fused: installing without the C++ engine: it needs the vector types of GCC" in f"\n{said}"
    assert list(tree.glob("built/**/reference.py")) and not list(tree.glob("built/**/_cpp*"))


def bare_setuptools(folder):
    """Return the start of a command that runs Python with setuptools alone, as in an isolated build."""
    (folder / "alone").mkdir()
    site = Path(setuptools.__file__).parents[1]
    for part in (site / "setuptools", site / "_distutils_hack", *site.glob("setuptools-*.dist-info")):
        (folder / "alone" / part.name).symlink_to(part)
    return (
        "-S",
        "-c",
        (
            f"import os, runpy, sys; sys.path.insert(0, {str(folder / 'alone')!r})\n"
            "sys.prefix = sys.exec_prefix = os.environ.get('PREFIX', sys.prefix)  # -S forgets the venv\n"
            "sys.argv = ['setup.py', '--version']\n"
            f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
        ),
    )


def test_an_isolated_build_finds_the_torch_of_the_environment(tmp_path):
    said = run(sys.executable, *bare_setuptools(tmp_path), cwd=ROOT, PREFIX=sys.prefix)
    assert said.strip().endswith("0.1.0")


def test_a_build_without_torch_says_what_to_do(tmp_path):
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / "bin" / "python"
    bare = [python, *bare_setuptools(tmp_path)]
    done = subprocess.run(bare, capture_output=True, text=True, cwd=ROOT, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 1
    assert "finds no torch here" in done.stderr and "otherwise: pip install torch" in done.stderr
    # Users of uv have torch in the environment that is active, not in that of the build.
    run(*bare, cwd=ROOT, VIRTUAL_ENV=sys.prefix)


def test_an_old_setuptools_says_what_to_do(tmp_path):
    (tmp_path / "setuptools.py").write_text(
        "__version__ = '65.5.0'\nExtension = find_packages = setup = None"
    )
    done = subprocess.run(
        [sys.executable, "setup.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1 and done.stderr.startswith("lstm_fused needs setuptools 77 or newer")
    assert "Leave out --no-build-isolation" in done.stderr


@pytest.mark.parametrize("folder", ["checkout", "anything"])
def test_a_folder_of_the_same_name_does_not_hide_the_package(folder, tmp_path):
    """Python runs in the parent folder of a checkout named lstm_fused."""
    if folder == "checkout":
        (tmp_path / "lstm_fused").symlink_to(ROOT)
    else:
        (tmp_path / "lstm_fused" / "notes").mkdir(parents=True)
    program = "import lstm_fused.kernels; print(lstm_fused.LSTM(3, 4))"
    (tmp_path / "program.py").write_text(program)
    for command in (["-c", program], ["program.py"]):
        assert run(sys.executable, *command, cwd=tmp_path) == "LSTM(3, 4, peephole=True)\n", (
            "is this environment of make env?"
        )
    assert "Instruction set" in run(sys.executable, "-m", "lstm_fused", cwd=tmp_path)
