"""What surrounds the Metal engine: sources, plans, verdicts, predictions, training and make mps-check."""

import platform
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import Case
from lstm_fused.kernels import metal, verdicts
from lstm_fused.kernels.metal import dispatches, launch, library
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer
from metal import mac

from bench import mps, roofline_metal

FOLDER = Path(metal.__file__).parent
MPS = torch.device("mps")

pytestmark = pytest.mark.skipif(not mac.HERE, reason=mac.LACKING)


@pytest.fixture
def as_on_a_mac(monkeypatch, tmp_path):
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
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


def test_the_table_to_send_in(monkeypatch, capsys):
    monkeypatch.setattr(mps, "TIMED", (Case("tiny", T=3, B=2, I=3, H=4),))
    mps.print_table("cpu", 1)
    header, _, row, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("| size | (T, B, I, H) | metal | reference |") and header.count(
        "|"
    ) == row.count("|")
    assert "failed" not in row


def test_the_table_is_complete_where_a_kernel_is_wrong(monkeypatch, capsys):
    monkeypatch.setenv("LSTM_FUSED_GPU", "auto")
    monkeypatch.setattr(library, "source", lambda *a: "what Apple's compiler refuses")
    monkeypatch.setattr(launch, "library", library.library.__wrapped__)
    monkeypatch.setattr(mps, "TIMED", (Case("tiny", T=3, B=2, I=3, H=4),) * 2)
    mps.print_table("cpu", 1)
    header, _, *rows, _, why = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all(row.count("|") == header.count("|") for row in rows)
    assert all(row.split(" | ")[2:3] == ["failed"] and row.count("failed") == 1 for row in rows)
    assert why.startswith("failed: metal: Metal's resident kernel was not right on a Mac: CompileError")


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
    for option in ("varied", "projection"):
        assert plans(layer._replace(**{option: True}, B=8)) == [Plan("step", 8)]
