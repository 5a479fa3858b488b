"""Sizes and settings of the benchmark, and the work they need."""

from dataclasses import dataclass, replace

import torch

from tests.cases import TIMED, Case

SIZES = {case.name: case for case in TIMED}


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share."""

    dtype: torch.dtype
    threads: int
    engine: str | None
    layers: int = 1
    bidirectional: bool = False
    device: str = "cpu"

    @property
    def directions(self) -> int:
        """2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1


def named(size: str) -> Case:
    """The case of this name, or of the sizes T,B,I,H.

    Raises:
        ValueError: it is neither.
    """
    if size in SIZES:
        return SIZES[size]
    numbers = [int(part) for part in size.split(",")]
    if len(numbers) != 4 or min(numbers) < 1:
        raise ValueError(size)
    T, B, I, H = numbers
    return Case(size, T=T, B=B, I=I, H=H)


def uneven(case: Case) -> Case:
    """The same case with sequences of 1 to T steps in random order; one has T."""
    lengths = torch.randint(1, case.T + 1, (case.B,), generator=torch.Generator().manual_seed(0))
    lengths[case.B // 2] = case.T
    return replace(case, lengths=tuple(lengths.tolist()))


CASES = {  # of each kind of table but growth, which has its own
    **dict.fromkeys(("speed", "rivals", "memory"), TIMED),
    "deep": tuple(SIZES[name] for name in ("mnist", "mid", "stream", "wide")),  # eight times the time of one
    "lengths": tuple(uneven(case) for case in TIMED if case.B > 1),
    "small": tuple(
        Case(name, T=1, B=B, I=H, H=H) for name in ("LSTM", "LSTMCell") for B in (1, 8) for H in (64, 128)
    ),
}


def input_sizes(case: Case, setting: Setting) -> list[int]:
    """The input size of each layer."""
    return [case.I, *[case.H * setting.directions] * (setting.layers - 1)]


def arithmetic(case: Case, setting: Setting, what: str) -> float:
    """FLOP of the products with W_ih and W_hh; backward has two for each: data and weight gradient."""
    per_row = sum(2 * 4 * case.H * (inputs + case.H) for inputs in input_sizes(case, setting))
    steps = case.T * case.B if case.lengths is None else sum(case.lengths)
    return float(steps * per_row * setting.directions * (3 if what == "training" else 1))
