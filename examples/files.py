"""Files that are written whole or not at all; where they cannot be, one line says which and why."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure


class Unusable(Exception):
    """A file that cannot be read or written: its path, and why."""


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"{path} cannot be made a folder: {error.strerror}") from None


def write(path: Path, content: bytes) -> None:
    """Write a file; until all of it is there, what was there before stays; nothing half written does."""
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
    """Write a picture as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write(path, buffer.getvalue())


def or_one_line(main: Callable[[], int]) -> int:
    """Run a program; the exit status, which is 1 with one line where a file was unusable."""
    try:
        return main()
    except Unusable as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1


def first_line(error: Exception) -> str:
    """What an error says, up to the end of the line, and its kind if that is all there is to tell it from."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) or not said else said
