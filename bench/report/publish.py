"""Puts tables into the pages that show them, with the command, the machine and the day that made them."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.host.machine import ROOT, Machine
from bench.report.result import Result
from bench.report.tables import KINDS
from lstm_fused.backends.table import short

# Where each page has its pictures.
PAGES = {ROOT / "README.md": "docs/pictures", ROOT / "docs" / "bench.md": "pictures"}
SHOWN = ("rivals", "lengths", "growth")  # with their picture


def publish(
    path: Path,
    machine: Machine,
    results: Sequence[Result],
    arguments: Sequence[str],
    pages: Mapping[Path, str],
) -> list[str]:
    """Replace those tables that a page has a place for; what was done about each.

    The place of a table is between <!-- bench speed float32 2 --> and <!-- end of bench speed float32 2 -->,
    which name its kind, dtype and threads.

    Args:
        path: the JSON file, beside which the pictures are.
        machine: this one.
        results: the tables.
        arguments: of the command line that made them.
        pages: where to look for places, and where pictures are from there.
    """
    done = []
    for result in results:
        name = f"bench {result.kind} {short(result.setting.dtype)} {result.setting.threads}"
        for page, pictures in pages.items():
            text = page.read_text()
            begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
            if begin in text and end in text:
                before, after = text[: text.index(begin)], text[text.index(end) :]
                shown = [*section(result, machine, arguments), *picture(result, path, page, pictures)]
                page.write_text(before + begin + "\n\n".join(shown) + "\n" + after)
                done.append(f"{page.name} shows {name}")
    return done or ["No page has a place for what was made"]


def section(result: Result, machine: Machine, arguments: Sequence[str]) -> list[str]:
    """A table, and what made it."""
    made = f"`{shlex.join(['python', '-m', 'bench', *arguments])}`; {machine}"
    if result.limits is not None:
        made += f"; {result.limits}"
    refused = [f"{line}." for line in result.refused]
    return [
        f"{result.title}.",
        KINDS[result.kind].markdown([*result.records, *result.means]),
        *refused,
        f"{made}.",
    ]


def picture(result: Result, path: Path, page: Path, pictures: str) -> list[str]:
    """A copy of the picture of a table, as a page shows it."""
    drawn = result.picture(path)
    if result.kind not in SHOWN or not drawn.exists():
        return []
    name = drawn.name.replace(path.stem, "bench", 1)
    (page.parent / pictures).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(drawn, page.parent / pictures / name)
    return [f"![{result.title}]({pictures}/{name})"]
