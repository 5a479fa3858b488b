"""Time lstm_fused on this machine against its bars: python -m bench, from the repository's root."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from bench import everyone, growth, memory, speed
from bench.check import Wrong
from bench.limits import Limits, measure
from bench.machine import describe
from bench.publish import PAGES, publish
from bench.results import Result, Row, draw, write
from bench.sizes import DEEP_SIZES, SIZES, UNEVEN_SIZES, Setting, uneven
from bench.tables import KINDS, Table, limits_line
from bench.timing import Pace, progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Races lstm_fused.LSTM, with peepholes, against torch.nn.LSTM and a step-by-step cell. "
        "Each is checked against the float64 reference first. Without one of the tables that are named below "
        "the main one is made; results go to a JSON file and, with matplotlib, to pictures beside it.",
    )
    parser.add_argument("--deep", action="store_true", help="4 layers in both directions")
    parser.add_argument("--memory", action="store_true", help="bytes kept for backward, and peaks")
    parser.add_argument("--growth", action="store_true", help="time against T, B and H")
    parser.add_argument(
        "--rivals", action="store_true", help="everyone else too: loops in PyTorch, other libraries"
    )
    parser.add_argument("--lengths", action="store_true", help="what sequences of unequal length cost")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--threads", nargs="+", type=int, default=[2], help="one table for each (default: 2)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="one table for each")
    parser.add_argument("--engine", default="cpp", help="the engine that is raced (default: cpp)")
    parser.add_argument("--rounds", type=int, default=5, help="of each race, at least (default: 5)")
    parser.add_argument("--seconds", type=float, default=8, help="of each race, at least (default: 8)")
    parser.add_argument("--quick", action="store_true", help="2 rounds; shows only that everything works")
    out = Path("out/bench/bench.json")
    parser.add_argument("--publish", action="store_true", help="put the tables into README.md and docs/ too")
    parser.add_argument("--json", type=Path, default=out, metavar="PATH", help=f"(default: {out})")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds: a spread takes at least 2")
    if min(args.threads) < 1:
        parser.error("--threads: at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables that were asked for; the exit status is 1 where a result was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    machine = describe()
    print(machine)
    results: list[Result] = []
    kinds = [kind for kind in KINDS if getattr(args, kind, False)] or ["speed"]
    for threads, dtype in product(args.threads, args.dtype):
        torch.set_num_threads(threads)
        limits = None
        if "speed" in kinds or "deep" in kinds:
            progress("measuring the machine")
            limits = measure(DTYPES[dtype], threads, args.quick)
            progress("")
            print(f"\n{dtype}, threads: {threads}; {limits_line(limits)}")
        for kind in kinds:
            setting = Setting(DTYPES[dtype], threads, args.engine)
            if kind == "deep":
                setting = replace(setting, layers=4, bidirectional=True)
            result = Result(kind, setting, limits, [])
            results.append(result)
            print(f"\n{result.title}\n")
            table = Table(KINDS[kind].columns)
            for row in rows(kind, setting, limits, args):
                table.row(KINDS[kind].cells(row))
                result.rows.append(row)
            for row in result.rows:
                for name, reason in row.refused.items():
                    print(f"\n{row.size}: {name} not timed: {reason}")
            write(args.json, machine, results)
    pictures = draw(args.json, machine, results)

    found = [row for result in results for row in result.rows]
    shares = [share for row in found for share in row.shares()]
    print(f"\n{sum(share >= 1 for share in shares)} of {len(shares)} bars met" if shares else "")
    print("Wrote " + ", ".join(map(str, [args.json, *pictures])))
    if args.publish:
        told = [argument for argument in argv if argument != "--publish"]
        print("\n".join(publish(args.json, machine, results, told, PAGES)))
    return int(any(isinstance(reason, Wrong) for row in found for reason in row.refused.values()))


def rows(kind: str, setting: Setting, limits: Limits | None, args: argparse.Namespace) -> Iterator[Row]:
    """Measure one table."""
    pace = Pace(2, 0.0) if args.quick else Pace(args.rounds, args.seconds)
    if kind == "growth":
        for varied, values in growth.SWEEPS.items():
            yield from growth.sweep(varied, values[:2] if args.quick else values, setting, pace)
        return
    for name in args.sizes or {"deep": DEEP_SIZES, "lengths": UNEVEN_SIZES}.get(kind, SIZES):
        if kind == "rivals":
            yield from everyone.measure(SIZES[name].case, setting, pace)
        elif kind == "lengths":
            yield from everyone.measure(uneven(SIZES[name].case), setting, pace, everyone.WITH_LENGTHS)
        elif kind == "memory":
            yield memory.measure(SIZES[name], setting)
        else:
            yield speed.measure(SIZES[name], setting, limits, pace)


if __name__ == "__main__":
    sys.exit(main())
