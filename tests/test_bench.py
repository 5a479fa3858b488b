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
from matplotlib.figure import Figure
from torch import nn

from bench import kinds
from bench.__main__ import main as bench_main
from bench.bars import MEAN, hold, means
from bench.cases import CASES, SIZES, Setting, arithmetic, named, uneven
from bench.check import WANTED, compare
from bench.host import limits as host_limits
from bench.host.limits import RATES, Limits, floor, probe
from bench.host.machine import describe, installed
from bench.host.process import fresh_process
from bench.kinds import measure_growth, measure_small, measure_speed
from bench.memory import RESET, peak_here
from bench.peers import cells, libraries
from bench.peers.libraries import LIBRARIES, Library
from bench.peers.modules import BASICS, COMPILED, LOOPS, OURS, WITH_LENGTHS, Module, fused, torch_lstm
from bench.problem import STEPS, Problem, make_problem
from bench.race import Pace, Ratio, Record, Target, measure, race, ratio
from bench.report import plots
from bench.report.publish import publish
from bench.report.result import Result
from bench.report.tables import KINDS, digits
from lstm_fused.backends import cpp
from tests.cases import TIMED, Case, shortened

ROOT = Path(__file__).parent.parent
TINY = Case("tiny", T=3, B=2, I=4, H=5)
SETTING = Setting(torch.float32, threads=1, engine="reference")
QUICK = Pace(rounds=2, seconds=0.0)
# The reference's own error counts there too: torch.mm sums 4096 products with 33 half ulps, 4 in float32.
IN_FLOAT64 = 10.0


def speed(modules=BASICS, setting=SETTING):
    records = measure_speed(TINY, setting, None, QUICK, modules)
    hold(records, setting)
    return records


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
    assert {
        (record["what"], record["who"]): {name: t["limit"] for name, t in record["targets"].items()}
        for record in table["records"]
    } == {
        ("forward", "ours"): {"error": WANTED},
        ("training", "ours"): {"times_floor": 1.5},
        ("forward", "nn.LSTM"): {"ratio": 0.97},
        ("training", "nn.LSTM"): {"ratio": 0.97},
        ("training", "cell"): {},
    }
    assert table["means"] == [], "only one of the sizes ran"
    assert {record["what"] for record in ours if record["milliseconds"] > 0} == STEPS.keys()
    for record in theirs:
        seen = record["ratio"]
        assert seen["low"] <= seen["median"] <= seen["high"]
    assert "| mnist " in printed and "of 4 targets met" in printed
    assert (tmp_path / "found-speed-float32-1.png").exists()


def test_the_main_table_at_a_size_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.__main__.measure_limits", lambda *_: Limits({"torch.mm": 1e9}, 1e9))
    options = ["--quick", "--engine=reference", "--threads=1", "--sizes", "5,3,2,4"]
    assert bench_main([*options, "--json", str(tmp_path / "found.json")]) == 0
    assert "| 5,3,2,4 | (5, 3, 2, 4) " in capsys.readouterr().out
    assert named("400,16,80,320") == Case("400,16,80,320", T=400, B=16, I=80, H=320)


@pytest.mark.parametrize("text", ["400,16,80", "400,16,80,320,1", "0,16,80,320", "small", ""])
def test_other_sizes_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        bench_main(["--sizes", text])
    assert f"as in 400,16,80,320, got {text!r}" in capsys.readouterr().err


def test_ratios_have_one_scale_and_say_who_is_slower(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    every = [
        Record(name, (1, 2, 3, 4), "float32", what, who, ratio=Ratio(median, 0.9 * median, 2 * median))
        for name, median in (("one", 1.5), ("two", 30.0))
        for what in ("forward", "training")
        for who in ("ours", "nn.LSTM")
    ]
    for name in ("rivals", "speed"):
        assert plots.KINDS[name](every, "title", tmp_path / "picture.png")
    every[-1].targets["ratio"] = Target(30.0, 0.97)
    assert plots.KINDS["speed"](every, "title", tmp_path / "picture.png")
    for figure in drawn:
        assert len({axes.get_xlim() for axes in figure.axes}) == 1 and len(figure.axes) == 2
        assert all(axes.get_xlim()[1] > 30 for axes in figure.axes)
        assert "right of 1 is slower than lstm_fused" in figure.get_supxlabel()
    explained = ["target" in figure.get_supxlabel() for figure in drawn]
    assert explained == [False, False, True]


def test_a_colour_is_a_step_unless_a_target_is_missed(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    steps = ("forward", "training", "streaming")
    shape = ("one", (1, 2, 3, 4), "float32")
    every = [Record(*shape, what, who, ratio=Ratio(1, 1, 1)) for who in ("ours", "nn.LSTM") for what in steps]
    every[3].targets["ratio"] = Target(1.0, 1.02)  # forward, missed
    every[4].targets["ratio"] = Target(1.0, 0.97)  # training, met
    assert plots.draw_rivals(every, "title", tmp_path / "picture.png")
    (axes,) = drawn[0].axes
    legend = {line.get_label(): line for line in axes.lines if line.get_label() in steps}
    marks = [line for line in axes.lines if line.get_marker() != "None" and len(line.get_xdata())]
    red = marks[3]
    for mark, record in zip(marks, every, strict=True):
        assert mark.get_marker() == legend[record.what].get_marker()
        assert (mark.get_color() == legend[record.what].get_color()) == (mark is not red)
        assert mark is red or mark.get_zorder() < red.get_zorder()
    assert red.get_color() not in {line.get_color() for line in legend.values()}
    lines = [line for line in axes.lines if line.get_marker() == "None"]
    assert max(line.get_zorder() for line in lines) < min(mark.get_zorder() for mark in marks)


def test_a_dtype_the_engine_cannot_serve_is_said_not_timed(monkeypatch):
    def refuse(*_):
        raise RuntimeError("engine 'reference' takes no such thing")

    monkeypatch.setattr("bench.peers.modules.select", refuse)
    records = speed()
    assert "takes no such thing" in refused(records)["ours"]
    assert timed(records) == set() and not any(record.ratio for record in records)


def test_weights_of_torch_are_in_one_piece_in_bfloat16_too(monkeypatch):
    taken = []
    dtypes = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
    before = set(dtypes)

    def flatten(module):
        taken.append((module.weight_hh_l0.abs().sum().item() > 0, torch.bfloat16 in dtypes))

    problem = make_problem(TINY, replace(SETTING, dtype=torch.bfloat16))
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", flatten)
    torch_lstm(problem)
    assert taken[-1] == (True, True) and dtypes == before


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("case", TIMED, ids=lambda case: case.name)
def test_ours_is_right_in_every_size(case, lengths, dtype):
    few = shortened(uneven(case) if lengths else case, 5)
    assert OURS.check(few, Setting(dtype, 1, "cpp")) <= (IN_FLOAT64 if dtype == torch.float64 else WANTED)


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
    assert heading.count("|") == line.count("|") == cells.count("|") == 16
    assert heading.count("target") == 5 and cells.count("≥") == 2 and cells.count("≤") == 1
    assert cells.count(" met ") + cells.count("missed by") == 3
    records[0].targets["error"] = Target(2.5, 2.0, at_most=True)
    assert "| 2.50 | ≤ 2.00 missed by 1.25× |" in KINDS["speed"].markdown(records).replace(
        f"| {records[0].error:.2f} |", "| 2.50 |"
    )


def test_a_page_shows_the_main_table_with_its_targets(tmp_path):
    page, name = tmp_path / "page.md", "bench speed float32 1"
    page.write_text(f"before\n<!-- {name} -->\nold\n<!-- end of {name} -->\nafter\n")
    records = speed()
    averages = means(records, 1)
    result = Result("speed", SETTING, Limits({"torch.mm": 1e9}, 1e9), records, averages)
    said = publish(tmp_path / "found.json", describe(), [result], ["--threads", "1"], {page: "pictures"})
    assert said == [f"page.md shows {name}"]
    title, table, made = page.read_text().split("\n\n")
    assert title.startswith(f"before\n<!-- {name} -->\nSpeed: float32") and "torch.mm 1;" in made
    assert made.endswith(f".\n<!-- end of {name} -->\nafter\n")
    assert table == KINDS["speed"].markdown([*records, *averages]) and table.count("≥") == 2
    assert table.splitlines()[-1].startswith(f"| {MEAN} | geometric |")


def test_growth_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kinds, "SWEEPS", {"T": (1, 2)})
    options = ["--quick", "--growth", "--threads", "1", "--dtype", "float64"]
    assert bench_main([*options, "--json", str(tmp_path / "found.json")]) == 0
    assert "| T = 2 " in capsys.readouterr().out


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


def record(what, who, size="mnist", median=None, times_floor=None):
    found = median and Ratio(median, median / 2, median * 2)
    return Record(size, (1, 1, 1, 1), "float32", what, who, ratio=found, times_floor=times_floor)


def limits_of(records, setting=SETTING, single=()):
    hold(records, setting, single)
    return [{name: target.limit for name, target in r.targets.items()} for r in records]


@pytest.mark.parametrize(
    ("what", "limits"),
    [
        ("training", [1.5, 1.25, 1.15, 1.25, 2.2, 1.5, 1.15, 1.3]),
        ("forward", [None] * 7 + [1.25]),
    ],
)
def test_a_time_is_held_to_its_multiple_of_the_floor(what, limits):
    def of(setting):
        return limits_of([record(what, "ours", size, times_floor=1.2) for size in (*SIZES, MEAN)], setting)

    expected = [{} if limit is None else {"times_floor": limit} for limit in limits]
    assert of(SETTING) == of(replace(SETTING, threads=2)) == expected
    assert not any(of(replace(SETTING, dtype=torch.bfloat16)) + of(replace(SETTING, layers=4)))
    (mean,) = [record(what, "ours", MEAN, times_floor=1.26)]
    hold([mean], SETTING)
    assert (mean.targets["times_floor"].share < 1) == (what == "forward")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_nobody_may_be_ahead_by_more_than_the_noise(threads, dtype):
    names = ["nn.LSTM", "torch.nn", "oneDNN", "ONNX Runtime", "cell", "JAX lax.scan"]
    records = [record(what, name, median=0.98) for what in STEPS for name in names]
    held = limits_of(records, Setting(dtype, threads, "cpp"))
    assert held == 2 * [*[{"ratio": 0.97}] * 4, {}, {}]
    assert records[0].targets["ratio"].share >= 1
    assert limits_of([record("forward", "nn.LSTM", MEAN, median=1.0)]) == [{}]


def test_a_deep_stack_is_held_to_the_ratio_of_one_layer():
    single = [record("forward", "nn.LSTM", median=1.2), record("training", "nn.LSTM", "mid", median=1.5)]
    deep = [record(what, "nn.LSTM", median=1.1) for what in STEPS]
    assert limits_of(deep, replace(SETTING, layers=4), single) == [{"ratio": 1.2}, {"ratio": 0.97}]


def test_means_are_geometric_and_over_all_sizes_or_none():
    records = [
        *(record("training", "ours", "a", 1.0, 1.0), record("training", "nn.LSTM", "a", 2.0)),
        *(record("training", "ours", "b", 1.0, 4.0), record("training", "nn.LSTM", "b", 8.0)),
        *(record("forward", "nn.LSTM", "a", 2.0), record("forward", "nn.LSTM", "b")),
    ]
    assert means(records, 3) == means(records, 0) == []
    ours, theirs = means(records, 2)
    assert (ours.size, ours.what, ours.who, ours.times_floor, ours.ratio) == (
        MEAN,
        "training",
        "ours",
        2.0,
        None,
    )
    assert (theirs.who, theirs.times_floor) == ("nn.LSTM", None)
    assert (theirs.ratio.median, theirs.ratio.low, theirs.ratio.high) == pytest.approx((4, 2, 8))
    rows = KINDS["speed"].markdown([*records, ours, theirs]).splitlines()
    assert "| 2.00 |" in rows[-1] and "4.00 (2.00–8.00)" in rows[-1]


def test_a_run_of_one_layer_and_of_four_compares_them_and_shows_means(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "bench.__main__.CASES", dict.fromkeys(("speed", "deep"), (replace(TINY, name="mnist"),))
    )
    path = tmp_path / "found.json"
    bench_main(
        ["--quick", "--speed", "--deep", "--threads", "1", "--engine", "reference", "--json", str(path)]
    )
    main, deep = json.loads(path.read_text())["tables"]
    (single,) = (
        r["ratio"]["median"] for r in main["records"] if (r["what"], r["who"]) == ("training", "nn.LSTM")
    )
    held = [
        r["targets"]["ratio"] for r in deep["records"] if (r["what"], r["who"]) == ("training", "nn.LSTM")
    ]
    assert [target["limit"] for target in held] == [single]
    limits = {r["what"]: r["targets"]["times_floor"]["limit"] for r in main["means"] if r["who"] == "ours"}
    assert limits == {"forward": 1.25, "training": 1.3}
    assert capsys.readouterr().out.count(f"| {MEAN} ") == 2


@pytest.mark.parametrize("case", CASES["small"], ids=lambda case: f"{case.name}-{case.B}-{case.H}")
def test_small_calls_are_raced_with_those_of_torch(case):
    records = measure_small(case, SETTING, QUICK)
    hold(records, SETTING)
    assert case.T == 1 and refused(records) == {} and timed(records) == {"ours", "torch.nn"}
    assert all(record.error < 50 for record in records)
    assert [[*record.targets] for record in records] == [["error"], [], ["ratio"], ["ratio"]]
    _, _, cells = KINDS["small"].markdown(records).splitlines()
    assert f"| {digits(1e3 * records[0].milliseconds)} |" in cells and cells.count("≥ 0.97") == 2


def test_small_calls_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.__main__.CASES", {"small": CASES["small"][3:5]})
    page, name = tmp_path / "page.md", "bench small float64 1"
    page.write_text(f"<!-- {name} -->\n<!-- end of {name} -->\n")
    monkeypatch.setattr("bench.__main__.PAGES", {page: "pictures"})
    options = ["--quick", "--small", "--dtype", "float64", "--threads", "1", "--publish"]
    assert bench_main([*options, "--json", str(tmp_path / "found.json")]) == 0
    assert (
        "| LSTM | (1, 8, 128, 128) |" in page.read_text()
        and "| LSTMCell | (1, 1, 64, 64) |" in page.read_text()
    )
    assert "forward µs" in capsys.readouterr().out


@pytest.mark.parametrize("who", ["ours", "torch.nn"])
def test_a_wrong_cell_is_refused(who, monkeypatch):
    def spoiled(problem):
        module = wrong.make(problem)
        module.cell.register_forward_hook(lambda _module, _arguments, result: (result[0], result[1] + 1e-3))
        return module

    (wrong,) = (cell for cell in cells.CELLS if cell.name == who)
    raced = [replace(cell, make=spoiled) if cell is wrong else cell for cell in cells.CELLS]
    monkeypatch.setattr(kinds, "CELLS", raced)
    assert "wrong result" in refused(measure_small(CASES["small"][-1], SETTING, QUICK))[who]


@pytest.mark.parametrize("engine", ["reference", "cpp"])
def test_errors_in_float64_are_counted_in_those_of_float32_scaled(engine):
    if engine == "cpp" and cpp.unavailable() is not None:
        pytest.skip("no C++ engine here")
    setting = Setting(torch.float64, 1, engine)
    assert OURS.check(TINY, setting) <= IN_FLOAT64

    def rounded(problem):
        module = OURS.make(problem)
        module.register_forward_hook(
            lambda _module, _arguments, result: (result[0].float().double(), result[1])
        )
        return module

    records = speed([replace(OURS, make=rounded), *BASICS[1:]], setting)
    assert "wrong result" in refused(records)["ours"] and "nn.LSTM" not in refused(records)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_machine_is_measured_in_the_dtype(dtype, monkeypatch):
    asked = []
    real = host_limits.compiled
    monkeypatch.setattr(host_limits, "compiled", lambda *a: asked.append(a) or real(*a))
    try:
        rates = probe(dtype, 1, 0.01)
    except OSError:
        pytest.skip("no C++ compiler here")
    assert f"-DFLOAT={'double' if dtype == torch.float64 else 'float'}" in asked[0]
    assert len(rates) == len(RATES) and min(rates) > 1e6


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
