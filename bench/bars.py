"""The bars that times are held to, and the geometric means over the sizes of a table."""

from collections.abc import Iterable, Sequence
from statistics import geometric_mean

import torch

from bench.cases import Setting
from bench.race import Ratio, Record, Target

MEAN = "mean"  # the geometric one, over all sizes of a table
# Our time over the floor, at most, in float32 with one layer in one direction; by step and size.
TIMES_FLOOR = {
    "forward": {MEAN: 1.25},
    "training": {
        **{"mnist": 1.5, "mid": 1.25, "long": 1.15, "ptb": 1.25, "stream": 2.2, "wide": 1.5, "big": 1.15},
        MEAN: 1.3,
    },
}
# Their time over ours, at least, at every size, in every dtype and on any number of threads: nobody is ahead
# by more than the noise of 3 %.
RATIO = 0.97
PEERS = ("nn.LSTM", "torch.nn", "oneDNN", "ONNX Runtime")


def hold(records: Iterable[Record], setting: Setting, single: Iterable[Record] = ()) -> None:
    """Give records their targets.

    Args:
        records: of one table.
        setting: of that table.
        single: records of one layer in the same run; a deep stack has their ratios as targets.
    """
    one_layer = {(r.size, r.what, r.who): r.ratio.median for r in single if r.ratio}
    floors = (
        TIMES_FLOOR if setting.dtype == torch.float32 and setting.layers * setting.directions == 1 else {}
    )
    for record in records:
        most = floors.get(record.what, {}).get(record.size)
        if record.times_floor is not None and most is not None:
            record.targets["times_floor"] = Target(record.times_floor, most, at_most=True)
        if record.ratio is not None and record.who in PEERS and record.size != MEAN:
            least = one_layer.get((record.size, record.what, record.who), RATIO)
            record.targets["ratio"] = Target(record.ratio.median, least)


def means(records: Sequence[Record], sizes: int) -> list[Record]:
    """The geometric means of each step and contestant with a value at so many sizes; of quartiles too."""
    found = []
    for what, who in dict.fromkeys((record.what, record.who) for record in records):
        mine = [record for record in records if (record.what, record.who) == (what, who)]
        mean = Record(MEAN, (), mine[0].dtype, what, who)
        floors = [record.times_floor for record in mine if record.times_floor is not None]
        if len(floors) == sizes > 0:
            mean.times_floor = geometric_mean(floors)
        ratios = [(r.ratio.median, r.ratio.low, r.ratio.high) for r in mine if r.ratio and who != "ours"]
        if len(ratios) == sizes > 0:
            mean.ratio = Ratio(*map(geometric_mean, zip(*ratios, strict=True)))
        if mean.ratio or mean.times_floor:
            found.append(mean)
    return found
