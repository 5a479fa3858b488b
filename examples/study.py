"""Shared by the studies: command line, trials in worker processes, tables and figures."""

import argparse
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from files import Unusable, make_folder, or_one_line, write, write_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from lstm_fused import LSTM

Task = TypeVar("Task")
Result = TypeVar("Result")

README = Path(__file__).with_name("README.md")
RNN, PLAIN, PEEPHOLE, OTHER, GREY = "#8a9bb0", "#c2452d", "#2f6f8f", "#d9a441", "#666666"


@dataclass(frozen=True)
class Options:
    """Options of every study."""

    size: str  # "quick", "default" or "full"
    seeds: int
    jobs: int
    out: Path
    publish: bool


def options(description: str | None, seeds: int, argv: Sequence[str] | None) -> Options:
    """Parse the command line of a study.

    Args:
        description: text of --help.
        seeds: default number of seeds; --quick takes one.
        argv: the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="large sizes: hours")
    size.add_argument("--quick", action="store_true", help="tiny sizes: seconds; shows that everything works")
    parser.add_argument("--seeds", type=int, help=f"seeds of each model (default: {seeds})")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture and the table")
    parser.add_argument("--publish", action="store_true", help="also write both into examples/README.md")
    args = parser.parse_args(argv)
    if args.seeds is None:
        args.seeds = 1 if args.quick else seeds
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(args, name)}")
    try:
        make_folder(args.out)
    except Unusable as error:
        parser.error(f"--out: {error}")
    size_name = "full" if args.full else "quick" if args.quick else "default"
    return Options(size_name, args.seeds, args.jobs, args.out, args.publish)


def run(trial: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> list[Result]:
    """Call `trial` on every task and return the results in order. Put long tasks first.

    Args:
        trial: a module-level function; it takes its seed from its task.
        tasks: arguments of the calls.
        jobs: number of processes. Each trial has one thread, so results do not depend on it.
    """
    bar = tqdm(total=len(tasks), unit="run", leave=False, disable=None, dynamic_ncols=True)
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            results = []
            with bar:
                for task in tasks:
                    results.append(trial(task))
                    bar.update()
            return results
        finally:
            torch.set_num_threads(threads)
    with bar, ProcessPoolExecutor(jobs, get_context("spawn"), start_worker) as pool:
        futures = [pool.submit(trial, task) for task in tasks]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1)
            for future in done:
                future.result()  # raises the trial's error
            bar.update(len(done))
            bar.refresh()  # a run may take an hour; keep the clock running
        return [future.result() for future in futures]


def start_worker() -> None:
    """Use one thread per process, and let Ctrl-C end the worker; Python would go on with the next task."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until_interrupted(main: Callable[[], int]) -> int:
    """Run a study and return its exit status, 130 after Ctrl-C."""
    try:
        return or_one_line(main)
    except KeyboardInterrupt:
        print("\nStopped; a study saves nothing before its end.")
        return 130


def chrono(layer: LSTM, T: int) -> LSTM:
    """Initialise a layer so that its cells remember for 1 to T - 1 steps (Tallec and Ollivier 2018).

    b_f ~ log U(1, T - 1), b_i = -b_f, all other biases 0
    """
    H = layer.hidden_size
    with torch.no_grad():
        memories = torch.empty(H).uniform_(1, max(2, T - 1)).log()
        layer.get_parameter("bias_hh_l0").zero_()
        biases = torch.cat([-memories, memories, torch.zeros(2 * H)])  # i, f, g, o
        layer.get_parameter("bias_ih_l0").copy_(biases)
    return layer


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(opts: Options, name: str, text: str, figure: Figure) -> None:
    """Print a study's table, and write the table and the figure to the output folder."""
    print(text)
    write(opts.out / f"{name}.md", f"{text}\n".encode())
    write_figure(opts.out / f"{name}.png", figure, dpi=110)
    print(f"\nWrote {opts.out / name}.md and {opts.out / name}.png")
    if opts.publish:
        picture = README.parent / "pictures" / f"{name}.png"
        make_folder(picture.parent)
        write_figure(picture, figure, dpi=80)
        made = (
            f"`examples/{name}.py`, {opts.size} sizes, seeds from 0 to {opts.seeds - 1}, {date.today()}, "
            f"torch {torch.__version__}:"
        )
        page = published(README.read_text(), name, f"{made}\n\n{text}\n\n![{name}](pictures/{name}.png)")
        write(README, page.encode())


def published(page: str, name: str, text: str) -> str:
    """Replace a study's section of the page, between its two comments."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{text}\n{end}{after}"


def legend(figure: Figure, axes: Axes) -> None:
    """Place the legend of some axes below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(3, len(labels) // 2)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)


def panels(rows: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """Create a figure and return it with its axes, row by row."""
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
        each.tick_params(labelsize=8)
    return figure, axes
