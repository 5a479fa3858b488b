"""Saved models that hold the operators: run in C++ without Python; loaded in Python without lstm_fused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lstm_fused
from lstm_fused.backends import cpp

ROOT = Path(__file__).parent.parent
TORCH = Path(torch.__file__).parent
LIBRARY = Path(lstm_fused.__file__).parent / "_cpp.so"
COMPILER = shutil.which("g++") or shutil.which("clang++")
if cpp.unavailable() is not None:
    pytest.skip(f"the C++ engine: {cpp.unavailable()}", allow_module_level=True)
if COMPILER is None:
    pytest.skip("there is no C++ compiler", allow_module_level=True)


def python(program):
    """Run a program in which lstm_fused is not imported; return what it prints, errors too."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import torch\n{program}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Run examples/cpp/save.py; AOTInductor compiles for half a minute."""
    folder = tmp_path_factory.mktemp("saved")
    # Two processes that package the same model out of one cache overwrite each other's files.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, ROOT / "examples/cpp/save.py", folder]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile examples/cpp/run.cpp."""
    path = tmp_path_factory.mktemp("program") / "run"
    headers = [
        f"-isystem{folder}" for folder in (TORCH / "include", TORCH / "include/torch/csrc/api/include")
    ]
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--no-as-needed"]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    source = ROOT / "examples/cpp/run.cpp"
    subprocess.run([COMPILER, "-std=c++20", source, "-o", path, *headers, *libraries], check=True)
    return path


@pytest.mark.parametrize("model", ["model.pt", "model.pt2"])
def test_a_saved_model_runs_in_cpp(saved, program, model, tmp_path):
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in linked and "python" not in linked.replace(str(TORCH), "")
    given = [LIBRARY, saved / model, saved / "x.pt", tmp_path / "y.pt"]
    subprocess.run([program, *given], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), torch.load(saved / "y.pt"))
    missing = subprocess.run([program, "nothing.so", *given[1:]], capture_output=True, text=True)
    assert missing.returncode == 1 and "nothing.so: cannot open" in missing.stderr


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ("torch.jit.load('model.pt')", "Unknown builtin op: lstm_fused::cpp_forward"),
        (
            "torch._inductor.aoti_load_package('model.pt2')",
            "Could not find schema for lstm_fused::cpp_forward",
        ),
        ("torch.export.load('exported.pt2')", "Please import the custom op to register it"),
    ],
    ids=["torchscript", "package", "exported"],
)
def test_without_the_import_pytorch_says_what_is_missing(saved, load, says, monkeypatch):
    """No code of ours can run before the file is read: docs/deploy.md lists what PyTorch says."""
    if not (saved / "exported.pt2").exists():
        program = torch.export.export(lstm_fused.LSTM(3, 4), (torch.randn(5, 2, 3),))
        torch.export.save(program, saved / "exported.pt2")
    monkeypatch.chdir(saved)
    said = python(load)
    assert says in said and "lstm_fused" in said, said
    page = (ROOT / "docs/deploy.md").read_text()
    assert says in page
    assert python(f"import lstm_fused\n{load}\nprint('loaded')").endswith("loaded\n")


def test_torch_compile_names_the_import_where_only_the_library_is_loaded():
    said = python(
        f"torch.ops.load_library({str(LIBRARY)!r})\n"
        "forward = torch.ops.lstm_fused.cpp_forward\n"
        "def f(x, W, h):\n    return forward(x, W, W, None, None, None, None, h, h, None, False, False)[0]\n"
        "torch.compile(f, backend='eager', fullgraph=True)(\n"
        "    torch.randn(3, 2, 4), torch.randn(16, 4), torch.zeros(2, 4))"
    )
    assert "`import lstm_fused.autograd.operators`" in said and "import lstm_fused)" in said, said[-2000:]
    assert torch.Tag.pt2_compliant_tag in torch.ops.lstm_fused.cpp_forward.default.tags
