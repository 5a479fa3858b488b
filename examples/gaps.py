"""Two tasks with long gaps: the last step asks for something that was shown many steps before."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SYMBOLS, DISTRACTORS = 8, 2


def draw_recall(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw sequences [T, B, I] that show a symbol first and ask for it last, and the symbols [B]."""
    symbol = torch.randint(SYMBOLS, (B,), generator=generator)
    steps = SYMBOLS + torch.randint(DISTRACTORS, (T, B), generator=generator)
    steps[0], steps[-1] = symbol, SYMBOLS + DISTRACTORS
    return F.one_hot(steps, SYMBOLS + DISTRACTORS + 1).float(), symbol


def draw_adding(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw numbers in [-1, 1] and marks of two of them in the first half [T, B, 2], and sums [B, 1]."""
    early = max(1, min(10, T // 10))
    first = torch.randint(early, (B,), generator=generator)
    second = torch.randint(early, T // 2, (B,), generator=generator)
    numbers = torch.rand(T, B, generator=generator) * 2 - 1
    marks, rows = torch.zeros(T, B), torch.arange(B)
    marks[first, rows] = marks[second, rows] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0)[:, None]


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of correct symbols."""
    return (logits.argmax(1) == y).float().mean()


@dataclass(frozen=True)
class Kind:
    """One of the two tasks."""

    draw: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
    inputs: int
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    passed: Callable[[float], bool]
    score_format: str  # format of a score


KINDS = {
    "recall": Kind(
        draw_recall,
        SYMBOLS + DISTRACTORS + 1,
        SYMBOLS,
        F.cross_entropy,
        right,
        lambda share: share >= 0.99,
        "{:.0%} right",
    ),
    # Always answering 0 has an error of 2/3.
    "adding": Kind(
        draw_adding, 2, 1, F.mse_loss, F.mse_loss, lambda error: error <= 0.01, "squared error {:.2f}"
    ),
}
