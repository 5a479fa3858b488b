"""Two tasks with a gap: what is asked at the last step was shown long before."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SYMBOLS, DISTRACTORS = 8, 2


def draw_recall(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [T, B, I] whose first step shows a symbol and whose last asks for it; the symbols [B]."""
    symbol = torch.randint(SYMBOLS, (B,), generator=generator)
    steps = SYMBOLS + torch.randint(DISTRACTORS, (T, B), generator=generator)
    steps[0], steps[-1] = symbol, SYMBOLS + DISTRACTORS
    return F.one_hot(steps, SYMBOLS + DISTRACTORS + 1).float(), symbol


def draw_adding(T: int, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers from -1 to 1 and marks [T, B, 2]: one in the first tenth, one up to the half; sums [B, 1]."""
    early = max(1, min(10, T // 10))
    first = torch.randint(early, (B,), generator=generator)
    second = torch.randint(early, T // 2, (B,), generator=generator)
    numbers = torch.rand(T, B, generator=generator) * 2 - 1
    marks, rows = torch.zeros(T, B), torch.arange(B)
    marks[first, rows] = marks[second, rows] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(0)[:, None]


def right(logits: Tensor, y: Tensor) -> Tensor:
    """The share of right symbols."""
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
    said: str  # how a score reads


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
    # Who always says 0 has an error of 2/3.
    "adding": Kind(
        draw_adding, 2, 1, F.mse_loss, F.mse_loss, lambda error: error <= 0.01, "squared error {:.2f}"
    ),
}
