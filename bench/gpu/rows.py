"""Keeps what a day's jobs find, a line of JSON at a time, so that a job that is ended loses nothing."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "LSTM_FUSED_DAY_ROWS"  # names the file; without it nothing is kept


def add(kind: str, **facts: Any) -> None:
    """Keep a row."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps({"kind": kind, **facts}) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows in a folder's files; the last line of a job that was ended may be cut off."""
    found = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found
