"""Processes that end whole: each is a group of its own, and what it started ends with it."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

QUIET = 15.0  # seconds without a word, after which what runs out of time counts as hung, not as slow
LAST_WORDS = 2.0  # seconds to say where it was: Python does at SIGABRT, with PYTHONFAULTHANDLER=1


@dataclass
class Running:
    """A process, where what it says goes, and how it ended."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    begin: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    code: int | None = None  # None: it was ended
    late: bool = False  # it had no time left
    hung: bool = False

    @property
    def text(self) -> str:
        """All it has said so far."""
        return self.output.read_text(errors="replace")

    def over(self) -> bool:
        """Whether it has ended; then nothing of its group is left."""
        code = self.process.poll()
        if code is None:
            return False
        self.code = None if self.late else code
        self.end()
        return True

    def ask(self) -> None:
        """Let it say where it is, and end."""
        self.late = True
        self.hung = time.time() - self.output.stat().st_mtime > QUIET
        with suppress(OSError):
            self.process.send_signal(signal.SIGABRT)

    def end(self) -> None:
        """End it and all it started."""
        with suppress(OSError):  # nobody is left
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver may keep it
            self.process.wait(5)
        self.seconds = time.monotonic() - self.begin


def start(
    name: str, command: Sequence[str], output: Path, variables: Mapping[str, str], folder: Path
) -> Running:
    """Start it in a folder; what it says goes to a file, for a full pipe would stop it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(name, process, output)


def wait(
    started: Sequence[Running],
    seconds: float,
    done: Callable[[Running], Running | None],
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Wait for all of them, and end those that take longer.

    Args:
        started: whom to wait for.
        seconds: how long.
        done: is told of each one that has ended, as soon as it has; may start another in its place.
        meanwhile: is called several times a second.
    """
    left = list(started)
    limit = time.monotonic() + seconds
    try:
        while left and time.monotonic() < limit:
            for running in [running for running in left if running.over()]:
                left.remove(running)
                if another := done(running):
                    left.append(another)
            meanwhile()
            time.sleep(0.1)
    finally:  # also when this process is told to end
        late = [running for running in left if not running.over()]
        for running in late:
            running.ask()
        limit = time.monotonic() + LAST_WORDS
        while time.monotonic() < limit and not all([running.over() for running in late]):
            time.sleep(0.1)
        for running in late:
            running.end()
        for running in left:
            done(running)
