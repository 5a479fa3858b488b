"""Predicts the time per step of the Metal kernels beside the reference's: python -m bench.roofline_metal.

These are predictions; nothing here was measured on a Mac. A step takes its dispatch, or barriers, and then
the longer of its arithmetic and its traffic.
"""

import argparse
from dataclasses import dataclass
from itertools import product

import torch
from lstm_fused.kernels.metal.plan import Plan, plans
from lstm_fused.kernels.plan import Layer


@dataclass(frozen=True)
class Chip:
    """The GPU of an Apple chip; rates per microsecond."""

    name: str
    cores: int
    flops: float  # float32
    memory: float  # bytes
    cache: int  # bytes that the GPU reads at the rate below when they were read a step before


# Cores, FLOP/s and memory bandwidth are the vendor's; the last-level caches are what others found.
CHIPS = (
    Chip("M1", 8, 2.6e6, 68e3, 8 << 20),
    Chip("M2 Max", 38, 13.6e6, 400e3, 48 << 20),
    Chip("M4", 10, 4.3e6, 120e3, 8 << 20),
)

# Assumed.
CACHED = 4.0  # rate of the cache over that of memory
REACHED = 0.4  # share of the peak that 8 x 8 matrices reach, operands from the cache
DISPATCH = 8.0  # microseconds to encode a dispatch from Python, which the GPU does not overtake
BARRIER = 1.0  # microseconds of a barrier and the round trip to the cache after it
# The reference: operations per step, microseconds each (pytorch #82707, #138898 report 25 to 110).
OPERATIONS = {"forward": 20, "backward": 30}
OPERATION = 25.0


def predict(plan: Plan, layer: Layer, chip: Chip) -> float:
    """Microseconds of a step."""
    H, B, size = layer.H, layer.B, layer.dtype.itemsize
    rows = -(-B // plan.BB)
    weights, flops = 4 * H * H * size, 8 * H * H * plan.BB * rows
    # Forward xw in, gates, c and y out; backward gates, c and dy in, dxw out.
    streamed = B * H * (20 + 5 * size if layer.direction == "forward" else 4 + 9 * size)
    rate = chip.memory * (CACHED if weights <= chip.cache else 1)
    busy = min(1.0, rows / chip.cores) if plan.kernel == "resident" else min(1.0, rows * H / 8 / chip.cores)
    work = max(flops / (chip.flops * REACHED * busy), rows * weights / (rate * busy) + streamed / chip.memory)
    overhead = 2 * BARRIER if plan.kernel == "resident" else DISPATCH
    return float(work + overhead)


def reference(layer: Layer, chip: Chip) -> float:
    """Microseconds of a step of the reference: its operations, and the product's arithmetic and traffic."""
    weights = 4 * layer.H * layer.H * layer.dtype.itemsize
    product = max(2 * weights * layer.B / chip.flops, weights / chip.memory)
    return float(OPERATIONS[layer.direction] * OPERATION + product)


def main() -> None:
    """Print the predictions as a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("Predicted, not measured: microseconds per step, float32, forward + backward\n")
    print("| H | B | kernel | " + " | ".join(f"{chip.name} | reference" for chip in CHIPS) + " |")
    print("| --- " * (2 * len(CHIPS) + 3) + "|")
    for H, B in product((64, 128, 256, 512, 1024), (1, 16, 64)):
        layers = [Layer(direction, H, B, torch.float32, "ieee") for direction in OPERATIONS]
        kernel = plans(layers[0])[0].kernel
        cells = []
        for chip in CHIPS:
            ours = [predict(plans(layer)[0], layer, chip) for layer in layers]
            theirs = [reference(layer, chip) for layer in layers]
            cells += [f"{forward:.0f} + {backward:.0f}" for forward, backward in (ours, theirs)]
        print(f"| {H} | {B} | {kernel} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
