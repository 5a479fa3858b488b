"""Atomic file writes with one-line error messages."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure


class Unusable(Exception):
    """A file cannot be read or written; the message has its path and the reason."""


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"{path} cannot be made a folder: {error.strerror}") from None


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: an error leaves the old file and no partial one."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write(path, buffer.getvalue())


def or_one_line(main: Callable[[], int]) -> int:
    """Run a program and return its exit status; for `Unusable`, print one line and return 1."""
    try:
        return main()
    except Unusable as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with its type for a KeyError or an empty message."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) or not said else said
