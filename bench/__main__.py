"""Times lstm_fused on this machine against its targets: python -m bench, from the repository's root."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from bench import bars, kinds
from bench.cases import CASES, SIZES, Setting, named, uneven
from bench.host.limits import measure_limits
from bench.host.machine import describe
from bench.memory import measure_memory
from bench.race import Pace, Record, progress, write_json
from bench.report.publish import PAGES, publish
from bench.report.result import Result, draw
from bench.report.tables import KINDS
from tests.cases import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
JSON = Path("out/bench/bench.json")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Races lstm_fused.LSTM, with peepholes, against torch.nn.LSTM and a step-by-step cell. "
        "Each is checked against the float64 reference first. The main table is made unless others are named "
        "below; results go to a JSON file and, with matplotlib, to pictures beside it.",
        epilog="A time ÷ ours above 1 means slower than lstm_fused. The floor is the arithmetic's time at "
        "this machine's rates, which are measured. A target is what the project wants to reach on its "
        "machines, no promise for yours. docs/bench.md explains every column.",
    )
    add = parser.add_argument
    add("--speed", action="store_true", help="the main table, beside those named")
    add("--deep", action="store_true", help="4 layers in both directions")
    add("--small", action="store_true", help="one step of LSTM and LSTMCell beside torch.nn's")
    add("--memory", action="store_true", help="bytes kept for backward, and peaks")
    add("--growth", action="store_true", help="time against T, B and H")
    add("--rivals", action="store_true", help="everyone else too: loops in PyTorch, other libraries")
    add("--lengths", action="store_true", help="what sequences of unequal length cost")
    add(
        "--sizes",
        nargs="+",
        type=size,
        metavar="SIZE",
        help=f"of {', '.join(SIZES)}, or your own as T,B,I,H; not in --small, --growth",
    )
    add("--threads", nargs="+", type=int, default=[2], help="one table for each (default: 2)")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="one table for each")
    add("--engine", default="cpp", help="the engine that is raced (default: cpp)")
    add("--rounds", type=int, default=5, help="of each race, at least (default: 5)")
    add("--seconds", type=float, default=8, help="of each race, at least (default: 8)")
    add("--quick", action="store_true", help="2 rounds; shows only that everything works")
    add("--publish", action="store_true", help="put the tables into README.md and docs/ too")
    add("--json", type=Path, default=JSON, metavar="PATH", help=f"(default: {JSON})")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds: a spread takes at least 2")
    if min(args.threads) < 1:
        parser.error("--threads: at least 1")
    return args


def size(text: str) -> Case:
    """The value of --sizes."""
    try:
        return named(text)
    except ValueError:
        known = ", ".join(SIZES)
        raise argparse.ArgumentTypeError(
            f"expected one of {known}, or T,B,I,H as in 400,16,80,320, got {text!r}"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables that were asked for; the exit status is 1 if a result was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    machine = describe()
    print(machine)
    results: list[Result] = []
    chosen = [kind for kind in KINDS if getattr(args, kind, False)] or ["speed"]
    for threads, dtype in product(args.threads, args.dtype):
        torch.set_num_threads(threads)
        limits = None
        if "speed" in chosen or "deep" in chosen:
            progress("measuring the machine")
            limits = measure_limits(DTYPES[dtype], threads, args.quick)
            progress("")
            print(f"\n{dtype}, threads: {threads}; {limits}")
        for kind in chosen:
            setting = one_layer = Setting(DTYPES[dtype], threads, args.engine)
            if kind == "deep":
                setting = replace(setting, layers=4, bidirectional=True)
            mains = [r.records for r in results if (r.kind, r.setting) == ("speed", one_layer)]
            single = mains[0] if mains and kind == "deep" else []
            result = Result(kind, setting, limits, [])
            results.append(result)
            print(f"\n{result.title}\n")
            KINDS[kind].print()
            for records in measured(result, args):
                bars.hold(records, setting, single)
                KINDS[kind].print(records)
                result.records += records
            cases = CASES.get(kind, ())
            whole = {record.size for record in result.records} == {case.name for case in cases}
            result.means = bars.means(result.records, len(cases) if whole else 0)
            bars.hold(result.means, setting)
            KINDS[kind].print(result.means)
            print("".join(f"\n{line}\n" for line in result.refused), end="")
            write_json(args.json, machine=machine, tables=results)
    pictures = draw(args.json, machine, results)

    found = [record for result in results for record in (*result.records, *result.means)]
    shares = [target.share for record in found for target in record.targets.values()]
    print(f"\n{sum(share >= 1 for share in shares)} of {len(shares)} targets met" if shares else "")
    print("Wrote " + ", ".join(map(str, [args.json, *pictures])))
    if args.publish:
        told = [argument for argument in argv if argument != "--publish"]
        print("\n".join(publish(args.json, machine, results, told, PAGES)))
    return int(any(record.wrong for record in found))


def measured(result: Result, args: argparse.Namespace) -> Iterator[list[Record]]:
    """Measure one table, size by size."""
    kind, setting = result.kind, result.setting
    pace = Pace(2, 0.0) if args.quick else Pace(args.rounds, args.seconds)
    if kind == "growth":
        for varied, values in kinds.SWEEPS.items():
            yield from kinds.measure_growth(varied, values[:2] if args.quick else values, setting, pace)
        return
    cases = CASES[kind]
    if args.sizes and kind != "small":
        cases = tuple(map(uneven, args.sizes) if kind == "lengths" else args.sizes)
    for case in cases:
        if kind == "rivals":
            yield kinds.measure_rivals(case, setting, pace)
        elif kind == "lengths":
            yield kinds.measure_lengths(case, setting, pace)
        elif kind == "memory":
            yield measure_memory(case, setting)
        elif kind == "small":
            yield kinds.measure_small(case, setting, pace)
        else:
            yield kinds.measure_speed(case, setting, result.limits, pace)


if __name__ == "__main__":
    sys.exit(main())
