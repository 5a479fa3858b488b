"""Rehearses the day on a GPU: what hangs, crashes or is wrong is told, and what follows it is run."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from cases import Case
from lstm_fused.kernels import choose, guard, launch, verdicts
from triton.experimental.gluon._runtime import GluonJITFunction

from bench.gpu import jobs, kernels, looks, speed, stages, tables
from bench.gpu.day import Day, parse, planned
from bench.gpu.jobs import Ended, Job, judge
from bench.gpu.stages import Place, Stage

ROOT = Path(__file__).parents[2]
ROW = "from bench.gpu import rows; rows.add('look', name='{}')"


def python(program):
    return Job([sys.executable, "-c", program], {"PYTHONPATH": str(ROOT)})


def ends(process, seconds=5.0):
    """Whether a process is gone before so many seconds are over, or nothing but its entry is left."""
    state = Path(f"/proc/{process}/stat")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def place(tmp_path):
    return Place("cpu", True, tmp_path / "work", tmp_path / "out")


def test_what_goes_wrong_is_told_and_stops_nothing(place, monkeypatch):
    monkeypatch.setattr(jobs, "QUIET", 1.0)
    # It starts another process, and neither ever ends.
    hangs = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"{ROW.format('before it hangs')}; print('child', child.pid, flush=True); time.sleep(600)"
    )
    slow = "import time\nwhile True: print('at it', flush=True); time.sleep(0.1)"
    wrong = "print('BAD 96 programs: off by 9 times'); raise SystemExit(1)"
    failing = (
        "print('tests/a.py::right[x y] PASSED [ 33%]\\ntests/a.py::off[x y] FAILED [ 66%]\\n"
        "tests/a.py::crashed ', flush=True); import os; os.kill(os.getpid(), 11)"
    )
    day = Day(place, 60, {"date": "today", "commit": "abc"})
    day.run(Stage("one", 5, {"hangs": python(hangs), "slow": python(slow), "wrong": python(wrong)}))
    day.run(Stage("two", 20, {"failing": python(failing), "advice": Job(python(wrong).command, advice=True)}))
    day.run(Stage("three", 20, {"absent": Job(["/nowhere/to/be/found"]), "good": python(ROW.format("good"))}))
    day.end = 0
    day.run(Stage("four", 20, {"late": python("print(1)")}))

    found = {job.job: job for job in day.found}
    outcomes = {name: job.outcome for name, job in found.items()}
    assert outcomes == {
        **{"hangs": "hung", "slow": "not done", "wrong": "wrong", "advice": "wrong"},
        **{"failing": "died", "failing+": "died"},
        **{"absent": "died", "good": "right", "four": "not run"},
    }
    assert found["failing"].code == -signal.SIGSEGV
    assert found["failing"].failed == ["tests/a.py::off[x y]"]
    assert found["failing"].at == "tests/a.py::crashed"
    assert found["failing"].tests == {"PASSED": 1, "FAILED": 1}
    assert found["wrong"].said == ["BAD 96 programs: off by 9 times"]
    child = int(found["hangs"].said[-1].split()[1])
    assert ends(child), "what a job started outlives it"
    said = jobs.verdict(day.found)
    assert said.startswith("verdict: hang, 2 tests passed; hung: hangs; wrong: ") and "advice" not in said

    written = json.loads((place.out / "day.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["before it hangs", "good"]
    tests = {"tests/a.py::off[x y]", "tests/a.py::crashed"}  # in place of their job
    assert set(jobs.failures(written)) == {"hangs", "wrong", "absent", *tests}
    assert sorted(path.name for path in place.out.iterdir()) == ["day.json", "logs.tgz", "summary.txt"]
    with tarfile.open(place.out / "logs.tgz") as archive:
        assert set(archive.getnames()) == {
            f"logs/{name}.log" for name in found if name not in ("four", "absent")
        } | {"logs/absent.log"}
    summary = (place.out / "summary.txt").read_text()
    assert "failing                died (SIGSEGV)" in summary and "it was at tests/a.py::crashed" in summary


TESTS = """
import os, time
def test_right(): pass
def test_crashes(): os.kill(os.getpid(), 11)
def test_wrong(): assert 1 == 2
def test_hangs(): time.sleep(600)
def test_too(): pass
"""


def test_tests_that_take_their_process_with_them_cost_the_others_nothing(place, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "QUIET", 2.0)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    command = ["sh", "-c", f'cd {tmp_path}; exec "$0" "$@"', sys.executable, "-m", "pytest", "-v", "tests"]
    day = Day(place, 60, {})
    day.run(Stage("tests", 20, {"tests-0": Job(command, {"PYTHONFAULTHANDLER": "1"})}))
    first, second = day.found
    assert (first.outcome, first.at) == ("died", "tests/test_it.py::test_crashes")
    assert (second.outcome, second.at) == ("hung", "tests/test_it.py::test_hangs")
    assert second.failed == ["tests/test_it.py::test_wrong"]
    assert any(
        "in test_hangs" in line for line in (place.work / "logs/tests-0+.log").read_text().splitlines()
    )


def test_a_job_that_ends_leaves_nobody(tmp_path):
    program = (
        "import subprocess, sys; "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    ended = asyncio.run(jobs.run(Job([sys.executable, "-c", program], {}), tmp_path / "said", 20))
    assert ended.code == 0 and not ended.hung
    assert ends(int(ended.text))


def test_a_day_that_is_told_to_end_keeps_what_it_has(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    command = [
        sys.executable,
        "-m",
        "bench.gpu.day",
        "--device",
        "cpu",
        "--small",
        "--only",
        "probe",
        "smoke",
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--work", str(work)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not (work / "logs" / "smoke-step.log").exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) != 0
    found = {job["job"]: job["outcome"] for job in json.loads((out / "day.json").read_text())["jobs"]}
    assert found == {"probe": "right", **dict.fromkeys(found.keys() - {"probe"}, "not done")}
    assert "smoke-step" in found
    assert "verdict" in (out / "summary.txt").read_text().splitlines()[-1]


def test_numbers_become_a_page(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    command = [sys.executable, "-m", "bench.gpu.day", "--device", "cpu", "--small", "--commit", "abc123"]
    command += [
        "--only",
        "probe",
        "grids",
        "numbers-tiny",
        "directions",
        "--out",
        str(out),
        "--work",
        str(work),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: green" in done.stdout
    page = tables.page(json.loads((out / "day.json").read_text()))
    assert page.startswith("# Triton's interpreter\n\nMeasured on ") and "at commit abc123" in page
    layer = "| (2, 3, 3, 5) | bfloat16 | forward |"
    layers, _, directions = page.partition("## Both directions")
    assert layers.count(layer) == 2  # with the host's part, and of the GPU alone
    interpreted = [kernel for kernel in choose.KERNELS if kernel not in stages.GLUON]
    for name in ("lstm_fused", "nn.LSTM", *(f"lstm_fused, {kernel}" for kernel in interpreted)):
        assert f"| {name} |" in page
    assert "| (3, 5) | bfloat16 | backward |" in page
    for what in (
        "forward",
        "training",
    ):  # milliseconds in turn and at once, their ratio, and the same of the GPU alone
        times = r" \d+\.\d{3} \| \d+\.\d{3} \| \d+\.\d\d \|"
        row = rf"\| \(2, 3, 3, 5\) \| bfloat16 \| {what} \|{times}{times}\n"
        assert len(re.findall(row, directions)) == 1
    assert not [path for path in out.iterdir() if path.is_dir()] and len(list(out.iterdir())) <= 8


def test_tiles_in_turn_are_timed_against_one_tile_at_a_time(monkeypatch):
    direction, H = "backward", 768
    monkeypatch.setattr(choose, "card_at", lambda device: choose.CARDS[1])
    large = Case("does not fit on an H100 at once", T=2, B=128, I=3, H=H)
    launched, judged = [], []
    for name in ("forward", "backward"):
        monkeypatch.setattr(launch, name, lambda *given, name=name: launched.append((name, given[-1])))
    verdict = verdicts.Verdict(True, "right")
    monkeypatch.setattr(guard, "judge", lambda plan, *_: judged.append(plan) or verdict)
    call = kernels.one_tile_at_a_time(large, torch.bfloat16, direction, "cpu")
    call()
    layer = choose.Layer(direction, large.H, large.B, torch.bfloat16, "ieee")
    assert choose.choose(layer, choose.CARDS[1], "persistent").TILES > 1
    ((ran, plan),) = launched
    assert (ran, plan.TILES, [plan]) == (direction, 1, judged) and choose.launches(plan, layer) > 1
    verdict = verdicts.Verdict(False, "off by 3")
    with pytest.raises(RuntimeError, match="off by 3"):
        kernels.one_tile_at_a_time(large, torch.bfloat16, direction, "cpu")()
    assert len(launched) == 1
    small = replace(large, B=16)
    assert kernels.one_tile_at_a_time(small, torch.bfloat16, direction, "cpu") is None


class Gpu:
    """A GPU with a queue, as torch.cuda; it is done at ``now``, and the host has come to ``host``."""

    def __init__(self):
        self.host = self.now = 0

    def synchronize(self):
        self.host = self.now = max(self.host, self.now)

    def launch(self, cycles):
        self.now = max(self.host, self.now) + cycles

    _sleep = launch

    def Event(self, enable_timing):
        gpu = self

        class Event:
            def record(self):
                self.at = max(gpu.host, gpu.now)

            def query(self):
                return self.at <= gpu.host

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

            def synchronize(self):
                gpu.synchronize()

        return Event()


@pytest.mark.parametrize("host", [1000, 2**20, 2**22])
def test_the_time_of_the_gpu_alone_is_without_the_hosts(host, monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)

    def call():
        for _ in range(10):
            gpu.host += host
            gpu.launch(700)

    queued = kernels.Queued(call, "cuda")
    assert kernels.timed(call, "cuda") == 10 * host + 700
    assert [queued() for _ in range(3)] == [7000] * 3
    assert 10 * host <= queued.cycles < max(40 * host, 2**21)
    assert kernels.kernel_times(call, "cuda", 3, 0.0, choose.KERNELS[1:]) == ({choose.KERNELS[0]: 7e9}, {})


def test_the_wait_before_a_call_has_an_end(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)
    queued = kernels.Queued(gpu.synchronize, "cuda")
    assert queued() == 0 and queued.cycles == queued.MOST


def test_times_of_the_gpu_alone_have_tables_of_their_own():
    size = {"shape": [9, 3, 4, 5], "dtype": "float16"}
    speeds = [
        {
            "kind": "speed",
            **size,
            "who": who,
            "what": "forward",
            "milliseconds": 3.0,
            "gpu_milliseconds": time,
        }
        for who, time in (("nn.LSTM", 2.0), ("lstm_fused", 1.0))
    ]
    page = "\n".join(tables.layers(speeds))
    assert "| (9, 3, 4, 5) | float16 | forward | 3.000 | 3.000 | 1.00 |" in page
    assert "| (9, 3, 4, 5) | float16 | forward | 1.000 | 2.000 | 2.00 |" in page.partition("the GPU alone")[2]
    old = [row | {"gpu_milliseconds": None} for row in speeds]
    assert "the GPU alone" not in "\n".join(tables.layers(old))
    row = {"kind": "kernels", **size, "direction": "forward", "microseconds": {"step": 2.0}}
    assert "The host's time of a call is in it." in tables.kernels([row])[1]
    assert "The GPU's own time" in tables.kernels([row | {"gpu_alone": True}])[1]


def test_times_of_a_race_that_was_cut_short_are_kept():
    size = {"shape": [9, 3, 4, 5], "dtype": "float16"}
    first = [
        {"kind": "first time", **size, "who": who, "what": "forward", "milliseconds": 2.0}
        for who in ("nn.LSTM", "lstm_fused")
    ]
    assert "| (9, 3, 4, 5) | float16 | forward (first call) | 2.000 | 2.000 | 1.00 |" in "\n".join(
        tables.layers(first)
    )


DUMP = """#mma = #ttg.nvidia_mma<{versionMajor = 2}>
module attributes {"ttg.num-warps" = 8 : i32} {
  tt.func public @kernel(%arg0: !tt.ptr<f32>) {
    tt.return
  }
}
"""
REPRODUCER = """
{-#
  external_resources: {
  }
#-}
"""


@pytest.mark.parametrize("end", ["", REPRODUCER])
def test_the_summary_has_no_dump_of_the_compiler(end):
    dump, count = DUMP + end, (DUMP + end).count("\n")
    text = f"before\n{dump}<unknown>:0: error: Failures\nmodule of mine\nafter\n"
    said = f"({count} lines of Triton's compiler)\n"
    assert jobs.shown(text) == f"before\n{said}<unknown>:0: error: Failures\nmodule of mine\nafter"
    assert jobs.shown(f"before\n{dump[:70]}") == "before\n(1 lines of Triton's compiler)"
    assert jobs.shown("a\nb\n") == "a\nb"


def test_a_machine_without_a_compiler_is_not_told_so_in_each_job(place):
    warns = "import warnings; warnings.warn('lstm_fused runs without its C++ engine: why', RuntimeWarning)"
    warns += "; warnings.warn('something else', RuntimeWarning)"
    job = replace(stages.look(place, "probe"), command=[sys.executable, "-c", warns])
    text = subprocess.run(
        job.command, env=os.environ | job.variables, capture_output=True, text=True, check=True
    ).stderr
    assert "something else" in text and "C++" not in text


def test_stages_name_what_there_is(place):
    assert (stages.KERNELS, stages.WAITING) == (choose.KERNELS, choose.WAITING)
    assert stages.GRIDS.keys() == set(choose.KERNELS)
    functions = {name: choose.record(name).function("forward") for name in choose.KERNELS}
    assert set(stages.GLUON) == {name for name, f in functions.items() if isinstance(f, GluonJITFunction)}
    assert looks.GRIDS.keys() == {
        name for kernel in stages.GRIDS for names in stages.GRIDS[kernel] for name in names
    }
    assert {*stages.SIZES, *stages.DIRECTIONS} <= {case.name for case in speed.SIZES}
    every = stages.first(Place("cuda", False, place.work, place.out))
    assert sum(stage.seconds for stage in every if stage.name != "tests") < 360  # of 420


@pytest.mark.parametrize("verdict", ["green", "wrong", "hang"])
def test_both_commands_fit_into_a_quarter_of_an_hour(verdict, tmp_path):
    out = ["--out", str(tmp_path), "--work", str(tmp_path), "--failing", "smoke-step"]
    first, second = parse(out), parse([*out, "--second", verdict])
    assert first.seconds + second.seconds <= 12 * 60  # and 3 to start the machine and to mend something
    stages = planned(second, Place("cuda", False, tmp_path, tmp_path))
    least = {"tests": 75.0}  # seconds; after a hang they take what is left
    assert sum(min(stage.seconds, least.get(stage.name, stage.seconds)) for stage in stages) <= second.seconds


def test_after_a_hang_no_program_waits_for_another(place):
    wide = Place("cuda", False, place.work, place.out)
    for stage in stages.hang(wide):
        for name, job in stage.jobs.items():
            text = " ".join(job.command).replace(str(ROOT), "")
            for kernel in stages.MAY_HANG:  # all that names the kernel leaves it out
                assert kernel not in name
                assert kernel not in text or f"not {kernel}" in text or "--without" in text, name
            names = ("numbers", "warm", "directions", "tests-", "smoke-default")
            if name.startswith(names) and not job.advice:
                assert job.variables["LSTM_FUSED_GPU"] == "step", name


def test_after_wrong_numbers_what_failed_is_run_alone(place):
    failed = ["smoke-step", *(f"tests/gpu/test_kernels.py::test_x[{n}]" for n in range(40))]
    again, _ = stages.wrong(place, failed)
    assert 4 <= len(again.jobs) <= stages.SHOWN
    commands = [list(job.command) for job in again.jobs.values()]
    assert commands[0][4:] == list(stages.first(place)[1].jobs["smoke-step"].command)
    assert commands[1][-1].startswith("tests/gpu/test_kernels.py::test_x[")
    folders = {job.variables["TRITON_CACHE_DIR"] for job in again.jobs.values()}
    assert len(folders) == len(again.jobs)


@pytest.mark.parametrize(
    ("code", "text", "outcome", "failed"),
    [
        (0, "tests/a.py::a PASSED [ 50%]\ntests/a.py::b PASSED [100%]", "right", []),
        (5, "no tests ran", "right", []),
        (1, "tests/a.py::a PASSED [ 50%]\ntests/a.py::b FAILED [100%]", "wrong", ["tests/a.py::b"]),
        (2, "Segmentation fault", "died", []),
        (None, "....", "not done", []),
    ],
)
def test_what_the_tests_say_is_judged(code, text, outcome, failed):
    found = judge("check", "part 0", Ended(text, code, 9))
    assert (found.outcome, found.code, found.failed) == (outcome, code, failed)
    head, *rest = jobs.lines(found)
    assert head.startswith("part 0 ") and f" {outcome} after 9 s" in head
    assert rest[: len(failed)] == [f"    failed: {name}" for name in failed]
    assert found.tests.get("PASSED", 0) == text.count("PASSED")
