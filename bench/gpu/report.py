"""What became of a day's jobs. Needs nothing but Python."""

import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.groups import Running

LINES = 12  # of what is wrong in a job, that the summary shows
TEST = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
BAD = re.compile(r"^(?:BAD |E  |\w*Error:|! ?\w).*|Fatal Python error.*|^  File .*lstm_fused.*", re.MULTILINE)
AFTER = re.compile(r"^=+ (?:FAILURES|ERRORS|warnings summary|slowest|short test)", re.MULTILINE)  # the tests
TIMED_OUT = "+++ Timeout +++"  # pytest-timeout's
NONE_TO_RUN = 5  # pytest's exit status


@dataclass
class Found:
    """What became of a job."""

    stage: str
    job: str
    outcome: str  # "right", "wrong", "died", "hung", "not done"; "not run" for a whole stage
    code: int | None
    seconds: float
    advice: bool
    tests: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)  # tests that were run
    failed: list[str] = field(default_factory=list)
    at: str | None = None  # the test it was at when it ended
    said: list[str] = field(default_factory=list)  # what is wrong, or its last line


def judge(stage: str, running: Running, advice: bool) -> Found:
    """What became of a job, by its exit status and what it said."""
    text, code = running.text, running.code
    tests = TEST.findall(text)
    failed = [name for name, result in tests if result in ("FAILED", "ERROR")]
    if running.hung or TIMED_OUT in text:
        outcome = "hung"
    elif code is None:
        outcome = "not done"
    elif code in (0, NONE_TO_RUN):
        outcome = "right"
    else:
        outcome = "wrong" if code == 1 else "died"
    begun = [line for line in AFTER.split(text)[0].splitlines() if re.match(r"tests/\S+::", line)]
    at = None
    if begun and not TEST.match(begun[-1]) and outcome != "right":
        at = begun[-1].partition(" Fatal Python error")[0].strip()
    last = text.strip().splitlines()[-1:] or ["it said nothing"]
    said = [] if outcome == "right" else BAD.findall(text)[-LINES:]
    counts = dict(Counter(result for _, result in tests))
    return Found(
        stage,
        running.name,
        outcome,
        code,
        round(running.seconds, 1),
        advice,
        counts,
        [name for name, _ in tests],
        failed,
        at,
        said or last,
    )


def lines(found: Found) -> list[str]:
    """What the summary says of a job."""
    ended = f" ({signal.Signals(-found.code).name})" if found.code is not None and found.code < 0 else ""
    counts = "".join(f", {number} {result.lower()}" for result, number in found.tests.items())
    advice = ", which is advice" if found.advice else ""
    head = f"{found.job:<22} {found.outcome}{ended}{advice} after {found.seconds:.0f} s{counts}"
    rest = [f"failed: {name}" for name in found.failed[:LINES]]
    rest += [f"it was at {found.at}"] * (found.at is not None)
    rest += found.said if found.outcome != "right" else []
    return [head, *(f"    {line[:300]}" for line in rest)]


def verdict(found: Sequence[Found]) -> str:
    """In a word, and what is to be run next."""
    counted = [job for job in found if not job.advice]
    passed = sum(job.tests.get("PASSED", 0) for job in found)
    hung = [job.job for job in counted if job.outcome == "hung"]
    bad = [job.job for job in counted if job.outcome in ("wrong", "died")]
    late = [job.job for job in counted if job.outcome in ("not done", "not run")]
    word = "hang" if hung else "wrong" if bad else "green"
    parts = [("hung", hung), ("wrong", bad), ("not done", late)]
    text = "".join(f"; {what}: {', '.join(names)}" for what, names in parts if names)
    return f"verdict: {word}, {passed} tests passed{text}"


def failures(day: dict[str, Any]) -> list[str]:
    """Jobs and tests of an earlier day that failed, each job of tests by its tests."""
    found: list[str] = []
    for job in day["jobs"]:
        if job["outcome"] in ("wrong", "died", "hung") and not job["advice"]:
            tests = [*job["failed"], *([job["at"]] if job["at"] else [])]
            found += tests or [job["job"].rstrip("+")]
    return list(dict.fromkeys(found))


def seen(day: dict[str, Any]) -> dict[str, list[str]]:
    """The tests that each job of an earlier day has run, or that it did not survive."""
    found: dict[str, list[str]] = {}
    for job in day["jobs"]:
        broken = [job["at"]] if job["at"] and job["outcome"] != "not done" else []
        found.setdefault(job["job"].rstrip("+"), []).extend([*job["seen"], *broken])
    return found
