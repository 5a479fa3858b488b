"""What is timed, and how far ahead it has to be."""

from dataclasses import dataclass

import torch

from tests.cases import Case


@dataclass(frozen=True)
class Size:
    """A layer to time, with its bars in float32 on 2 threads: the other's time over ours, at least."""

    case: Case
    forward: float  # nn.LSTM, no gradients
    training: float  # nn.LSTM, forward and backward
    cell: float  # step-by-step cell, forward and backward


SIZES = {
    size.case.name: size
    for size in (
        Size(Case("mnist", 28, 64, 28, 128), forward=1.5, training=2.2, cell=8),
        Size(Case("mid", 100, 32, 128, 256), forward=1.25, training=1.8, cell=5),
        Size(Case("long", 512, 16, 256, 512), forward=1.4, training=1.9, cell=8),
        Size(Case("ptb", 35, 20, 650, 650), forward=1.3, training=1.7, cell=6),
        Size(Case("stream", 256, 1, 256, 256), forward=3, training=2.5, cell=30),
        Size(Case("wide", 128, 256, 64, 64), forward=1.7, training=3, cell=5),
        Size(Case("big", 64, 64, 1024, 1024), forward=1.5, training=1.4, cell=4),
    )
}
DEEP_SIZES = ("mnist", "mid", "stream", "wide")  # the others would take eight times their long time

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
