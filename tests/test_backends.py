"""The table of engines, the choice among them, and lazy imports."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lstm_fused
from lstm_fused.backends import cpp, table, triton

CPU = torch.device("cpu")


def test_the_best_engine_is_taken():
    ready = [name for name, reason in lstm_fused.engines().items() if reason is None]
    assert table.select(None, CPU, torch.float32) == ready[0]
    assert table.select(None, CPU, torch.float16) == "reference"
    assert table.select(None, torch.device("mps"), torch.float32) == "reference"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: the reference engine serves")
def test_the_cpp_engine_was_built():
    assert cpp.unavailable() is None


def test_a_named_engine_is_never_replaced():
    with pytest.raises(RuntimeError, match="engine 'cpp' cannot serve float16 on cuda") as caught:
        table.select("cpp", torch.device("cuda"), torch.float16)
    assert "runs on cpu, not on cuda" in str(caught.value)
    assert "takes bfloat16, float32, float64, not float16" in str(caught.value)
    with pytest.raises(RuntimeError, match="cpp: "):
        lstm_fused.LSTM(5, 7, dtype=torch.float16, engine="cpp")(torch.zeros(4, 3, 5, dtype=torch.float16))


def test_an_engine_that_cannot_run_here_says_so():
    if lstm_fused.engines()["triton"] is None and table.triton.DEVICE == "cpu":
        pytest.skip("Triton's interpreter serves on the CPU")
    for module, x in ((lstm_fused.LSTM, torch.zeros(4, 3, 5)), (lstm_fused.LSTMCell, torch.zeros(3, 5))):
        with pytest.raises(RuntimeError, match=r"^engine 'triton' cannot serve float32 on cpu: triton: "):
            module(5, 7, device="cpu", engine="triton")(x.cpu())
    for name in ("fast", 3):
        with pytest.raises(
            lstm_fused.ArgumentError, match=f"^engine: expected one of 'cpp', .*, got {name!r}$"
        ):
            table.select(name, CPU, torch.float32)


def test_a_refusal_lists_every_engine_and_reason(monkeypatch):
    absent = table.Engine("absent", ("cuda",), (torch.float16,), lambda: "it is not built", ())
    picky = table.Engine("picky", None, (torch.float64,), lambda: None, ())
    monkeypatch.setattr(table, "ENGINES", (absent, picky))
    with pytest.raises(RuntimeError) as caught:
        table.select(None, CPU, torch.float32)
    assert str(caught.value) == (
        "no engine can serve float32 on cpu: "
        "absent: it is not built; runs on cuda, not on cpu; takes float16, not float32"
        " | picky: takes float64, not float32"
    )


def test_cpu_tensors_do_not_initialize_cuda(monkeypatch):
    def wake():
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    card = table.Engine("card", ("cuda",), table.FLOATS, wake, ())
    monkeypatch.setattr(table, "ENGINES", (card, *table.ENGINES))
    assert table.select(None, CPU, torch.float16) == "reference"
    assert table.select(None, torch.device("meta"), torch.float32) == "reference"


def test_the_named_engine_runs(monkeypatch):
    from lstm_fused import functional

    called = []
    monkeypatch.setattr(
        functional, "forward_op", {"reference": lambda *a: called.append(a) or [torch.zeros(0)] * 5}
    )
    with torch.no_grad():
        lstm_fused.LSTM(5, 7, engine="reference")(torch.zeros(4, 3, 5))
    assert len(called) == 1


def test_on_a_gpu_triton_is_the_default_with_a_fallback(monkeypatch):
    ready = replace(table.TRITON, devices=("cpu",), unavailable=lambda: None)
    monkeypatch.setattr(table, "ENGINES", (ready, table.REFERENCE))
    assert table.select(None, CPU, torch.float16) == "triton"
    ran = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            ran.append(str(function))
            return function(*args, **(kwargs or {}))

    module, x = lstm_fused.LSTM(5, 7), torch.zeros(4, 3, 5)
    with Seen():
        y = module(x)[0]
        y.sum().backward()
    assert {name for name in ran if name.startswith("lstm_fused")} == {
        "lstm_fused.triton_or_reference_forward.default",
        "lstm_fused.triton_or_reference_backward.default",
    }
    if not triton.INTERPRETED:  # without a GPU these operators run the reference
        module.engine = "reference"
        assert torch.equal(module(x)[0], y)


def run(code):
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_python_m_lists_the_engines():
    shown = run(["-m", "lstm_fused"])
    for name, reason in lstm_fused.engines().items():
        assert name in shown and (reason or "ready") in shown


def test_import_needs_only_torch():
    code = "import sys, lstm_fused; print([m for m in ('triton', 'numpy', 'onnx') if m in sys.modules])"
    bare = "import sys, torch; print([m for m in ('triton', 'numpy', 'onnx') if m in sys.modules])"
    assert run(["-c", code]) == run(["-c", bare])


def test_in_a_clone_the_warning_says_that_python_did_not_take_the_installed_package(tmp_path):
    shutil.copytree(
        lstm_fused.__path__[0], tmp_path / "lstm_fused", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (tmp_path / "csrc").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", "import lstm_fused"], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"not built in the clone {tmp_path}; run Python in another folder" in run.stderr
