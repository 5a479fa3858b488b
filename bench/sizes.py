"""What is timed, and how far ahead it has to be."""

from dataclasses import dataclass, replace

import torch

from tests.cases import TIMED, Case


@dataclass(frozen=True)
class Size:
    """A layer to time, with its bars in float32 on 2 threads: the other's time over ours, at least."""

    case: Case
    forward: float  # nn.LSTM, no gradients
    training: float  # nn.LSTM, forward and backward
    cell: float  # step-by-step cell, forward and backward


BARS = {  # forward, training, cell
    "mnist": (1.5, 2.2, 8),
    "mid": (1.25, 1.8, 5),
    "long": (1.4, 1.9, 8),
    "ptb": (1.3, 1.7, 6),
    "stream": (3, 2.5, 30),
    "wide": (1.7, 3, 5),
    "big": (1.5, 1.4, 4),
}
SIZES = {case.name: Size(case, *BARS[case.name]) for case in TIMED}
DEEP_SIZES = ("mnist", "mid", "stream", "wide")  # the others would take eight times their long time
UNEVEN_SIZES = tuple(name for name, size in SIZES.items() if size.case.B > 1)


def uneven(case: Case) -> Case:
    """The same with sequences of 1 to T steps, in no order, the longest of T."""
    lengths = torch.randint(1, case.T + 1, (case.B,), generator=torch.Generator().manual_seed(0))
    lengths[case.B // 2] = case.T
    return replace(case, lengths=tuple(lengths.tolist()))


BFLOAT16_BAR = 1.3  # everywhere
ONE_THREAD = 0.85  # of the bars: "the same ratios within 15 %"


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share."""

    dtype: torch.dtype
    threads: int
    engine: str | None
    layers: int = 1
    bidirectional: bool = False

    @property
    def directions(self) -> int:
        """2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1


def bars(size: Size, setting: Setting) -> dict[tuple[str, str], float]:
    """The ratios to reach, by what is timed and who is raced; a deep stack keeps those of one layer."""
    scale = ONE_THREAD if setting.threads == 1 else 1.0
    if setting.dtype == torch.bfloat16:
        forward = training = BFLOAT16_BAR
    else:
        forward, training = size.forward, size.training
    wanted = {("forward", "nn.LSTM"): forward * scale, ("training", "nn.LSTM"): training * scale}
    if setting.dtype == torch.float32 and setting.layers == 1:
        wanted["training", "cell"] = size.cell * scale
    return wanted
