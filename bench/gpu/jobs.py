"""Runs commands as process groups with time limits, and judges how they ended. Needs nothing but Python."""

import asyncio
import os
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from bench.gpu.link import ROOT

QUIET = 15.0  # seconds without output, after which a job that runs out of time counts as hung, not as slow
# Seconds to say where it was: Python does at SIGABRT, with PYTHONFAULTHANDLER=1. Triton's compiler may take
# that for a crash of its own: a pass fails ("PassManager::run failed"), and the job goes on to be killed.
LAST_WORDS = 2.0
UNKILLABLE = 5.0  # seconds after which a process that a driver keeps is left alone
UNCHECKED = {"LSTM_FUSED_GPU": "unchecked"}  # the jobs check the kernels themselves
STOP = Event()  # set: every job ends now

LINES = 12  # of what is wrong in a job, that the summary shows
TEST = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
BAD = re.compile(r"^(?:BAD |E  |\w*Error:|! ?\w).*|Fatal Python error.*|^  File .*lstm_fused.*", re.MULTILINE)
# What Triton prints where a pass of its compiler fails: the module, and how to run the pass again.
DUMP = re.compile(
    r"^(?:#\w+ = #\w|module(?: attributes)? \{).*?(?:^#-\}\n?|^\}\n(?!\s*\{-#)|\Z)", re.MULTILINE | re.DOTALL
)
AFTER = re.compile(r"^=+ (?:FAILURES|ERRORS|warnings summary|slowest|short test)", re.MULTILINE)  # the tests
TIMED_OUT = "+++ Timeout +++"  # pytest-timeout's
NONE_TO_RUN = 5  # pytest's exit status


@dataclass(frozen=True)
class Job:
    """A command."""

    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=lambda: UNCHECKED)
    advice: bool = False  # its outcome does not count
    shown: bool = False  # the summary shows all its output


@dataclass(frozen=True)
class Ended:
    """A job that has ended."""

    text: str
    code: int | None  # None: it was ended
    seconds: float
    hung: bool = False


async def run(job: Job, output: Path, seconds: float) -> Ended:
    """Run a job in the repository's root; it and all that it started end within the time.

    Its output goes to a file: a full pipe would stop it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    begin = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            job.command,
            cwd=ROOT,
            env=os.environ | job.variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    async def ends(seconds: float, stop: bool = False) -> bool:
        limit = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < limit and not (stop and STOP.is_set()):
            await asyncio.sleep(0.1)
        return process.poll() is not None

    hung, code = False, None
    try:
        if await ends(seconds, stop=True):
            code = process.returncode
        else:
            hung = time.time() - output.stat().st_mtime > QUIET
            process.send_signal(signal.SIGABRT)
            await ends(LAST_WORDS)
    finally:
        with suppress(OSError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
    await ends(UNKILLABLE)
    return Ended(output.read_text(errors="replace"), code, time.monotonic() - begin, hung)


@dataclass
class Found:
    """The outcome of a job."""

    stage: str
    job: str
    outcome: str  # "right", "wrong", "died", "hung", "not done"; "not run" for a whole stage
    code: int | None = None
    seconds: float = 0.0
    advice: bool = False
    tests: dict[str, int] = field(default_factory=dict)  # how many of each result
    seen: list[str] = field(default_factory=list)  # tests that were run
    failed: list[str] = field(default_factory=list)
    at: str | None = None  # the test that was running when it ended
    said: list[str] = field(default_factory=list)  # what is wrong, or its last line


def judge(stage: str, name: str, ended: Ended, advice: bool = False) -> Found:
    """The outcome of a job, by its exit status and its output."""
    text, code = ended.text, ended.code
    tests = TEST.findall(text)
    if ended.hung or TIMED_OUT in text:
        outcome = "hung"
    elif code is None:
        outcome = "not done"
    else:
        outcome = "right" if code in (0, NONE_TO_RUN) else "wrong" if code == 1 else "died"
    begun = [line for line in AFTER.split(text)[0].splitlines() if re.match(r"tests/\S+::", line)]
    at = None
    if begun and not TEST.match(begun[-1]) and outcome != "right":
        at = begun[-1].partition(" Fatal Python error")[0].strip()
    return Found(
        *(stage, name, outcome, code, round(ended.seconds, 1), advice),
        tests=dict(Counter(result for _, result in tests)),
        seen=[test for test, _ in tests],
        failed=[test for test, result in tests if result in ("FAILED", "ERROR")],
        at=at,
        said=(outcome != "right" and BAD.findall(text)[-LINES:])
        or text.strip().splitlines()[-1:]
        or ["it said nothing"],
    )


def shown(text: str) -> str:
    """A job's output as the summary shows it, without the compiler's dumps."""
    return DUMP.sub(lambda dump: f"({dump[0].count(chr(10))} lines of Triton's compiler)\n", text).strip()


def lines(found: Found) -> list[str]:
    """What the summary says of a job."""
    ended = f" ({signal.Signals(-found.code).name})" if found.code is not None and found.code < 0 else ""
    counts = "".join(f", {number} {result.lower()}" for result, number in found.tests.items())
    advice = ", which is advice" if found.advice else ""
    rest = [f"failed: {name}" for name in found.failed[:LINES]]
    rest += [f"it was at {found.at}"] * (found.at is not None)
    rest += found.said if found.outcome != "right" else []
    head = f"{found.job:<22} {found.outcome}{ended}{advice} after {found.seconds:.0f} s{counts}"
    return [head, *(f"    {line[:300]}" for line in rest)]


def verdict(found: Sequence[Found]) -> str:
    """All outcomes in a word, and the jobs that did not end well."""

    def named(*outcomes: str) -> list[str]:
        return [job.job for job in found if not job.advice and job.outcome in outcomes]

    parts = {"hung": named("hung"), "wrong": named("wrong", "died"), "not done": named("not done", "not run")}
    word = "hang" if parts["hung"] else "wrong" if parts["wrong"] else "green"
    passed = sum(job.tests.get("PASSED", 0) for job in found)
    text = "".join(f"; {what}: {', '.join(names)}" for what, names in parts.items() if names)
    return f"verdict: {word}, {passed} tests passed{text}"


def failures(day: Mapping[str, Any]) -> list[str]:
    """Jobs and tests of an earlier day that failed, each job of tests by its tests."""
    found: list[str] = []
    for job in day["jobs"]:
        if job["outcome"] in ("wrong", "died", "hung") and not job["advice"]:
            found += [*job["failed"], *filter(None, [job["at"]])] or [job["job"].rstrip("+")]
    return list(dict.fromkeys(found))


def seen(day: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tests that each job of an earlier day has run, or that it did not survive."""
    found: dict[str, list[str]] = {}
    for job in day["jobs"]:
        broken = [job["at"]] if job["at"] and job["outcome"] != "not done" else []
        found.setdefault(job["job"].rstrip("+"), []).extend([*job["seen"], *broken])
    return found
