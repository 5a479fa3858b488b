"""Check, time or tune the Triton engine on this GPU: python -m bench.gpu check bench tune, or some of them.

The last line is the verdict. ``--device cpu`` under TRITON_INTERPRET=1 tries the programs themselves
where there is no GPU, at sizes that ``--small`` brings down.
"""

import argparse
import sys
from pathlib import Path

import lstm_fused
from bench.gpu import check, speed, tune
from bench.gpu.kernels import mend_interpreter
from bench.host.machine import ROOT, describe_gpu
from lstm_fused.backends import triton

# What is run, for how long at most (less than eight minutes for check and bench together), where it writes.
TASKS = {
    "check": (check.run, 300.0, ROOT / "out"),
    "bench": (speed.run, 150.0, ROOT / "out"),
    "tune": (tune.run, 400.0, ROOT / "kernels"),
}


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--device", default="cuda", help="cuda, which AMD's cards are called too, or cpu")
    parser.add_argument("--small", action="store_true", help="the least that goes through everything")
    parser.add_argument("--seconds", type=float, help="how long each task may take, instead of its own limit")
    parser.add_argument("--out", type=Path, help="the folder to write to, instead of each task's own")
    arguments = parser.parse_args()
    reason = lstm_fused.engines()["triton"]
    if reason is None and arguments.device != triton.DEVICE:
        reason = f"it runs on {triton.DEVICE}, not on {arguments.device}"
    if reason is not None:
        sys.exit(f"verdict: nothing was done, for the Triton engine cannot run here: {reason}")
    mend_interpreter()
    machine = describe_gpu(arguments.device)
    print(machine, flush=True)
    done = []
    for name in arguments.tasks:
        run, seconds, out = TASKS[name]
        chosen = arguments.seconds or seconds, arguments.out or out
        done.append(run(machine, arguments.device, arguments.small, *chosen))
    print(f"verdict: {machine.gpu}: " + "; ".join(text for _, text in done))
    sys.exit(not all(right for right, _ in done))


if __name__ == "__main__":
    main()
