"""What surrounds the Metal engine: sources, plans, verdicts, predictions, training and make mps-check."""

import platform
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import train_mnist
from cases import Case
from lstm_fused.kernels import metal, verdicts
from lstm_fused.kernels.metal import dispatches, launch, library, plan
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer
from metal import mac

from bench import mps, roofline_metal
from lstm_fused.backends import metal as backend
from lstm_fused.backends import table
from lstm_fused.backends.choice import explain
from lstm_fused.contract import PLAIN

FOLDER = Path(metal.__file__).parent
MPS = torch.device("mps")
ENGINES = table.ENGINES

pytestmark = pytest.mark.skipif(not mac.HERE, reason=mac.LACKING)


@pytest.fixture
def as_on_a_mac(tmp_path):
    with mac.like_a_mac(tmp_path):
        yield


def test_structs_of_the_kernels_are_those_of_the_host():
    text = re.sub("//.*", "", "".join(path.read_text() for path in FOLDER.glob("*.metal")))
    for record in (dispatches.Layer, dispatches.Step, dispatches.Span):
        body = re.search(rf"struct {record.__name__} {{(.*?)}};", text, re.DOTALL)[1]
        fields = [name.strip() for line in re.findall(r"long ([^;]*);", body) for name in line.split(",")]
        assert tuple(fields) == record._fields


def test_sources_are_ascii_and_shipped():
    for path in FOLDER.glob("*.metal"):
        assert path.read_text().isascii() and path.stem in str(library.FILES)


def test_verdicts_hold_for_a_chip_a_macos_and_a_math_mode(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M9")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("99.1", ("", "", ""), "arm64"))
    name = verdicts.machine.__wrapped__(MPS)
    assert name.startswith("Apple-M9_torch") and "_macos99.1_" in name
    monkeypatch.setenv("PYTORCH_MPS_FAST_MATH", "1")
    assert verdicts.machine.__wrapped__(MPS) == name.replace("_macos99.1_", "_macos99.1-fastmath1_")


TINY = Case("tiny", T=3, B=2, I=3, H=4)


def test_the_table_to_send_in(as_on_a_mac, capsys):
    mps.print_table("cpu", 1, (TINY,))
    header, _, row, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("| size | (T, B, I, H) | metal | reference |")
    assert header.count("|") == row.count("|") and "failed" not in row


def test_the_table_is_complete_where_a_kernel_is_wrong(as_on_a_mac, monkeypatch, capsys):
    monkeypatch.setattr(library, "source", lambda *a: "what Apple's compiler refuses")
    monkeypatch.setattr(launch, "library", library.library.__wrapped__)
    mps.print_table("cpu", 1, (TINY, TINY))
    header, _, *rows, _, why = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all(row.count("|") == header.count("|") for row in rows)
    assert all(row.split(" | ")[2:3] == ["failed"] and row.count("failed") == 1 for row in rows)
    assert why.startswith("failed: metal: Metal's resident kernel was not right on a Mac: CompileError")


def test_mps_check_runs_to_its_end_in_the_emulation(monkeypatch, capfd):
    """But for the tests: those of test_on_mps.py run in test_metal.py."""
    monkeypatch.setattr(backend, "DTYPES", (torch.float32,))
    monkeypatch.setattr(mps, "PYTEST", [sys.executable, "-c", "import sys; print(*sys.argv)"])
    assert mps.main(["--emulated", "--rounds", "1"]) == 0
    said = capfd.readouterr().out
    assert said.count("EMULATED on a CPU") == 2 and "-p tests.metal.mac tests/test_engines.py" in said
    assert "6 kernels were compared with the reference" in said and "| tiny | (3, 2, 3, 4) |" in said
    assert "verdict: 0 kernels are wrong; the tests passed" in said


@pytest.mark.parametrize("fault", ["kernel", "test"])
def test_mps_check_reports_faults(fault, as_on_a_mac, monkeypatch, capsys):
    command = [sys.executable, "-c", f"raise SystemExit({int(fault == 'test')})"]
    monkeypatch.setattr(mps, "PYTEST", command)
    monkeypatch.setattr(backend, "DTYPES", (torch.float32,))
    if fault == "kernel":
        mac.plant(monkeypatch, "real m = o * ", "real m = real(2) * o * ")
    assert mps.run("cpu", 1, ((9, 3),), [], ()) == 1
    said = capsys.readouterr().out
    wrong = 3 if fault == "kernel" else 0
    assert said.count("WRONG  forward_") == wrong and said.count("WRONG") == wrong
    assert (
        f"verdict: {wrong} kernels are wrong; the tests {'failed' if fault == 'test' else 'passed'}" in said
    )


def test_mps_check_needs_a_mac():
    with pytest.raises(SystemExit, match="nothing was done, because this needs a Mac with an Apple GPU"):
        mps.main([])


def test_training_on_a_mac_uses_metal_by_default(monkeypatch):
    """The options of make train ARGS="--device mps", and none."""
    there = [
        replace(engine, unavailable=lambda: None) if engine.name == "metal" else engine for engine in ENGINES
    ]
    monkeypatch.setattr(table, "ENGINES", there)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: MPS)
    for options in (["--device", "mps"], []):
        args, _ = train_mnist.parse(options)
        assert (args.device, args.engine, args.serving) == (MPS, None, "metal")
        assert str(explain(args.engine, args.device, torch.float32, PLAIN)).startswith(
            "metal (each kernel if"
        )


def test_a_mac_without_metal_by_default_is_found(monkeypatch):
    elsewhere = [replace(engine, devices=()) if engine.name == "metal" else engine for engine in ENGINES]
    monkeypatch.setattr(sys.modules[__name__], "ENGINES", elsewhere)
    with pytest.raises(AssertionError):
        test_training_on_a_mac_uses_metal_by_default(monkeypatch)


def test_dispatches_are_short_on_the_slowest_chip():
    """A fifth of a second at most, as predicted; macOS aborts what takes a second or more."""
    M1 = roofline_metal.CHIPS[0]
    for H, B, direction in product(
        (8, 64, 128, 256, 1024, 2048), (1, 16, 64, 4096, 65536), ("forward", "backward")
    ):
        layer = Layer(direction, H, B, torch.float32, "ieee")
        for each in plans(layer):
            sizes = -(-B // each.BB) * each.BB, H, H
            together = each.steps_at_once(*sizes) * roofline_metal.predict(each, layer, M1) / 1e6
            assert together < 0.2 or each.steps_at_once(*sizes) == 1
            assert together > 0.002  # not so short that dispatches cost


@pytest.mark.parametrize("factor", [0.01, 100])
def test_dispatches_of_a_wrong_length_are_found(factor, monkeypatch):
    monkeypatch.setattr(plan, "AT_ONCE", factor * plan.AT_ONCE)
    with pytest.raises(AssertionError):
        test_dispatches_are_short_on_the_slowest_chip()


def test_predictions_prefer_the_chosen_kernel():
    for chip, H, B in product(roofline_metal.CHIPS, (64, 128, 256, 512, 1024), (1, 16, 64)):
        for direction in ("forward", "backward"):
            layer = Layer(direction, H, B, torch.float32, "ieee")
            times = [roofline_metal.predict(plan, layer, chip) for plan in plans(layer)]
            assert times[0] <= 1.25 * min(times) and times[0] < roofline_metal.reference(layer, chip)


def test_plans():
    layer = Layer("forward", 128, 16, torch.float32, "ieee")
    assert plans(layer) == [Plan("resident", 8, 128), Plan("step", 16)]
    assert plans(layer._replace(H=129, B=17)) == [Plan("step", 32)]
    for other in (layer._replace(varied=True), layer._replace(P=5)):
        assert plans(other._replace(B=8)) == [Plan("step", 8)]
