"""One table's records, with their setting, as JSON, pictures and pages show them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.cases import Setting
from bench.host.limits import Limits
from bench.host.machine import Machine
from bench.race import Record
from lstm_fused.backends.table import short


@dataclass
class Result:
    """One table."""

    kind: str  # of bench.report.tables.KINDS
    setting: Setting
    limits: Limits | None
    records: list[Record]
    means: list[Record] = field(default_factory=list)  # over all sizes

    @property
    def title(self) -> str:
        """What its rows share."""
        s = self.setting
        layers = "one layer" if s.layers == 1 else f"{s.layers} layers"
        directions = "both directions" if s.bidirectional else "one direction"
        threads = f"{s.threads} thread{'' if s.threads == 1 else 's'}"
        return f"{self.kind.capitalize()}: {short(s.dtype)}, {threads}, {layers}, {directions}"

    @property
    def refused(self) -> list[str]:
        """Who was not timed at which size, and why."""
        found = (f"{r.size}: {r.who} not timed: {r.refused}" for r in self.records if r.refused)
        return list(dict.fromkeys(found))

    def picture(self, path: Path) -> Path:
        """Where its picture is, beside a JSON file."""
        return path.with_name(
            f"{path.stem}-{self.kind}-{short(self.setting.dtype)}-{self.setting.threads}.png"
        )


def draw(path: Path, machine: Machine, results: Sequence[Result]) -> list[Path]:
    """Draw the tables that have a picture, beside the JSON file; without matplotlib, none."""
    try:
        from bench.report import plots
    except ImportError:
        return []
    pictures = []
    for result in results:
        target = result.picture(path)
        title = f"{result.title}\n{machine.cpu}, {machine.lstm_fused_isa}, {machine.date[:10]}"
        if result.kind in plots.KINDS and plots.KINDS[result.kind](result.records, title, target):
            pictures.append(target)
    return pictures
