"""Training loop whose checkpoints resume exactly."""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from digits import Digits, shifted
from files import write
from processes import Processes
from torch import Tensor, nn


@dataclass
class Epoch:
    """Results of one epoch."""

    train_loss: float
    train_accuracy: float  # 0 to 1, measured during the epoch's training
    test_loss: float
    test_accuracy: float
    seconds: float  # training time, without the test


class Trainer:
    """A model with the state of its training.

    All random numbers are drawn on the CPU: a seed gives the same batches on every device, and only one
    generator needs saving.

    Args:
        model: the model, on the device of the digits.
        batch_size: digits per step.
        lr: learning rate of the first epoch.
        processes: the processes that train together. Each draws the same random numbers and takes its share
            of every batch, so that the result does not depend on their number.
    """

    def __init__(self, model: nn.Module, batch_size: int, lr: float, processes: Processes) -> None:
        self.model = model
        self.processes = processes
        self.connected: nn.Module | None = None
        self.batch_size = batch_size
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        # Independent of the number of epochs, so that ten epochs and fifteen more are the same as 25.
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, gamma=0.9)
        self.history: list[Epoch] = []

    def run_epoch(self, train: Digits, test: Digits, after_batch: Callable[[], object]) -> Epoch:
        """Train on all digits once, in random order and randomly shifted, then test."""
        if self.connected is None:
            self.connected = self.processes.connect(self.model)
        self.connected.train()
        order = torch.randperm(len(train.y)).to(train.y.device)
        totals = torch.zeros(2, device=train.y.device)  # on the device: a read would stall it
        start = time.perf_counter()
        for batch in order.split(self.batch_size):
            x, y = map(self.processes.share, (shifted(train.x[batch]), train.y[batch]))
            rows = len(batch) / self.processes.count
            totals += train_step(self.connected, self.optimizer, x, y, rows)
            after_batch()
        loss, hits = (self.processes.total(totals) / len(train.y)).tolist()
        seconds = time.perf_counter() - start
        self.scheduler.step()
        self.history.append(Epoch(loss, hits, *evaluate(self.model, test), seconds))
        return self.history[-1]

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write a checkpoint: the state of the training and its settings.

        Raises:
            Unusable: the file cannot be written.
        """
        state = {
            "settings": settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "history": [asdict(epoch) for epoch in self.history],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        # Atomic: a run that is stopped here keeps its previous checkpoint.
        write(path, buffer.getvalue())

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        torch.set_rng_state(state["random"])


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rows: float
) -> Tensor:
    """Take one optimizer step; `rows` is the mean batch size per process. Return summed loss and hits."""
    logits = model(x)  # [B, C]
    loss = F.cross_entropy(logits, y, reduction="sum") / rows
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return torch.stack([loss.detach() * rows, (logits.argmax(1) == y).sum()])


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits) -> tuple[float, float]:
    """Return loss and accuracy on the test set."""
    model.eval()
    logits = model(digits.x)
    return F.cross_entropy(logits, digits.y).item(), (logits.argmax(1) == digits.y).float().mean().item()
