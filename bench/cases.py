"""Sizes and settings of the benchmark, the work they need and the targets they have."""

from dataclasses import dataclass, replace

import torch

from tests.cases import TIMED, Case

SIZES = {case.name: case for case in TIMED}
DEEP_SIZES = ("mnist", "mid", "stream", "wide")  # the others would take eight times their long time
UNEVEN_SIZES = tuple(name for name, case in SIZES.items() if case.B > 1)
TARGETS = {  # least ratio to ours in float32 on 2 threads: nn.LSTM forward, nn.LSTM training, cell training
    "mnist": (1.5, 2.2, 8.0),
    "mid": (1.25, 1.8, 5.0),
    "long": (1.4, 1.9, 8.0),
    "ptb": (1.3, 1.7, 6.0),
    "stream": (3.0, 2.5, 30.0),
    "wide": (1.7, 3.0, 5.0),
    "big": (1.5, 1.4, 4.0),
}
BFLOAT16_TARGET = 1.3  # nn.LSTM, every size
ONE_THREAD = 0.85  # of the targets: "the same ratios within 15 %"


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


def targets(size: str, setting: Setting) -> dict[tuple[str, str], float]:
    """The ratios to reach, by step and contestant; a deep stack keeps those of one layer."""
    scale = ONE_THREAD if setting.threads == 1 else 1.0
    forward, training, cell = TARGETS[size]
    if setting.dtype == torch.bfloat16:
        forward = training = BFLOAT16_TARGET
    wanted = {("forward", "nn.LSTM"): forward * scale, ("training", "nn.LSTM"): training * scale}
    if setting.dtype == torch.float32 and setting.layers == 1:
        wanted["training", "cell"] = cell * scale
    return wanted


def uneven(case: Case) -> Case:
    """The same case with sequences of 1 to T steps in random order; one has T."""
    lengths = torch.randint(1, case.T + 1, (case.B,), generator=torch.Generator().manual_seed(0))
    lengths[case.B // 2] = case.T
    return replace(case, lengths=tuple(lengths.tolist()))


def input_sizes(case: Case, setting: Setting) -> list[int]:
    """The input size of each layer."""
    return [case.I, *[case.H * setting.directions] * (setting.layers - 1)]


def arithmetic(case: Case, setting: Setting, what: str) -> float:
    """FLOP of the products with W_ih and W_hh; backward has two for each: data and weight gradient."""
    per_row = sum(2 * 4 * case.H * (inputs + case.H) for inputs in input_sizes(case, setting))
    steps = case.T * case.B if case.lengths is None else sum(case.lengths)
    return float(steps * per_row * setting.directions * (3 if what == "training" else 1))
