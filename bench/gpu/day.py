"""A day on a GPU that is at hand for minutes: python3 -m bench.gpu.day --out FOLDER.

It is run in the repository's root, with a Python that has torch, Triton and pytest; no network, no install.
Everything that is run is a process group of its own with a limit of its own. FOLDER gets summary.txt, some
lines for each of them; day.json, all numbers; logs.tgz, all that was said. They are written again and again,
so that a day that is cut off keeps what it had. docs/gpu/README.md says how to read them.
"""

import argparse
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
from types import FrameType

from bench.gpu import rows, stages
from bench.gpu.groups import Running, start, wait
from bench.gpu.link import ROOT, link
from bench.gpu.report import Found, failures, judge, lines, seen, verdict
from bench.gpu.stages import Place, Stage

SAVE = 5.0  # seconds between two savings
LEAST = 8.0  # seconds; with less no stage is begun
COMPILED = (".ptx", ".ttgir", ".json")  # of what Triton keeps


class Day:
    """Runs stages, and writes what they find.

    Args:
        place: where.
        seconds: for all of it.
        about: what stands at the head of day.json.
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
        self.stopped = False  # by a signal

    def run(self, stage: Stage) -> None:
        """Run a stage within its time, and what is left of the whole."""
        seconds = min(stage.seconds, self.end - time.monotonic() - stage.leaves)
        if seconds < LEAST and seconds < stage.seconds:
            self.add(Found(stage.name, stage.name, "not run", None, 0.0, False, said=["no time was left"]))
            return
        jobs = dict(stage.jobs)
        end = time.monotonic() + seconds

        def begin(name: str) -> Running | None:
            variables = {**jobs[name].variables, rows.VARIABLE: str(self.rows / f"{name}.jsonl")}
            try:
                return start(name, jobs[name].command, self.logs / f"{name}.log", variables, ROOT)
            except OSError as error:
                self.add(Found(stage.name, name, "died", None, 0.0, jobs[name].advice, said=[str(error)]))
                return None

        def done(running: Running) -> Running | None:
            job = jobs[running.name]
            found = judge(stage.name, running, job.advice)
            self.add(found)
            if job.shown:
                self.say(indent(running.text.strip(), "    "))
            # A test took the process with it: the others are run without those that were.
            no_time = running.late or end - time.monotonic() < LEAST
            if found.at is None or found.at in job.command or no_time:
                return None
            rest = [option for test in (*found.seen, found.at) for option in ("--deselect", test)]
            jobs[f"{running.name}+"] = replace(job, command=[*job.command, *rest])
            return begin(f"{running.name}+")

        started = [running for name in stage.jobs if (running := begin(name))]
        wait(started, seconds, done, self.save_now_and_then)
        self.save()

    def add(self, found: Found) -> None:
        """Keep it, in the summary at once."""
        self.found.append(found)
        self.say("\n".join(lines(found)))

    def say(self, text: str) -> None:
        """Print it, and add it to the summary."""
        print(text, flush=True)
        with (self.place.out / "summary.txt").open("a") as summary:
            print(text, file=summary)

    def save_now_and_then(self) -> None:
        """Save, if the last time is some seconds ago; end if that is asked for."""
        if self.stopped:
            raise KeyboardInterrupt
        if time.monotonic() - self.saved > SAVE:
            self.save()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """End soon, but not between the start of a process and the note of it."""
        self.stopped = True

    def save(self) -> None:
        """Write day.json and logs.tgz; a reader never sees half of one."""
        self.saved = time.monotonic()
        day = {**self.about, "jobs": [asdict(found) for found in self.found], "rows": rows.read(self.rows)}
        # What follows looks into what was first.
        folders = [self.place.out, *[self.place.work] * (self.about.get("second") not in ("green", "wrong"))]
        for folder in folders:
            replace_file(folder / "day.json", json.dumps(day, indent=1).encode())
        pack(self.place.out / "logs.tgz", sorted(self.logs.iterdir()))
        compiled = self.place.compiled
        if kept := sorted(path for path in compiled.rglob("*") if path.suffix in COMPILED):
            pack(self.place.out / "compiled.tgz", kept)


def replace_file(path: Path, content: bytes) -> None:
    """Write it, all at once."""
    part = path.with_name(f".{path.name}")
    part.write_bytes(content)
    part.replace(path)


def pack(path: Path, files: Sequence[Path]) -> None:
    """Put files into an archive, all at once; one that goes or grows meanwhile is cut off or left out."""
    part = path.with_name(f".{path.name}")
    with tarfile.open(part, "w:gz", compresslevel=3) as archive:
        for file in files:
            with suppress(OSError):
                archive.add(file, arcname=str(file.relative_to(file.parents[1])))
    part.replace(path)


def commit() -> str:
    """The commit that is checked out, if that can be told."""
    with suppress(OSError):
        said = run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=DEVNULL,
        )
        return said.stdout.strip() or "unknown"
    return "unknown"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu.day", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seconds", type=float, default=420, help="for all of it (default: 420)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    parser.add_argument("--second", choices=("green", "wrong", "hang"), help="what follows the first command")
    parser.add_argument(
        "--failing",
        nargs="+",
        metavar="NAME",
        help="for wrong: jobs and tests, instead of those of the last day",
    )
    parser.add_argument("--commit", help="the commit, where git cannot tell it")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse under TRITON_INTERPRET=1")
    parser.add_argument("--small", action="store_true", help="the least that goes through everything")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/day", help="where logs and links go meanwhile"
    )
    return parser.parse_args(argv)


def planned(given: argparse.Namespace, place: Place) -> list[Stage]:
    """The stages that are asked for."""
    last = place.work / "day.json"
    earlier = json.loads(last.read_text()) if last.exists() else {"jobs": []}
    if given.second == "green":
        return stages.green(place, seen(earlier))
    if given.second == "hang":
        return stages.hang(place)
    if given.second == "wrong":
        failing = given.failing or failures(earlier)
        if not failing:
            sys.exit(f"nothing failed that is known of: {last} names nothing, nor does --failing")
        return stages.wrong(place, failing)
    return stages.first(place)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are asked for; the exit status is 1 unless all is green."""
    given = parse(argv)
    place = Place(given.device, given.small, given.work.resolve(), given.out.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(place.linked), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    os.environ |= {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "LSTM_FUSED_CACHE": str(place.work / "verdicts"),
    }
    os.environ.setdefault("TRITON_CACHE_DIR", str(place.work / "triton"))
    plan = planned(given, place)
    begin = datetime.now(UTC).isoformat(timespec="seconds")
    day = Day(
        place,
        given.seconds,
        {"date": begin, "commit": given.commit or commit(), "second": given.second or ""},
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, day.stop)
    link(place.linked)
    day.say(f"{begin}, commit {day.about['commit']}{', second: ' + given.second if given.second else ''}")
    try:
        for stage in plan:
            day.save_now_and_then()
            if given.only is None or stage.name in given.only:
                day.run(stage)
    finally:
        day.save()
        said = verdict(day.found)
        day.say(said)
    sys.exit(any(job.outcome != "right" for job in day.found if not job.advice))


if __name__ == "__main__":
    main()
