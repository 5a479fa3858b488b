"""Predicts the time per step of each GPU kernel from bytes, FLOPs and latencies: python -m bench.roofline.

A step takes as long as its longest chain of dependent latencies, its products and its traffic together; at
small batches the chain dominates. The cards' rates are the vendors' figures. Latencies are published ones, or
measured on an H100 and an H200 (docs/gpu/h200.md).
"""

import argparse
import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import log2
from pathlib import Path
from typing import Any

import torch
from lstm_fused.kernels.choose import choose
from lstm_fused.kernels.cluster import AT_ONCE
from lstm_fused.kernels.persistent import terms
from lstm_fused.kernels.plan import CARDS, EXCHANGES, Card, Layer, Plan


@dataclass(frozen=True)
class Speed:
    """The rates of a card, per microsecond, and the latencies of single events."""

    dense_flops: float  # 16-bit, on tensor cores, per microsecond
    memory: float  # bytes per microsecond
    l2: float  # bytes per microsecond
    shared: float  # bytes per microsecond and multiprocessor
    exchange: float  # microseconds for store, release, acquire and load through L2
    flagged: float  # microseconds for a store and polling loads, every number its own flag
    launch: float  # microseconds between two kernels of a CUDA graph
    sync: float  # microseconds for a barrier and a round trip through shared memory


SPEEDS = {
    "A100": Speed(312e6, 2.0e6, 4.0e6, 0.18e6, 1.9, 0.7, 1.6, 0.03),
    "H100": Speed(990e6, 3.3e6, 8e6, 0.23e6, 1.6, 0.6, 1.3, 0.025),
    "H200": Speed(990e6, 4.8e6, 8e6, 0.23e6, 1.6, 0.6, 1.3, 0.025),
    "B200": Speed(2250e6, 8.0e6, 10e6, 0.24e6, 1.6, 0.6, 1.2, 0.025),
    # With sums in float32 its tensor cores do half of that.
    "RTX 4090": Speed(330e6, 1.0e6, 5e6, 0.32e6, 1.6, 0.6, 1.3, 0.02),
}
# An H200 runs what is compiled for an H100, with faster memory.
H200 = next(card for card in CARDS if card.name == "H100")._replace(name="H200")
PREDICTED = {card.name: card for card in (*CARDS, H200) if card.name in SPEEDS}
LOAD = 0.6  # microseconds until a number arrives from memory
GATES = 0.15  # microseconds for the gates of one tile
READ = 0.3  # microseconds to gather from L2 what others have published long ago
MATRIX = 0.019  # microseconds from one matrix instruction to the next that adds to its result: 33 cycles
TILE = 0.15  # microseconds for the next tile of a pipelined product to come from L2
# Between blocks of a cluster: microseconds until the first bytes arrive, and bytes per microsecond that a
# block receives; a line through the exchange benchmark's times of 8, 16 and 32 KB.
REMOTE, RECEIVED = 0.18, 33e3
SHUFFLED = 0.2  # microseconds until a cluster's cells have the sums of its forward product
# Numbers of the largest tile of a persistent kernel whose product is done while the last numbers arrive: so
# measured on an H200, where larger tiles take as much longer as their product does.
HIDDEN = 8 * 16
SKEW = 0.17  # microseconds that the last program publishes later, for each doubling of their number
# Barriers of the sums after the time loop of a backward kernel.
SUMS = 16
# What the compiler made of each kernel.
TABLE = Path(__file__).parents[1] / "tests" / "gpu_offline" / "resources.json"
SIZES = (64, 128, 256, 512, 768, 1024)
# The share of a multiprocessor's peak tensor-core rate that mma.sync on 16 rows reaches.
REACHED = 0.3

# H = 768, B = 16, T = 1024, bf16, one layer, milliseconds forward, and forward with backward. FlashRNN and
# haste as published with FlashRNN (Pöppel, Beck, Hochreiter 2024), cuDNN there too.
PUBLIC = {"cuDNN": (2.01, 5.19), "FlashRNN, CUDA fused": (4.87, 13.61), "haste, float32": (18.41, 43.86)}


KINDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "tf32"}


@cache
def resources() -> dict[str, Any]:
    """The checked-in table."""
    return dict(json.loads(TABLE.read_text()))


@dataclass(frozen=True)
class Prediction:
    """Microseconds per step, by component."""

    chain: float  # dependent latencies
    on_chip: float  # weights through shared memory and tensor cores
    traffic: float  # bytes between memory, L2 and the multiprocessors

    @property
    def step(self) -> float:
        """All of them; traffic that is the exchange itself overlaps with neither chain nor product."""
        return self.chain + self.on_chip + self.traffic


def predict(plan: Plan, layer: Layer, card: Card) -> Prediction:
    """Time per step of a plan."""
    speed, size, H, B = SPEEDS[card.name], layer.dtype.itemsize, layer.H, layer.B
    exchange = EXCHANGES[plan.kernel]
    rows, columns = plan.grid(B, H)
    programs = rows * columns
    per_sm = -(-programs // (card.sms // layer.streams))
    width = min(plan.BH, H)
    weights = 4 * H * width * size  # bytes that a program multiplies by in each step
    flops = 2 * 4 * H * width * plan.BB  # of a batch tile
    rate = speed.dense_flops / card.sms * REACHED * (2 / size)
    on_chip = per_sm * max(weights / speed.shared, flops / rate)
    operand = plan.rows * H * size * (1 if layer.direction == "forward" else 4)
    # Matrix instructions that depend on one another: a warp's terms, 16 or 8 of them in an instruction.
    chained = terms(plan, layer) / 2 if exchange == "flags" else H
    matrix = MATRIX * chained * size / 32
    sync = speed.sync * (2 if exchange in ("flags", "clusters") else barriers(plan, layer, card))
    # Forward xw in, gates, c and y out; backward gates, c and dy in, dxw out.
    streamed = B * H * (4 + (16 + 5 * size if layer.direction == "forward" else 9 * size))
    traffic = layer.streams * streamed / speed.memory
    if not exchange:
        return Prediction(LOAD + GATES + sync + 4 * matrix, on_chip, traffic)
    if exchange == "clusters":
        assert plan.CTAS is not None
        waves = -(-rows // max(1, AT_ONCE[plan.CTAS] // layer.streams))
        cells = plan.BB * plan.CTAS * plan.BH
        if layer.direction == "forward":  # h, all of which each warp multiplies by; it has four chains
            received, loaded, matrix = cells * size, plan.num_warps * cells * size, 0.0
            sync += SHUFFLED
        else:  # a partial sum from every block; each warp multiplies by da of its own block
            received, loaded = cells * 4, plan.num_warps * plan.BB * 4 * plan.BH * size + cells * 4
            matrix = MATRIX * 4 * plan.BH * size / 32
        chain = REMOTE + received / RECEIVED + GATES + sync
        on_chip = max(loaded / speed.shared, flops / rate, matrix)
        return Prediction(waves * chain, waves * on_chip, traffic)
    traffic += layer.streams * programs * operand / speed.l2
    if exchange == "flags":  # with the weights in registers
        multiplied = matrix if plan.BB * plan.BH <= HIDDEN else max(matrix, flops / rate)
        chain = speed.flagged + SKEW * max(0, log2(columns / 8)) + GATES + sync + multiplied
        # Of several batch tiles in turn a program computes the others while one is on its way.
        busy = min(chain, READ + GATES + sync + max(matrix, flops / rate))
        return Prediction(max(chain, plan.TILES * busy), 0, traffic)
    if exchange == "counters":  # its loads from memory overlap with the wait
        return Prediction(speed.exchange + GATES + sync + matrix, on_chip, traffic)
    tiles = H * (1 if layer.direction == "forward" else 4) / plan.BK
    chain = speed.launch + 2 * LOAD + GATES + sync + TILE * tiles
    return Prediction(chain, on_chip, traffic + layer.streams * programs * weights / speed.l2)


def barriers(plan: Plan, layer: Layer, card: Card) -> int:
    """Barriers of a step, counted in the code compiled for the nearest H."""
    for kind in (KINDS[layer.dtype], "fp16"):  # a kernel that is compiled alike in both is tabled once
        name = f"{plan.kernel} {layer.direction} {kind} H={{}} {card.capability}"
        if known := [known for known in SIZES if name.format(known) in resources()]:
            break
    row = resources()[name.format(min(known, key=lambda known: abs(known - layer.H)))]
    after = SUMS if layer.direction == "backward" and EXCHANGES[plan.kernel] != "launches" else 0
    return int(row["mix"]["barrier"]) - after


def predict_all(plan: Plan, layer: Layer, card: Card) -> float:
    """Microseconds per step of the whole batch, whose launches follow one another."""
    waves = plan.waves(plan.grid(layer.B, layer.H)[0])
    return sum(
        predict(plan, layer._replace(B=min(rows * plan.rows, layer.B)), card).step for _, rows in waves
    )


def both_directions(plan: Plan, in_turn: Plan, layer: Layer, card: Card) -> tuple[float, float]:
    """Microseconds per step of both directions, one after the other; and at once, half of the card each."""
    return 2 * predict_all(in_turn, layer, card), predict_all(plan, layer._replace(streams=2), card)


def products(layer: Layer, T: int, card: Card) -> float:
    """Milliseconds for the products outside the time loop, half of the card's rate assumed, I = H."""
    count = 1 if layer.direction == "forward" else 3
    flops: float = count * 2 * T * layer.B * 4 * layer.H * layer.H
    rate: float = SPEEDS[card.name].dense_flops * 0.5 * 2 / layer.dtype.itemsize
    return flops / rate / 1e3


def sequence(H: int, B: int, T: int, card: Card, dtype: torch.dtype) -> tuple[float, float]:
    """Milliseconds forward, and forward with backward."""
    total = []
    for direction in ("forward", "backward"):
        layer = Layer(direction, H, B, dtype, "tf32")
        plan = choose(layer, card)
        total.append(predict_all(plan, layer, card) * T / 1e3 + products(layer, T, card))
    return total[0], sum(total)


def main() -> None:
    """Print the predictions, and the public figures beside them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--batch", type=int, default=16)
    B = parser.parse_args().batch
    for name, direction in product(SPEEDS, ("forward", "backward")):
        card = PREDICTED[name]
        for H in (64, 128, 256, 512, 768, 1024):
            layer = Layer(direction, H, B, torch.bfloat16, "tf32")
            plan, halved = choose(layer, card), choose(layer._replace(streams=2), card)
            p = predict(plan, layer, card)
            in_turn, at_once = both_directions(halved, plan, layer, card)
            print(
                f"{name} {direction:<8} H {H:<5} {plan.kernel:<12} {p.step:5.2f} us per step: "
                f"chain {p.chain:.2f}, product {p.on_chip:.2f}, traffic {p.traffic:.2f}; both directions "
                f"{in_turn:.2f}, at once {at_once:.2f} by {halved.kernel}"
            )
    ours = sequence(768, 16, 1024, PREDICTED["H100"], torch.bfloat16)
    print("\nH 768, B 16, T 1024, bf16, H100: ms forward, ms with backward")
    for name, times in {"predicted": ours, **PUBLIC}.items():
        print(f"{name:<28} {times[0]:6.2f} {times[1]:6.2f}")


if __name__ == "__main__":
    main()
