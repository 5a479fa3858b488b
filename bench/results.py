"""What was measured, as JSON and as pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench import everyone, growth, memory, speed
from bench.limits import Limits
from bench.machine import Machine
from bench.sizes import Setting
from lstm_fused.backends.table import short

Row = speed.Row | memory.Row | growth.Row | everyone.Row


@dataclass
class Result:
    """One table."""

    kind: str  # "speed", "deep", "memory", "growth", "rivals" or "lengths"
    setting: Setting
    limits: Limits | None
    rows: list[Row]

    @property
    def title(self) -> str:
        """What its rows share."""
        s = self.setting
        layers = "one layer" if s.layers == 1 else f"{s.layers} layers"
        directions = "both directions" if s.bidirectional else "one direction"
        threads = f"{s.threads} thread{'' if s.threads == 1 else 's'}"
        return f"{self.kind.capitalize()}: {short(s.dtype)}, {threads}, {layers}, {directions}"


def write(path: Path, machine: Machine, results: Sequence[Result]) -> None:
    """Write everything to one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": asdict(machine), "tables": [asdict(result) for result in results]}
    path.write_text(json.dumps(everything, indent=1, default=text) + "\n")


def text(value: object) -> str:
    """What JSON has no form for."""
    return short(value) if isinstance(value, torch.dtype) else str(value)


def picture_of(result: Result, path: Path) -> Path:
    """Where the picture of a table is, if it has one."""
    setting = result.setting
    return path.with_name(f"{path.stem}-{result.kind}-{short(setting.dtype)}-{setting.threads}.png")


def draw(path: Path, machine: Machine, results: Sequence[Result]) -> list[Path]:
    """Draw the tables that have a picture, beside the JSON file; without matplotlib, none."""
    try:
        from bench import plots
    except ImportError:
        return []
    pictures = []
    for result in results:
        target = picture_of(result, path)
        title = f"{result.title}\n{machine.cpu}, {machine.lstm_fused_isa}, {machine.date[:10]}"
        timed = [row for row in result.rows if not isinstance(row, memory.Row) and row.milliseconds]
        if not timed:
            continue
        if result.kind == "growth":
            plots.draw_growth([row for row in timed if isinstance(row, growth.Row)], title, target)
        elif result.kind in ("rivals", "lengths"):
            plots.draw_rivals([row for row in timed if isinstance(row, everyone.Row)], title, target)
        else:
            plots.draw_speed([row for row in timed if isinstance(row, speed.Row)], title, target)
        pictures.append(target)
    return pictures
