"""Prints the engines and why one cannot run here, and checks them: python -m lstm_fused [--check]."""

import argparse
import platform
import sys

import torch

import lstm_fused
from lstm_fused.backends import cpp, metal, triton
from lstm_fused.backends.table import ENGINES, short
from lstm_fused.testing.command import check_engines


def main() -> None:
    """Print the versions, the table of engines, and the kernels' verdicts on each card."""
    parser = argparse.ArgumentParser(prog="python -m lstm_fused", description=main.__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare every engine here with the reference, check its derivatives, and on GPUs the kernels",
    )
    parser.add_argument("--engine", choices=[engine.name for engine in ENGINES], help="check this one alone")
    parser.add_argument("--device", help="check on this device: cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()
    if not arguments.check and (arguments.engine or arguments.device):
        parser.error("--engine and --device go with --check")
    print(
        f"lstm_fused {lstm_fused.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"{torch.get_num_threads()} threads on {platform.machine()}\n")
    for engine in ENGINES:
        reason = engine.unavailable()
        devices = ", ".join(engine.devices or ("any device",))
        print(f"{engine.name:<10} {devices:<11} {', '.join(map(short, engine.dtypes))}")
        print(f"{'':<10} " + ("ready" if reason is None else f"not available: {reason}"))
    if cpp.unavailable() is None:
        print(f"\nInstruction set of the C++ engine: {cpp.isa()}")
    right = True
    kernels = {"triton": triton.unavailable(), "metal": metal.unavailable()}
    if any(reason is None and arguments.engine in (None, name) for name, reason in kernels.items()):
        right = print_verdicts(arguments.check)
    if arguments.check:
        print()
        try:
            right &= check_engines(arguments.engine, arguments.device)
        except RuntimeError as error:  # of an engine that cannot run on this device, or of an unknown device
            sys.exit(str(error))
    sys.exit(0 if right else 1)


def print_verdicts(check: bool) -> bool:
    """Print each card's recorded verdicts, or those of a new check; True if all kernels are right."""
    from lstm_fused.kernels import guard, verdicts

    right = True
    for device in cards():
        print(f"\n{verdicts.card_name(device)}, driver {verdicts.driver()}; LSTM_FUSED_GPU={guard.setting()}")
        results = guard.check_usual(device) if check else verdicts.on_record(device)
        for verdict in results:
            print(f"{'right' if verdict.right else 'WRONG'}  {verdict.name}: {verdict.said}", flush=True)
            right &= verdict.right
        print(f"Verdicts are kept in {verdicts.cache_folder()}")
    return right


def cards() -> list[torch.device]:
    """The devices that the kernels run on, one for each kind of card."""
    from lstm_fused.kernels import verdicts

    if metal.unavailable() is None:
        return [torch.device("mps")]
    if triton.DEVICE == "cpu":
        return [torch.device("cpu")]
    every = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return list({verdicts.card_name(device): device for device in reversed(every)}.values())


if __name__ == "__main__":
    main()
