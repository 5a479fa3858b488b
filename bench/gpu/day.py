"""Measures all it can on a GPU that is at hand for minutes: python3 -m bench.gpu.day --out FOLDER.

It is run in the repository's root, with a Python that has torch, Triton, numpy and pytest, without network.
Every job is a process group of its own with a limit of its own. FOLDER gets summary.txt, some lines for each
job; day.json, all numbers; logs.tgz, all output. They are written again and again, so that a day that is cut
off keeps what it had. docs/gpu/README.md says how to read them.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, run
from textwrap import indent

from bench.gpu import jobs, rows, stages
from bench.gpu.jobs import STOP, Found, Job, judge
from bench.gpu.link import ROOT, link
from bench.gpu.stages import Place, Stage

SAVE = 5.0  # seconds between two savings
# Seconds, by default: 12 minutes, for a card that is there for a quarter of an hour.
FIRST, SECOND = 420.0, 300.0
LEAST = 8.0  # seconds; with less no stage is begun
COMPILED = (".ptx", ".ttgir", ".json")  # files of Triton's cache that are kept
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "OMP_NUM_THREADS": "1",
}


class Day:
    """Runs stages, and writes what they find.

    Args:
        place: where.
        seconds: for all of it.
        about: the head of day.json.
    """

    def __init__(self, place: Place, seconds: float, about: dict[str, str]) -> None:
        self.place, self.about = place, about
        self.end = time.monotonic() + seconds
        self.logs, self.rows = place.work / "logs", place.work / "rows"
        for folder in (self.logs, self.rows):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        place.out.mkdir(parents=True, exist_ok=True)
        self.found: list[Found] = []
        self.saved = 0.0

    def run(self, stage: Stage) -> None:
        """Run a stage within its time, and what is left of the whole."""
        seconds = min(stage.seconds, self.end - time.monotonic() - stage.leaves)
        if seconds < LEAST and seconds < stage.seconds:
            self.add(Found(stage.name, stage.name, "not run", said=["no time was left"]))
        else:
            asyncio.run(self.run_jobs(stage, time.monotonic() + seconds))

    async def run_jobs(self, stage: Stage, end: float) -> None:
        """Run all jobs of a stage at once."""
        left = {
            asyncio.create_task(self.run_job(stage.name, name, job, end)) for name, job in stage.jobs.items()
        }
        while left:
            done, left = await asyncio.wait(left, timeout=SAVE, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not left or time.monotonic() - self.saved > SAVE:
                self.save()

    async def run_job(self, stage: str, name: str, job: Job, end: float) -> None:
        """Run a job; if a test takes the process with it, run the tests behind it in another one."""
        rest = job
        while True:
            variables = {**job.variables, rows.VARIABLE: str(self.rows / f"{name}.jsonl")}
            try:
                log = self.logs / f"{name}.log"
                ended = await jobs.run(replace(rest, variables=variables), log, end - time.monotonic())
            except OSError as error:
                self.add(Found(stage, name, "died", advice=job.advice, said=[str(error)]))
                return
            found = judge(stage, name, ended, job.advice)
            self.add(found)
            if job.shown:
                self.say(indent(jobs.shown(ended.text), "    "))
            no_time = ended.code is None or end - time.monotonic() < LEAST
            if found.at is None or found.at in rest.command or no_time:
                return
            name += "+"
            done = [option for test in (*found.seen, found.at) for option in ("--deselect", test)]
            rest = replace(rest, command=[*rest.command, *done])

    def add(self, found: Found) -> None:
        """Keep an outcome, in the summary at once."""
        self.found.append(found)
        self.say("\n".join(jobs.lines(found)))

    def say(self, text: str) -> None:
        """Print a text, and add it to the summary."""
        print(text, flush=True)
        with (self.place.out / "summary.txt").open("a") as summary:
            print(text, file=summary)

    def save(self) -> None:
        """Write day.json and logs.tgz; a reader never sees half of one."""
        self.saved = time.monotonic()
        day = {**self.about, "jobs": [asdict(found) for found in self.found], "rows": rows.read(self.rows)}
        # The second command reads the first one's.
        folders = [self.place.out, *[self.place.work] * (self.about.get("second") not in ("green", "wrong"))]
        for folder in folders:
            part = folder / ".day.json"
            part.write_text(json.dumps(day, indent=1))
            part.replace(folder / "day.json")
        pack(self.place.out / "logs.tgz", sorted(self.logs.iterdir()))
        if kept := sorted(path for path in self.place.compiled.rglob("*") if path.suffix in COMPILED):
            pack(self.place.out / "compiled.tgz", kept)


def pack(path: Path, files: Sequence[Path]) -> None:
    """Put files into an archive, all at once; one that goes or grows meanwhile is cut off or left out."""
    part = path.with_name(f".{path.name}")
    with tarfile.open(part, "w:gz", compresslevel=3) as archive:
        for file in files:
            with suppress(OSError):
                archive.add(file, arcname=str(file.relative_to(file.parents[1])))
    part.replace(path)


def commit() -> str:
    """The commit that is checked out, if git can tell."""
    with suppress(OSError):
        command = ["git", "describe", "--always", "--dirty"]
        said = run(command, cwd=ROOT, capture_output=True, text=True, stdin=DEVNULL).stdout
        return said.strip() or "unknown"
    return "unknown"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu.day", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder to write to")
    add("--seconds", type=float, help=f"for all of it (default: {FIRST:.0f}, a second command: {SECOND:.0f})")
    add("--only", nargs="+", metavar="STAGE", help="these stages alone")
    add("--second", choices=("green", "wrong", "hang"), help="what follows the first command, by its verdict")
    add("--failing", nargs="+", metavar="NAME", help="for wrong: jobs and tests, instead of the last day's")
    add("--commit", help="the commit, where git cannot tell it")
    add("--device", default="cuda", help="cuda, or cpu to rehearse under TRITON_INTERPRET=1")
    add("--small", action="store_true", help="the least that goes through everything")
    add("--work", type=Path, default=ROOT / "build/day", help="where logs and links go meanwhile")
    given = parser.parse_args(argv)
    if given.seconds is None:
        given.seconds = SECOND if given.second else FIRST
    return given


def planned(given: argparse.Namespace, place: Place) -> list[Stage]:
    """The stages that are asked for."""
    last = place.work / "day.json"
    earlier = json.loads(last.read_text()) if last.exists() else {"jobs": []}
    if given.second == "green":
        return stages.green(place, jobs.seen(earlier))
    if given.second == "hang":
        return stages.hang(place)
    if given.second == "wrong":
        failing = given.failing or jobs.failures(earlier)
        if not failing:
            sys.exit(f"nothing failed that is known of: {last} names nothing, nor does --failing")
        return stages.wrong(place, failing)
    return stages.first(place)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are asked for; the exit status is 1 unless all is green."""
    given = parse(argv)
    place = Place(given.device, given.small, given.work.resolve(), given.out.resolve())
    path = [str(place.linked), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path)}
    os.environ["LSTM_FUSED_CACHE"] = str(place.work / "verdicts")
    os.environ.setdefault("TRITON_CACHE_DIR", str(place.work / "triton"))
    plan = planned(given, place)
    begin = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"date": begin, "commit": given.commit or commit(), "second": given.second or ""}
    day = Day(place, given.seconds, about)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: STOP.set())
    link(place.linked)
    day.say(f"{begin}, commit {about['commit']}{', second: ' + given.second if given.second else ''}")
    try:
        for stage in plan:
            if not STOP.is_set() and (given.only is None or stage.name in given.only):
                day.run(stage)
    finally:
        day.save()
        day.say(jobs.verdict(day.found))
    sys.exit(STOP.is_set() or any(job.outcome != "right" for job in day.found if not job.advice))


if __name__ == "__main__":
    main()
