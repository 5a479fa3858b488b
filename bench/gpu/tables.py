"""A day's numbers as a page: python -m bench.gpu.tables out/day.json > docs/gpu/h100.md."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS, CUDNN = "lstm_fused", "nn.LSTM"


def page(day: Row) -> str:
    """Where and when, then a table of each kind that the day has rows of."""
    rows: list[Row] = day["rows"]
    parts = [*head(day, rows), *layers(rows), *kernels(rows), *exchange(rows), *state(day["jobs"])]
    return "\n\n".join(parts) + "\n"


def head(day: Row, rows: list[Row]) -> list[str]:
    """The card, the versions, the date and the commit."""
    machine = next((row for row in rows if row["kind"] == "machine"), None)
    if machine is None:
        return ["# A machine that did not say what it is", f"{day['date']}, commit {day['commit']}."]
    host = machine["host"]
    return [
        f"# {machine['gpu']}",
        f"Measured on {day['date'][:10]} at commit {day['commit']}: {machine['capability']}, "
        f"{machine['multiprocessors']} multiprocessors, {machine['memory'] >> 30} GiB, {machine['runtime']}, "
        f"cuDNN {machine['cudnn']}, torch {host['torch']}, Triton {machine['triton']}, "
        f"Python {host['python']}, {host['cpu']}. By `python3 -m bench.gpu.day`.",
    ]


def layers(rows: list[Row]) -> list[str]:
    """Times of a layer, ours and others'; of a race that was cut short, the first time of each."""
    found: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    first = set()
    for row in rows:
        if row["kind"] == "first time":
            key = row["T"], row["B"], row["I"], row["H"], row["dtype"]
            found.setdefault(key, {}).setdefault(row["what"], {})[row["who"]] = row["milliseconds"]
            first.add(key)
    for row in rows:
        if row["kind"] == "speed":
            key = (*row["shape"], row["dtype"])
            found[key] = row["milliseconds"]
            first.discard(key)
    if not found:
        return []
    names = list(dict.fromkeys(n for times in found.values() for who in times.values() for n in who))
    names.sort(key=lambda name: name != OURS)
    heading = ["(T, B, I, H)", "dtype", "", *names, f"{CUDNN} ÷ ours"]
    lines = []
    for key, times in found.items():
        for what, who in times.items():
            ratio = f"{who[CUDNN] / who[OURS]:.2f}" if who.keys() >= {CUDNN, OURS} else ""
            cells = (f"{who[name]:.3f}" if name in who else "" for name in names)
            note = " (first call)" * (key in first)
            lines.append([str(tuple(key[:4])), key[4], what + note, *cells, ratio])
    text = "Milliseconds of a layer: forward without gradients, and a training step, raced in turn; medians."
    return ["## Layers", text, table(heading, lines)]


def kernels(rows: list[Row]) -> list[str]:
    """Times of each kernel, a step."""
    chosen = [row for row in rows if row["kind"] == "kernels"]
    if not chosen:
        return []
    names = list(dict.fromkeys(name for row in chosen for name in row["microseconds"]))
    lines = []
    for row in chosen:
        times = row["microseconds"]
        size = str((row["B"], row["H"]))
        lines.append(
            [size, row["dtype"], row["direction"], *(f"{times[n]:.2f}" if n in times else "" for n in names)]
        )
    text = "Microseconds of a step in one direction, with the input's product in forward."
    return ["## Kernels", text, table(["(B, H)", "dtype", "", *names], lines)]


def exchange(rows: list[Row]) -> list[str]:
    """What the card's programs can hand each other."""
    said = [row["text"] for row in rows if row["kind"] == "exchange"]
    return ["## Exchange", "```\n" + "\n".join(said) + "\n```"] if said else []


def state(jobs: list[Row]) -> list[str]:
    """What else was run, and what became of it."""
    lines = []
    for stage in dict.fromkeys(job["stage"] for job in jobs):
        those = [job for job in jobs if job["stage"] == stage]
        passed = sum(job["tests"].get("PASSED", 0) for job in those)
        failed = sum(len(job["failed"]) for job in those)
        others = [f"{job['job']} {job['outcome']}" for job in those if job["outcome"] != "right"]
        tests = f"{passed} passed, {failed} failed" if passed + failed else ""
        seconds = max(job["seconds"] for job in those)
        lines.append([stage, str(len(those)), f"{seconds:.0f}", tests, ", ".join(others) or "all right"])
    return [
        "## All that was run",
        table(["stage", "processes", "seconds", "tests", "what became of it"], lines),
    ]


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rule = ["---"] * len(heading)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *lines))


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())), end="")
