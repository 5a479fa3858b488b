"""Tests the benchmark on its smallest size: what it writes, what it refuses, and its arithmetic."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import kinds
from bench.__main__ import main as bench_main
from bench.cases import SIZES, Setting, arithmetic, targets, uneven
from bench.check import WANTED, compare
from bench.host.limits import Limits, floor
from bench.host.machine import describe, installed
from bench.host.process import fresh_process
from bench.kinds import measure_growth, measure_speed
from bench.memory import RESET, peak_here
from bench.peers import libraries
from bench.peers.libraries import LIBRARIES, Library
from bench.peers.modules import BASICS, COMPILED, LOOPS, OURS, WITH_LENGTHS, Module, fused
from bench.problem import STEPS, Problem, make_problem
from bench.race import Pace, Target, measure, race, ratio
from bench.report.publish import publish
from bench.report.result import Result
from bench.report.tables import KINDS
from lstm_fused.backends import cpp
from tests.cases import TIMED, Case, shortened

ROOT = Path(__file__).parent.parent
TINY = Case("tiny", T=3, B=2, I=4, H=5)
ALL = {("forward", "nn.LSTM"): 1.0, ("training", "nn.LSTM"): 1.0, ("training", "cell"): 1.0}
SETTING = Setting(torch.float32, threads=1, engine="reference")
QUICK = Pace(rounds=2, seconds=0.0)


def speed(modules=BASICS, setting=SETTING):
    return measure_speed(TINY, setting, ALL, None, QUICK, modules)


def refused(records):
    return {record.who: record.refused for record in records if record.refused}


def timed(records):
    return {record.who for record in records if record.milliseconds is not None}


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
    ours, theirs = ([r for r in table["records"] if (r["who"] == "ours") == own] for own in (True, False))
    for record in table["records"]:
        assert (
            record["size"] == "mnist" and record["shape"] == [28, 64, 28, 128] and record["refused"] is None
        )
    assert {(record["what"], record["who"], record["targets"]["ratio"]["limit"]) for record in theirs} == {
        ("forward", "nn.LSTM", 0.85 * 1.5),
        ("training", "nn.LSTM", 0.85 * 2.2),
        ("training", "cell", 0.85 * 8),
    }
    assert {record["what"] for record in ours if record["milliseconds"] > 0} == STEPS.keys()
    for record in theirs:
        seen = record["ratio"]
        assert seen["low"] <= seen["median"] <= seen["high"]
    assert "| mnist " in printed and "of 4 targets met" in printed
    assert (tmp_path / "found-speed-float32-1.png").exists()


def test_a_dtype_the_engine_cannot_serve_is_said_not_timed(monkeypatch):
    def refuse(*_):
        raise RuntimeError("engine 'reference' takes no such thing")

    monkeypatch.setattr("bench.peers.modules.select", refuse)
    records = speed()
    assert "takes no such thing" in refused(records)["ours"]
    assert timed(records) == set() and not any(record.ratio for record in records)


@pytest.mark.parametrize("wrong", BASICS, ids=lambda module: module.name)
def test_a_wrong_result_is_refused(wrong):
    def spoiled(problem: Problem) -> nn.Module:
        def one_number_off(_module, _arguments, result):
            y, states = result
            return torch.cat([y[:-1], y[-1:] + 1e-3 * (y[-1:] == y[-1, -1, -1])]), states

        module = wrong.make(problem)
        module.register_forward_hook(one_number_off)
        return module

    records = speed([replace(wrong, make=spoiled) if module is wrong else module for module in BASICS])
    assert list(refused(records)) == [wrong.name] and "wrong result" in refused(records)[wrong.name]
    assert all(record.wrong == (record.who == wrong.name) for record in records)
    everyone = {module.name for module in BASICS}
    assert timed(records) == (set() if wrong.name == "ours" else everyone - {wrong.name})


def test_missing_peepholes_are_refused():
    without = Module("ours", lambda problem: fused(problem, "reference", peephole=False))
    records = speed([without, *BASICS[1:]])
    assert "wrong result" in refused(records)["ours"] and timed(records) == set()


@pytest.mark.parametrize(
    "setting",
    [SETTING, Setting(torch.float32, 1, "reference", layers=2, bidirectional=True)],
    ids=["one_layer", "deep"],
)
def test_everyone_computes_the_same_function(setting):
    records = speed(setting=setting)
    assert refused(records) == {}
    assert all(record.error <= 2 for record in records if record.who == "ours")


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile traces all the same, but the code it would take half a minute to make is not made."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda cell, **options: compile(cell, **options | {"backend": "eager"})
    )


# The compiler's tracer looks at .grad of whatever it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_everyone_else_computes_the_same_function_too(no_compiler):
    records = measure(TINY, SETTING, LOOPS, QUICK)
    assert refused(records) == {}
    assert [(record.who, record.what) for record in records if record.ratio] == [
        (module.name, what) for module in LOOPS for what in ("forward", "training")
    ]
    assert all(record.error is not None and record.error < 50 for record in records)
    assert records[1].ratio.median == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loop_takes_part_in_more_sizes_than_the_compiler_has_patience_for(no_compiler):
    for H in range(1, 11):
        assert COMPILED.check(Case("tiny", T=3, B=2, I=4, H=H), SETTING) < 50


def with_library(library, setting=SETTING):
    """The library's records."""
    return [record for record in measure(TINY, setting, (OURS, library), QUICK) if record.who != "ours"]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_so_does_every_library(library):
    if absent := [name for name in library.needs if not (find_spec(name) or installed(name))]:
        pytest.skip(f"{' and '.join(absent)} not installed")
    records = with_library(library)
    assert refused(records) == {} and [record.what for record in records if record.ratio] == [*library.can]
    assert all(record.error is not None and record.error < 50 for record in records)


def test_a_wrong_library_is_refused(monkeypatch):
    def spoiled(found, *arguments):
        return compare({name: tensor + 1e-3 for name, tensor in found.items()}, *arguments)

    monkeypatch.setattr(libraries, "compare", spoiled)
    records = with_library(LIBRARIES[0])
    assert "wrong result" in refused(records)["ONNX Runtime"] and timed(records) == set()


def test_a_library_that_is_not_here_is_said_not_raced():
    absent = Library("Nobody", "with_nobody", ("torch", "no_such_package"), ("forward",))
    records = with_library(absent)
    assert refused(records) == {"Nobody": "no_such_package not installed"} and timed(records) == set()
    records = with_library(LIBRARIES[0], replace(SETTING, layers=2))
    assert "only one float32 layer" in refused(records)["ONNX Runtime"]


def test_a_library_that_fails_is_no_result():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'bench\.peers\.with_nobody'"):
        with_library(Library("Nobody", "with_nobody", ("torch",), ("forward",)))


def test_a_process_that_ends_is_no_result():
    with fresh_process() as pool, pytest.raises(RuntimeError, match="terminated abruptly"):
        pool.submit(os._exit, 1).result()


def test_a_fresh_process_has_its_environment_and_prints_to_standard_error(capfd):
    with fresh_process(OMP_NUM_THREADS="7") as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "7"
        pool.submit(os.system, "echo said").result()
    assert os.environ.get("OMP_NUM_THREADS") != "7"
    out, err = capfd.readouterr()
    assert "said" in err and "said" not in out


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ engine here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("case", TIMED, ids=lambda case: case.name)
def test_ours_is_right_in_every_size(case, lengths, dtype):
    few = shortened(uneven(case) if lengths else case, 5)
    assert OURS.check(few, Setting(dtype, 1, "cpp")) <= WANTED


UNEVEN = uneven(Case("tiny", T=7, B=5, I=4, H=5))


def test_uneven_lengths_reach_from_one_step_to_all():
    lengths = uneven(SIZES["wide"]).lengths
    assert len(lengths) == 256 and min(lengths) <= 2 and max(lengths) == 128
    assert list(lengths) != sorted(lengths) and list(lengths) != sorted(lengths, reverse=True)
    whole = arithmetic(replace(UNEVEN, lengths=None), SETTING, "training")
    needed = arithmetic(UNEVEN, SETTING, "training")
    assert needed / whole == sum(UNEVEN.lengths) / (7 * 5) < 1


def test_what_unequal_lengths_cost():
    records = measure(UNEVEN, SETTING, WITH_LENGTHS, QUICK)
    assert refused(records) == {} and len({record.who for record in records}) == 4
    assert all(record.ratio and record.error < 50 for record in records)


@pytest.mark.parametrize("module", WITH_LENGTHS, ids=lambda module: module.name)
def test_lengths_ignored_or_minded_against_the_rules_are_a_wrong_result(module):
    lengths = UNEVEN.lengths if module.all_steps else None

    def against_the_rules(problem):
        return module.make(replace(problem, case=replace(problem.case, lengths=lengths)))

    against = replace(module, name="against", make=against_the_rules)
    records = measure(UNEVEN, SETTING, (OURS, against), QUICK)
    assert "wrong result" in refused(records)["against"] and timed(records) == {"ours"}


def test_everyone_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kinds, "EVERYONE", LOOPS[:2])
    path = tmp_path / "found.json"
    assert bench_main(["--quick", "--rivals", "--sizes", "mnist", "--threads", "1", "--json", str(path)]) == 0
    (table,) = json.loads(path.read_text())["tables"]
    assert [record["who"] for record in table["records"]] == ["ours", "ours", "nn.LSTM", "nn.LSTM"]
    assert "| mnist  | (28, 64, 28, 128)    | nn.LSTM " in capsys.readouterr().out
    assert (tmp_path / "found-rivals-float32-1.png").exists()


def test_tables_are_put_into_the_pages_that_have_a_place_for_them(tmp_path, monkeypatch, capsys):
    absent = Library("Nobody", "with_nobody", ("no_such_package",), ("forward",))
    monkeypatch.setattr(kinds, "EVERYONE", (*LOOPS[:2], absent))
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


@pytest.mark.skipif(not RESET.exists(), reason="only Linux tells a peak")
def test_memory(tmp_path):
    printed, found = bench(
        "--memory", "--sizes", "mnist", "--engine", "reference", path=tmp_path / "found.json"
    )
    (table,) = found["tables"]
    records = {(record["who"], record["what"]): record for record in table["records"]}
    kept = {who: records[who, "training"]["kept"] for who in ("ours", "nn.LSTM", "cell")}
    steps = 28 * 64 * 128
    assert kept["nn.LSTM"] > kept["cell"] > 20
    for name in ("ours", "nn.LSTM", "cell"):
        forward, training = (records[name, what]["peak"] * 1e6 / steps for what in ("forward", "training"))
        assert forward > 4, "y alone is four bytes for each step, row and channel"
        assert training > forward, "a forward pass is a part of a training step"
        assert training > 4 + 0.8 * kept[name], "y and what is kept are in use at once"
    assert "| mnist  | (28, 64, 28, 128)    |" in printed


@pytest.mark.skipif(not RESET.exists(), reason="only Linux tells a peak")
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_peak_is_what_is_in_use_at_once(at_once, monkeypatch):
    megabytes = 64

    def block(megabytes):
        memory = mmap(-1, megabytes * 10**6)  # from the system: malloc may have as much at hand
        torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
        return memory

    def step(_module, problem):
        blocks = []
        for _ in range(3 if problem.case == TINY else 0):
            blocks = [*blocks, block(megabytes)][-at_once:]

    block(8 * megabytes)  # a peak before it, which is not the step's
    monkeypatch.setitem(STEPS, "forward", step)
    idle = Module("idle", lambda problem: nn.Identity())
    peak = peak_here("forward", idle, make_problem(TINY, SETTING))
    most = (at_once + 1) * megabytes  # a new block is made before the oldest goes
    assert most - 1 < peak < most + 8


def test_a_published_table_shows_what_is_asked():
    records = speed()
    heading, line, cells = KINDS["speed"].markdown(records).splitlines()
    assert heading.count("|") == line.count("|") == cells.count("|") == 15
    assert heading.count("target") == 4 and cells.count("≥") == 3 and cells.count("≤") == 1
    assert cells.count(" met ") + cells.count("missed by") == 4
    records[0].targets["error"] = Target(2.5, 2.0, at_most=True)
    assert "| 2.50 | ≤ 2.00 missed by 1.25× |" in KINDS["speed"].markdown(records).replace(
        f"| {records[0].error:.2f} |", "| 2.50 |"
    )


def test_a_page_shows_the_main_table_with_its_targets(tmp_path):
    page, name = tmp_path / "page.md", "bench speed float32 1"
    page.write_text(f"before\n<!-- {name} -->\nold\n<!-- end of {name} -->\nafter\n")
    records = speed()
    result = Result("speed", SETTING, Limits({"torch.mm": 1e9}, 1e9), records)
    said = publish(tmp_path / "found.json", describe(), [result], ["--threads", "1"], {page: "pictures"})
    assert said == [f"page.md shows {name}"]
    title, table, made = page.read_text().split("\n\n")
    assert title.startswith(f"before\n<!-- {name} -->\nSpeed: float32") and "torch.mm 1;" in made
    assert made.endswith(f".\n<!-- end of {name} -->\nafter\n")
    assert table == KINDS["speed"].markdown(records) and table.count("≥") == 3


def test_growth_is_against_the_first_value():
    first, second = measure_growth("T", (1, 3), SETTING, QUICK)
    ours = second[0]
    assert (ours.who, ours.what, ours.arithmetic) == ("ours", "forward", 3.0)
    assert ours.growth == ours.milliseconds / first[0].milliseconds
    assert ours.targets["growth"] == Target(ours.growth, 1.1 * 3, at_most=True)
    assert not first[0].targets and "growth" not in second[-1].targets


def test_a_call_may_time_itself():
    assert race({"itself": lambda: 7.0, "not": lambda: None}, QUICK)["itself"] == [7.0, 7.0]


def test_a_ratio_is_the_median_of_the_rounds_and_stands_between_its_quartiles():
    found = ratio(theirs=[4.0, 9.0, 2.0, 100.0, 6.0], ours=[2.0, 3.0, 2.0, 10.0, 4.0])
    assert found.median == 2  # of 1, 1.5, 2, 3, 10
    assert (found.low, found.high) == (1.5, 3.0)
    skewed = ratio(theirs=[10.0, 20.0, 30.0], ours=[9.0, 30.0, 10.0])  # 20 / 10 of medians
    assert skewed.median == 10 / 9 and skewed.low <= skewed.median <= skewed.high


def test_a_record_has_medians_of_its_times_and_of_the_ratios_of_rounds(monkeypatch):
    def rounds(calls, _pace):
        return {name: [1.0, 4.0, 2.0] if name == "ours" else [3.0, 4.0, 8.0] for name in calls}

    monkeypatch.setattr("bench.race.race", rounds)
    for record in measure(TINY, SETTING, BASICS, QUICK):
        ours = record.who == "ours"
        assert (record.milliseconds, record.rounds) == (2000 if ours else 4000, 3)
        assert (record.ratio.low, record.ratio.median, record.ratio.high) == (
            (1, 1, 1) if ours else (2, 3, 3.5)
        )


def test_targets():
    def of(threads, dtype=torch.float32, layers=1):
        return list(targets("mnist", Setting(dtype, threads, "cpp", layers)).values())

    assert of(2) == [1.5, 2.2, 8]
    assert of(1) == pytest.approx([0.85 * 1.5, 0.85 * 2.2, 0.85 * 8])
    assert of(2, torch.bfloat16) == [1.3, 1.3]
    assert of(2, layers=4) == [1.5, 2.2]


def test_floor():
    limits = Limits({"torch.mm": 1e6}, bandwidth=1e9, fma=2e6, cell_forward=1e3, cell_backward=2e3)
    flop = 2 * (3 * 2) * (4 * 5) * (4 + 5)
    assert arithmetic(TINY, SETTING, "forward") == flop
    assert arithmetic(TINY, SETTING, "training") == 3 * flop
    assert floor(TINY, SETTING, "forward", limits) == pytest.approx(flop / 2e6 + 30 / 1e3)
    assert floor(TINY, SETTING, "training", limits) == pytest.approx(3 * flop / 2e6 + 30 / 1e3 + 30 / 2e3)
    slow = Limits({"torch.mm": 1e6}, bandwidth=1.0, fma=2e6, cell_forward=1e3, cell_backward=2e3)
    values = 3 * 2 * (4 + 5) + 20 * (4 + 5)
    assert floor(TINY, SETTING, "forward", slow) == 4 * values
