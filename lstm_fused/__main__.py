"""Say which engines run here, and why the others do not: python -m lstm_fused."""

import platform

import torch

import lstm_fused
from lstm_fused import cpp
from lstm_fused.backends import ENGINES, short


def main() -> None:
    """Print the versions and the table of engines."""
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


if __name__ == "__main__":
    main()
