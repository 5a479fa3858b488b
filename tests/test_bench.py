"""The benchmark on its smallest size: what it writes, what it refuses, and its arithmetic."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from mmap import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import everyone, memory
from bench.__main__ import main as bench_main
from bench.check import WANTED, check
from bench.everyone import LIBRARIES, LOOPS, WITH_LENGTHS, Library
from bench.limits import Limits, arithmetic, floor
from bench.machine import describe
from bench.rivals import RIVALS, Problem, Rival, fused, make_problem
from bench.sizes import SIZES, Setting, Size, bars, uneven
from bench.speed import measure
from bench.tables import KINDS
from bench.timing import Pace, race, ratio
from bench.workers import missing
from lstm_fused.backends import cpp
from tests.cases import TIMED, Case, shortened

ROOT = Path(__file__).parent.parent
TINY = Size(Case("tiny", T=3, B=2, I=4, H=5), forward=1, training=1, cell=1)
SETTING = Setting(torch.float32, threads=1, engine="reference")
QUICK = Pace(rounds=2, seconds=0.0)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(*arguments, path):
    command = [sys.executable, "-m", "bench", "--quick", "--threads", "1", "--json", str(path), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_the_main_table_through_the_command_line(tmp_path):
    printed, found = bench("--sizes", "mnist", "--engine", "reference", path=tmp_path / "found.json")
    assert {"cpu", "torch", "lstm_fused", "lstm_fused_isa", "date", "commit"} <= found["machine"].keys()
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["machine"]["rivals"]["onnxruntime"])
    (table,) = found["tables"]
    assert table["setting"] | {"dtype": "float32", "threads": 1, "engine": "reference"} == table["setting"]
    assert max(table["limits"]["products"].values()) > 0 and table["limits"]["bandwidth"] > 0
    (row,) = table["rows"]
    assert row["size"] == "mnist" and row["shape"] == [28, 64, 28, 128] and row["refused"] == {}
    assert {(race["what"], race["rival"], race["bar"]) for race in row["races"]} == {
        ("forward", "nn.LSTM", 0.85 * 1.5),
        ("training", "nn.LSTM", 0.85 * 2.2),
        ("training", "cell", 0.85 * 8),
    }
    for raced in row["races"]:
        times = row["milliseconds"][raced["what"]]
        assert raced["ratio"]["median"] == pytest.approx(times[raced["rival"]] / times["ours"])
        assert raced["ratio"]["low"] <= raced["ratio"]["high"]
    assert "| mnist " in printed and "of 4 bars met" in printed
    assert (tmp_path / "found-speed-float32-1.png").exists()


def test_a_dtype_the_engine_cannot_serve_is_said_not_timed(monkeypatch):
    def refuse(*_):
        raise RuntimeError("engine 'reference' takes no such thing")

    monkeypatch.setattr("bench.check.select", refuse)
    row = measure(TINY, SETTING, None, QUICK)
    assert "takes no such thing" in str(row.refused["ours"])
    assert row.milliseconds == {} and row.races == []


@pytest.mark.parametrize("wrong", RIVALS, ids=lambda rival: rival.name)
def test_a_wrong_result_is_refused(wrong):
    def spoiled(problem: Problem) -> nn.Module:
        def one_number_off(_module, _arguments, result):
            y, states = result
            return torch.cat([y[:-1], y[-1:] + 1e-3 * (y[-1:] == y[-1, -1, -1])]), states

        module = wrong.make(problem)
        module.register_forward_hook(one_number_off)
        return module

    rivals = [replace(wrong, make=spoiled) if rival is wrong else rival for rival in RIVALS]
    row = measure(TINY, SETTING, None, QUICK, rivals)
    assert list(row.refused) == [wrong.name] and "wrong result" in str(row.refused[wrong.name])
    timed = {name for times in row.milliseconds.values() for name in times}
    assert timed == (set() if wrong.name == "ours" else {rival.name for rival in RIVALS} - {wrong.name})


def test_missing_peepholes_are_refused():
    def without(problem: Problem) -> nn.Module:
        return fused(problem, "reference", peephole=False)

    row = measure(TINY, SETTING, None, QUICK, [Rival("ours", True, without), *RIVALS[1:]])
    assert "wrong result" in str(row.refused["ours"]) and row.milliseconds == {}


@pytest.mark.parametrize(
    "setting",
    [SETTING, Setting(torch.float32, 1, "reference", layers=2, bidirectional=True)],
    ids=["one_layer", "deep"],
)
def test_everyone_computes_the_same_function(setting):
    row = measure(TINY, setting, None, QUICK)
    assert row.refused == {}
    assert row.errors["ours"] <= 2


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile traces all the same, but the code it would take half a minute to make is not made."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


# The compiler's tracer looks at .grad of whatever it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_everyone_else_computes_the_same_function_too(no_compiler):
    rows = list(everyone.measure(TINY.case, SETTING, QUICK, LOOPS))
    assert [row.rival for row in rows if row.refused] == []
    assert {row.rival: set(row.ratios) for row in rows} == {
        rival.name: {"forward", "training"} for rival in LOOPS
    }
    assert all(row.error is not None and row.error < 50 for row in rows)
    assert rows[0].ratios["training"].median == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loop_takes_part_in_more_sizes_than_the_compiler_has_patience_for(no_compiler):
    for H in range(1, 11):
        assert check(LOOPS[-1], Case("tiny", T=3, B=2, I=4, H=H), SETTING) < 50


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_so_does_every_library(library):
    if absent := missing(library.needs):
        pytest.skip(f"{' and '.join(absent)} not installed")
    _, row = everyone.measure(TINY.case, SETTING, QUICK, (LOOPS[0], library))
    assert row.refused == {} and set(row.ratios) == set(library.can)
    assert row.error is not None and row.error < 50


def test_a_wrong_library_is_refused(monkeypatch):
    right = everyone.Worker.results
    monkeypatch.setattr(
        everyone.Worker, "results", lambda self, what: {n: t + 1e-3 for n, t in right(self, what).items()}
    )
    _, row = everyone.measure(TINY.case, SETTING, QUICK, (LOOPS[0], LIBRARIES[0]))
    assert "wrong result" in str(row.refused["ONNX Runtime"]) and row.milliseconds == {}


def test_a_library_that_is_not_here_is_said_not_raced():
    absent = Library("Nobody", "with_nobody", ("torch", "no_such_package"), ("forward",))
    _, row = everyone.measure(TINY.case, SETTING, QUICK, (LOOPS[0], absent))
    assert str(row.refused["Nobody"]) == "no_such_package not installed" and row.milliseconds == {}
    _, row = everyone.measure(TINY.case, replace(SETTING, layers=2), QUICK, (LOOPS[0], LIBRARIES[0]))
    assert "only one float32 layer" in str(row.refused["ONNX Runtime"])


def test_a_worker_that_ends_is_no_result(capfd):
    broken = Library("Nobody", "with_nobody", ("torch",), ("forward",))
    with pytest.raises(RuntimeError, match="the worker ended with status 1 at 'load'"):
        list(everyone.measure(TINY.case, SETTING, QUICK, (LOOPS[0], broken)))
    assert "No module named 'bench.with_nobody'" in capfd.readouterr().err


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ engine here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("case", TIMED, ids=lambda case: case.name)
def test_ours_is_right_in_every_size(case, lengths, dtype):
    few = shortened(uneven(case) if lengths else case, 5)
    assert check(RIVALS[0], few, Setting(dtype, 1, "cpp")) <= WANTED


UNEVEN = uneven(Case("tiny", T=7, B=5, I=4, H=5))


def test_uneven_lengths_reach_from_one_step_to_all():
    lengths = uneven(SIZES["wide"].case).lengths
    assert len(lengths) == 256 and min(lengths) <= 2 and max(lengths) == 128
    assert list(lengths) != sorted(lengths) and list(lengths) != sorted(lengths, reverse=True)
    whole = arithmetic(replace(UNEVEN, lengths=None), SETTING, "training")
    needed = arithmetic(UNEVEN, SETTING, "training")
    assert needed / whole == sum(UNEVEN.lengths) / (7 * 5) < 1


def test_what_unequal_lengths_cost():
    rows = list(everyone.measure(UNEVEN, SETTING, QUICK, WITH_LENGTHS))
    assert [row.refused for row in rows] == [{}] * 4
    assert all(set(row.ratios) == {"forward", "training"} and row.error < 50 for row in rows)


@pytest.mark.parametrize("rival", WITH_LENGTHS, ids=lambda rival: rival.name)
def test_lengths_ignored_or_minded_against_the_rules_are_a_wrong_result(rival):
    lengths = UNEVEN.lengths if rival.all_steps else None

    def against_the_rules(problem):
        return rival.make(replace(problem, case=replace(problem.case, lengths=lengths)))

    against = replace(rival, name="against", make=against_the_rules)
    _, row = everyone.measure(UNEVEN, SETTING, QUICK, (WITH_LENGTHS[0], against))
    assert "wrong result" in str(row.refused["against"]) and row.milliseconds == {}


def test_everyone_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(everyone, "LOOPS", LOOPS[:2])
    monkeypatch.setattr(everyone, "LIBRARIES", ())
    path = tmp_path / "found.json"
    assert bench_main(["--quick", "--rivals", "--sizes", "mnist", "--threads", "1", "--json", str(path)]) == 0
    (table,) = json.loads(path.read_text())["tables"]
    assert [row["rival"] for row in table["rows"]] == ["ours", "nn.LSTM"]
    assert "| mnist  | (28, 64, 28, 128)    | nn.LSTM " in capsys.readouterr().out
    assert (tmp_path / "found-rivals-float32-1.png").exists()


def test_tables_are_put_into_the_pages_that_have_a_place_for_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(everyone, "LOOPS", LOOPS[:2])
    monkeypatch.setattr(everyone, "LIBRARIES", (Library("Nobody", "with_nobody", ("no_such_package",), ()),))
    page, name = tmp_path / "page.md", "bench rivals float32 1"
    page.write_text(f"before\n<!-- {name} -->\nold\n<!-- end of {name} -->\nafter\n")
    monkeypatch.setattr("bench.__main__.PAGES", {page: "pictures"})
    options = ["--quick", "--rivals", "--sizes", "mnist", "--threads", "1"]
    assert bench_main([*options, "--publish", "--json", str(tmp_path / "found.json")]) == 0
    found = page.read_text()
    assert found.startswith(f"before\n<!-- {name} -->\n") and "old" not in found
    assert found.endswith(f"<!-- end of {name} -->\nafter\n")
    assert "| mnist | (28, 64, 28, 128) | nn.LSTM |" in found and "| --- |" in found
    assert "mnist: Nobody not timed: no_such_package not installed." in found
    assert f"`python -m bench {' '.join(options)} --json" in found and "--publish" not in found
    assert describe().cpu in found and f"torch {torch.__version__}" in found
    assert (tmp_path / "pictures" / "bench-rivals-float32-1.png").exists()
    assert "(pictures/bench-rivals-float32-1.png)" in found
    assert f"page.md shows {name}" in capsys.readouterr().out


@pytest.mark.skipif(not memory.RESET.exists(), reason="only Linux tells a peak")
def test_memory(tmp_path):
    printed, found = bench(
        "--memory", "--sizes", "mnist", "--engine", "reference", path=tmp_path / "found.json"
    )
    ((row,),) = (table["rows"] for table in found["tables"])
    steps = 28 * 64 * 128
    assert row["kept"]["nn.LSTM"] > row["kept"]["cell"] > 20
    for name in ("ours", "nn.LSTM", "cell"):
        forward, training = (row["peak"][what][name] * 1e6 / steps for what in ("forward", "training"))
        assert forward > 4, "y alone is four bytes for each step, row and channel"
        assert training > forward, "a forward pass is a part of a training step"
        assert training > 4 + 0.8 * row["kept"][name], "y and what is kept are in use at once"
    assert "| mnist  | (28, 64, 28, 128)    |" in printed


@pytest.mark.skipif(not memory.RESET.exists(), reason="only Linux tells a peak")
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_peak_is_what_is_in_use_at_once(at_once):
    megabytes = 64

    def block(megabytes):
        memory = mmap(-1, megabytes * 10**6)  # from the system: malloc may have as much at hand
        torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
        return memory

    def step(_module, problem):
        blocks = []
        for _ in range(3 if problem.case == TINY.case else 0):
            blocks = [*blocks, block(megabytes)][-at_once:]

    block(8 * megabytes)  # a peak before it, which is not the step's
    idle = Rival("idle", True, lambda problem: nn.Identity())
    peak = memory.peak_here(step, idle, make_problem(TINY.case, SETTING))
    most = (at_once + 1) * megabytes  # a new block is made before the oldest goes
    assert most - 1 < peak < most + 8


def test_a_published_table_is_without_what_is_asked():
    row = measure(TINY, SETTING, None, QUICK)
    heading, line, cells = KINDS["speed"].markdown([row]).splitlines()
    assert heading.count("|") == line.count("|") == cells.count("|") == 11
    assert "bar" not in heading and "≥" not in cells and "≤" not in cells
    assert sum("≥" in cell for cell in KINDS["speed"].cells(row)) == 3


def test_a_call_may_time_itself():
    assert race({"itself": lambda: 7.0, "not": lambda: None}, QUICK)["itself"] == [7.0, 7.0]


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
    found = ratio(theirs=[4.0, 9.0, 2.0, 100.0, 6.0], ours=[2.0, 3.0, 2.0, 10.0, 4.0])
    assert found.median == 6 / 3
    assert (found.low, found.high) == (1.5, 3.0)  # of 1, 1.5, 2, 3, 10


def test_bars():
    def of(threads, dtype=torch.float32, layers=1):
        return list(bars(SIZES["mnist"], Setting(dtype, threads, "cpp", layers)).values())

    assert of(2) == [1.5, 2.2, 8]
    assert of(1) == pytest.approx([0.85 * 1.5, 0.85 * 2.2, 0.85 * 8])
    assert of(2, torch.bfloat16) == [1.3, 1.3]
    assert of(2, layers=4) == [1.5, 2.2]


def test_floor():
    limits = Limits({"torch.mm": 1e6}, bandwidth=1e9, fma=2e6, cell_forward=1e3, cell_backward=2e3)
    flop = 2 * (3 * 2) * (4 * 5) * (4 + 5)
    assert arithmetic(TINY.case, SETTING, "forward") == flop
    assert arithmetic(TINY.case, SETTING, "training") == 3 * flop
    assert floor(TINY.case, SETTING, "forward", limits) == pytest.approx(flop / 2e6 + 30 / 1e3)
    assert floor(TINY.case, SETTING, "training", limits) == pytest.approx(
        3 * flop / 2e6 + 30 / 1e3 + 30 / 2e3
    )
    slow = Limits({"torch.mm": 1e6}, bandwidth=1.0, fma=2e6, cell_forward=1e3, cell_backward=2e3)
    values = 3 * 2 * (4 + 5) + 20 * (4 + 5)
    assert floor(TINY.case, SETTING, "forward", slow) == 4 * values
