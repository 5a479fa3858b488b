"""Loads the data set Japanese Vowels: nine speakers say /ae/, in utterances of 7 to 29 steps."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SPEAKERS, CHANNELS = 9, 12


class Utterances(NamedTuple):
    """Padded sequences, their lengths and speakers."""

    x: Tensor  # [N, T, 12], float32, zero past each length
    lengths: Tensor  # [N], int64
    y: Tensor  # [N], int64, 0 to 8


def load() -> tuple[Utterances, Utterances]:
    """Read the 270 training and the 370 test utterances from the package aeon, without importing it.

    Raises:
        ModuleNotFoundError: aeon is not installed.
    """
    package = find_spec("aeon")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the data set is in the package aeon: pip install --no-deps aeon")
    folder = Path(package.origin).parent / "datasets" / "data" / "JapaneseVowels"
    return read(folder / "JapaneseVowels_TRAIN.ts"), read(folder / "JapaneseVowels_TEST.ts")


def read(path: Path) -> Utterances:
    """Read a .ts file: one utterance per line, channels and the speaker (1 to 9) separated by colons."""
    lines = path.read_text().partition("@data")[2].split()
    sequences, speakers = [], []
    for line in lines:
        *channels, speaker = line.split(":")
        steps = [[float(value) for value in channel.split(",")] for channel in channels]
        sequences.append(torch.tensor(steps).T)  # [T, 12]
        speakers.append(int(speaker) - 1)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return Utterances(pad_sequence(sequences, batch_first=True), lengths, torch.tensor(speakers))
