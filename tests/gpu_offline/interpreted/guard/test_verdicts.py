"""Verdicts on disk: when other processes use them, and when a plan is checked again."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guarded import CPU, SMALL, cache_files, check_right, fails, forget, small, wrong_numbers
from lstm_fused.kernels import check, choose, guard, product, resident, steps, verdicts
from planting import planted

from lstm_fused import LSTM
from lstm_fused.backends import streams

PROGRAM = """
import os, sys, torch
import mending
from lstm_fused import LSTM
from lstm_fused.backends import table
from lstm_fused.kernels import check
table.ENGINES = table.TRITON, table.REFERENCE
check.check = lambda *a: sys.exit("checked again")
with torch.no_grad():
    print(LSTM(3, 5)(torch.zeros(2, 3, 3))[0].shape)
"""


def test_another_process_reads_what_this_one_found(launched):
    module, x = small()
    launched.plant("forward", "resident", wrong_numbers)
    with pytest.warns(RuntimeWarning), torch.no_grad():
        module(x)
    command = [sys.executable, "-W", "always", "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], text=True, capture_output=True)
    assert done.stdout.strip() == "torch.Size([2, 3, 5])", done.stderr
    assert "resident kernel was not right" in done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(LSTM(3, 16), LSTM(3, 13)), (LSTM(3, 5, proj_size=2), LSTM(3, 5, proj_size=3))],
    ids=["H", "P"],
)
def test_each_size_that_is_compiled_in_has_a_verdict_of_its_own(right, wrong, monkeypatch, tmp_path):
    """A fault of one size is found, though the others have been right."""
    broken = planted(resident, "m.to(h", "(m * (1 + (H % 16 > 0))).to(h", tmp_path)
    monkeypatch.setattr(resident, "lstm_forward_resident_kernel", broken.lstm_forward_resident_kernel)
    broken = planted(product, "t, t, B, P, H, ", "t, t, B, P, H - (P == 3), ", tmp_path, "projection")
    monkeypatch.setattr(steps, "lstm_projection_step_kernel", broken.lstm_projection_step_kernel)
    x = torch.randn(2, 3, 3)
    check_right(right, x)
    with pytest.warns(RuntimeWarning, match="kernel was not right"):
        check_right(wrong, x)


@pytest.mark.parametrize("what", ["kernels", "card", "driver"])
def test_what_has_changed_is_checked_again(what, checks, monkeypatch, tmp_path):
    module, x = small()
    with torch.no_grad():
        module(x)
        forget()
        module(x)
        assert len(checks) == 1
        forget()
        if what == "kernels":
            copy = shutil.copytree(verdicts.SOURCES, tmp_path / "kernels")
            monkeypatch.setattr(verdicts, "SOURCES", copy)
            module(x)
            assert len(checks) == 1, "the same sources elsewhere"
            forget()
            with (copy / "cell.py").open("a") as file:
                file.write("# changed\n")
        else:
            name = {"card": "card_name", "driver": "driver"}[what]
            monkeypatch.setattr(verdicts, name, lambda *_: "another")
        module(x)
    assert len(checks) == 2


def test_what_runs_two_launches_at_once_counts_among_the_sources(monkeypatch, tmp_path):
    before = verdicts.sources.__wrapped__(verdicts.SOURCES)
    changed = tmp_path / "streams.py"
    changed.write_text(Path(streams.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(streams, "__file__", str(changed))
    assert verdicts.sources.__wrapped__(verdicts.SOURCES) != before


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"right": 1, "said": ""}', b'{"right": true}']
)
def test_a_damaged_file_is_as_good_as_none(text, checks):
    module, x = small()
    with torch.no_grad():
        module(x)
        (file,) = [path for path in cache_files() if path.is_file()]
        whole = file.read_bytes()
        file.write_bytes(text)
        forget()
        module(x)
    assert len(checks) == 2 and file.read_bytes() == whole


def folder_under_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "file" / "inside"))


def folder_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSTM_FUSED_CACHE", str(tmp_path / "file"))


def disk_is_full(monkeypatch, tmp_path):
    def write_text(self, text):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)


def no_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LSTM_FUSED_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.parametrize(
    "trouble", [folder_under_a_file, folder_is_a_file, disk_is_full, no_home], ids=lambda f: f.__name__
)
def test_where_nothing_can_be_kept_each_process_checks(trouble, checks, monkeypatch, tmp_path):
    trouble(monkeypatch, tmp_path)
    module, x = small()
    with torch.no_grad():
        module(x)
        module(x)
        assert len(checks) == 1
        forget()
        module(x)
    assert len(checks) == 2 and verdicts.on_record(CPU) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert not list(tmp_path.rglob("*.json*")) and len([p for p in tmp_path.rglob("*") if p.is_file()]) <= 1


def test_the_folder_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(verdicts.cache_folder()).endswith("/verdicts")
    monkeypatch.delenv("LSTM_FUSED_CACHE")
    assert verdicts.cache_folder() == Path("/elsewhere/lstm_fused")
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert verdicts.cache_folder() == Path.home() / ".cache" / "lstm_fused"


def test_what_another_process_may_find_otherwise_is_not_kept(monkeypatch, launched):
    launched.plant("forward", "resident", fails)
    plan = choose.choose(SMALL, choose.card_at(CPU))
    guard.judge(plan, SMALL, CPU)
    assert verdicts.on_record(CPU) == []
    forget()
    monkeypatch.setattr(check, "broken", lambda device: True)
    guard.judge(plan, SMALL, CPU)
    (kept,) = verdicts.on_record(CPU)
    assert not kept.right and "out of resource" in kept.said


def test_the_record_is_printed_and_can_be_made_anew(monkeypatch, capsys, launched, checks):
    from lstm_fused import __main__

    monkeypatch.setattr(guard, "KINDS", ((torch.float32, "tf32"),))
    monkeypatch.setattr(guard.check_usual, "__defaults__", (((5, 3), (5, 4)),))
    step_backward = steps.backward

    def wrong(plan, saved, douts, dxw, dhw):
        found = step_backward(plan, saved, douts, dxw, dhw)
        dxw.mul_(1.1)
        return found

    monkeypatch.setattr(steps, "backward", wrong)
    monkeypatch.setattr(sys, "argv", ["lstm_fused", "--check"])
    monkeypatch.setattr(__main__, "check_engines", lambda *_: True)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("right", "WRONG"))]
    assert ended.value.code == 1 and torch.get_float32_matmul_precision() == before
    assert [line.split("_")[0] + " " + line.split("_")[1] for line in first] == [
        "right  forward resident",
        "right  forward step",
        "right  backward resident",
        "WRONG  backward step",
    ]
    monkeypatch.setattr(sys, "argv", ["lstm_fused"])
    forget()
    with pytest.raises(SystemExit):
        __main__.main()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("right", "WRONG"))]
    assert sorted(again) == sorted(first) and len(checks) == 4
