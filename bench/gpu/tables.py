"""Makes a page of a day's numbers: python -m bench.gpu.tables out/day/day.json > docs/gpu/CARD-DATE.md."""

import json
import sys
from pathlib import Path
from typing import Any

from bench.report.tables import markdown

Row = dict[str, Any]
OURS, CUDNN = "lstm_fused", "nn.LSTM"


def page(day: Row) -> str:
    """Where and when, then a table of each kind that the day has rows of."""
    rows: list[Row] = day["rows"]
    parts = [*head(day, rows), *layers(rows), *kernels(rows), *directions(rows)]
    parts += [*exchange(rows), *state(day["jobs"])]
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
    text = (
        "Milliseconds of a layer: forward without gradients, and a training step, raced in turn; medians. "
        "Each call begins on an idle GPU, and its time has the host's part in it."
    )
    alone = (
        "The GPU's own milliseconds of the same calls: all launches of a call are in the queue before the "
        "first of them runs, as in a training loop whose host runs ahead of the GPU."
    )
    queued = [
        row | {"milliseconds": row["gpu_milliseconds"]}
        for row in rows
        if row["kind"] == "speed" and row.get("gpu_milliseconds") is not None
    ]
    return [*race("Layers", text, rows), *race("Layers, the GPU alone", alone, queued)]


def race(title: str, text: str, rows: list[Row]) -> list[str]:
    """One table of the times of a layer."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    raced = {(*row["shape"], row["dtype"]) for row in rows if row["kind"] == "speed"}
    for row in rows:
        key = *row.get("shape", ()), row.get("dtype")
        if row["kind"] == "speed" or (row["kind"] == "first time" and key not in raced):
            times.setdefault((*key, row["what"]), {})[row["who"]] = row["milliseconds"]
    if not times:
        return []
    names = list(dict.fromkeys(name for who in times.values() for name in who))
    names.sort(key=lambda name: name != OURS)
    lines = []
    for (*shape, dtype, what), who in times.items():
        ratio = f"{who[CUDNN] / who[OURS]:.2f}" if who.keys() >= {CUDNN, OURS} else ""
        note = "" if (*shape, dtype) in raced else " (first call)"
        cells = (f"{who[name]:.3f}" if name in who else "" for name in names)
        lines.append([str(tuple(shape)), dtype, what + note, *cells, ratio])
    return [f"## {title}", text, markdown(["(T, B, I, H)", "dtype", "", *names, f"{CUDNN} ÷ ours"], lines)]


def kernels(rows: list[Row]) -> list[str]:
    """Times of each kernel, a step."""
    chosen = [row for row in rows if row["kind"] == "kernels"]
    if not chosen:
        return []
    names = list(dict.fromkeys(name for row in chosen for name in row["microseconds"]))
    lines = []
    for row in chosen:
        (_, B, _, H), times = row["shape"], row["microseconds"]
        cells = (f"{times[name]:.2f}" if name in times else "" for name in names)
        lines.append([str((B, H)), row["dtype"], row["direction"], *cells])
    text = (
        "Microseconds of a step in one direction, with the input's product in forward: a call's, divided by "
    )
    text += "the number of steps. "
    if all(row.get("gpu_alone") for row in chosen):
        text += "The GPU's own time: all launches of a call are in its queue before the first of them runs."
    else:
        text += "The host's time of a call is in it."
    return ["## Kernels", text, markdown(["(B, H)", "dtype", "", *names], lines)]


def directions(rows: list[Row]) -> list[str]:
    """Times of both directions of a layer, one after the other and at once."""
    chosen = [row for row in rows if row["kind"] == "directions"]
    if not chosen:
        return []
    lines = []
    for row in chosen:
        cells = []
        for times in (row["milliseconds"], row.get("gpu_milliseconds")):
            if times is not None:
                in_turn, at_once = times["in turn"], times["at once"]
                cells += [f"{in_turn:.3f}", f"{at_once:.3f}", f"{in_turn / at_once:.2f}"]
        lines.append([str(tuple(row["shape"])), row["dtype"], row["what"], *cells])
    text = "Milliseconds of a layer in both directions, one after the other on the whole card, and at once."
    head = ["(T, B, I, H)", "dtype", "", "in turn", "at once", "in turn ÷ at once"]
    if all("gpu_milliseconds" in row for row in chosen):
        text += " Then the GPU's own, without the host's part of a call."
        head += [f"GPU: {name}" for name in head[3:]]
    return ["## Both directions", text, markdown(head, lines)]


def exchange(rows: list[Row]) -> list[str]:
    """The latencies that exchange.cu found."""
    said = [row["text"] for row in rows if row["kind"] == "exchange"]
    return ["## Exchange", "```\n" + "\n".join(said) + "\n```"] if said else []


def state(jobs: list[Row]) -> list[str]:
    """The outcome of every stage."""
    lines = []
    for stage in dict.fromkeys(job["stage"] for job in jobs):
        those = [job for job in jobs if job["stage"] == stage]
        passed = sum(job["tests"].get("PASSED", 0) for job in those)
        failed = sum(len(job["failed"]) for job in those)
        others = [f"{job['job']} {job['outcome']}" for job in those if job["outcome"] != "right"]
        tests = f"{passed} passed, {failed} failed" if passed + failed else ""
        seconds = max(job["seconds"] for job in those)
        lines.append([stage, str(len(those)), f"{seconds:.0f}", tests, ", ".join(others) or "all right"])
    return ["## All that was run", markdown(["stage", "processes", "seconds", "tests", "outcome"], lines)]


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())), end="")
