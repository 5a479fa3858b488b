"""Processes that end whole: each is a group of its own, and what it started ends with it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

QUIET = 15.0  # seconds without a word, after which what runs out of time counts as hung, not as slow


@dataclass
class Running:
    """A process, where what it says goes, and how it ended."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    begin: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    code: int | None = None  # None: it had to be ended
    hung: bool = False

    @property
    def text(self) -> str:
        """All it has said so far."""
        return self.output.read_text(errors="replace")

    def over(self) -> bool:
        """Whether it has ended; then nothing of its group is left."""
        self.code = self.process.poll()
        if self.code is None:
            return False
        self.end()
        return True

    def end(self) -> None:
        """End it and all it started."""
        with suppress(OSError):  # nobody is left
            self.hung = self.code is None and time.time() - self.output.stat().st_mtime > QUIET
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver may keep it
            self.process.wait(5)
        self.seconds = time.monotonic() - self.begin


def start(
    name: str, command: Sequence[str], output: Path, variables: Mapping[str, str], folder: Path
) -> Running:
    """Start it in a folder; what it says goes to a file, for a full pipe would stop it."""
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
    done: Callable[[Running], object],
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Wait for all of them, and end those that take longer.

    Args:
        started: whom to wait for.
        seconds: how long.
        done: is told of each one that has ended, as soon as it has.
        meanwhile: is called several times a second.
    """
    left = list(started)
    limit = time.monotonic() + seconds
    try:
        while left and time.monotonic() < limit:
            for running in [running for running in left if running.over()]:
                left.remove(running)
                done(running)
            meanwhile()
            time.sleep(0.1)
    finally:  # also when this process is told to end
        for running in left:
            if not running.over():
                running.end()
            done(running)
