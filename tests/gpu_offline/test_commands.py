"""Tests make's GPU targets: refused where there is no GPU, and run once in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.gpu import check
from lstm_fused.backends import cpp, triton

ROOT = Path(__file__).parents[2]
TARGETS = ("gpu-check", "bench-gpu", "gpu-tune")


def make(*targets, python=sys.executable, options="", **variables):
    """Run targets with this Python as it is; the exit status and what is said."""
    command = ["make", "-s", "-k", *targets, f"PYTHON={python}", f"ARGS={options}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, text=True, capture_output=True)
    return done.returncode, done.stderr + done.stdout


@pytest.mark.skipif(triton.unavailable() is None, reason="there is a GPU here")
def test_without_a_gpu_they_say_so_and_fail():
    code, said = make(*TARGETS)
    assert code != 0
    assert said.count("cannot run here: PyTorch sees no CUDA or ROCm device") == len(TARGETS)
    assert all(f"{target}] Error 1" in said for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_what_python_lacks_is_named(target):
    code, said = make(target, python=f"{sys.executable} -S")  # without its packages
    lacking = "torch, triton, numpy" + ", pytest" * (target == "gpu-check")
    assert code != 0
    assert f"-S lacks {lacking} (torch 2.11, triton 3.6 or newer)" in said


def run(*arguments, **variables):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, text=True, capture_output=True
    ).stdout


def test_links_make_the_whole_package_with_its_engine():
    code, said = make("linked")
    assert code == 0, said
    linked = ROOT / "build" / "linked"
    program = "import lstm_fused.kernels; print(lstm_fused.__file__, lstm_fused.engines()['cpp'])"
    found = run("-c", program, PYTHONPATH=str(linked), PYTHONSAFEPATH="1")
    assert found.strip() == f"{linked / 'lstm_fused' / '__init__.py'} {cpp.unavailable()}"
    parts = {path.relative_to(ROOT / "lstm_fused") for path in (ROOT / "lstm_fused").rglob("*.py*")}
    parts = {part for part in parts if part.suffix in (".py", ".typed")}
    assert Path("interop", "onnx", "writer.py") in parts
    assert all((linked / "lstm_fused" / part).exists() for part in parts)


def test_on_a_device_the_suite_is_all_that_it_may_change():
    found = run(
        "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "--device=meta", *check.TESTS
    )
    modules = {line.split("::")[0] for line in found.splitlines() if "::" in line}
    assert {"tests/test_module.py", "tests/test_func.py", "tests/test_errors.py"} <= modules
    assert not any("onnx" in module or "offline" in module for module in modules), modules


def test_everything_once_in_the_interpreter(tmp_path):
    options = f"--device cpu --small --out {tmp_path}"
    code, said = make("gpu-check", "gpu-tune", options=options, TRITON_INTERPRET="1")
    assert code == 0, said
    verdict, tuned = (line for line in said.splitlines() if line.startswith("verdict"))
    assert "every result is right, 9 tests passed" in verdict and "ahead of nn.LSTM in 0 of 2" in verdict
    assert (tmp_path / "gpu.png").exists()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["gpu"] == "Triton's interpreter"
    names = {"lstm_fused", "nn.LSTM", "cell", "torch.compile"}
    assert {(r["dtype"], r["what"], r["who"]) for r in found["records"]} == {
        (dtype, what, who)
        for dtype in ("float16", "float32")
        for what in ("forward", "training")
        for who in names
    }
    for record in found["records"]:
        assert record["refused"] is None and record["milliseconds"] > 0
        assert record["ratio"]["low"] <= record["ratio"]["median"] <= record["ratio"]["high"]

    assert "4 choices measured" in tuned
    table = {}
    exec((tmp_path / "tuned.py").read_text(), table)
    assert ("Triton's interpreter", "backward", 5, 3, 2) in table["TUNED"]


def test_without_pytest_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    right, verdict = check.run(None, "cpu", True, 1.0, tmp_path)
    assert not right and "has no pytest" in verdict


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "nothing found"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "nothing found"),
        (0, "========= ERROR SUMMARY: 3 errors", "3 errors"),
        (0, "========= RACECHECK SUMMARY: 2 hazards displayed", "2 hazards"),
        (1, "Device not supported\n========= ERROR SUMMARY: 1 error", "cannot run here"),
        (1, "1 failed", "cannot run here"),
        (None, "", "not done after 9 s, so it says nothing"),
    ],
)
def test_what_the_sanitizer_says_is_told(code, text, told):
    said = check.judge_sanitizer("memcheck", text, code, 9)
    assert f"compute-sanitizer, memcheck: {told}" in said
