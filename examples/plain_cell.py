"""The same classifier written by hand: a peephole cell called at every time step."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lstm_fused


class PlainCell(nn.Module):
    """One step of one layer; autograd derives the backward pass.

    Args:
        lstm: module whose parameters are copied.
        layer: index of the layer.
    """

    def __init__(self, lstm: lstm_fused.LSTM, layer: int) -> None:
        super().__init__()

        def copy_of(name: str) -> nn.Parameter:
            return nn.Parameter(lstm.get_parameter(f"{name}_l{layer}").detach().clone())

        self.weight_ih, self.weight_hh = copy_of("weight_ih"), copy_of("weight_hh")
        self.bias_ih, self.bias_hh = copy_of("bias_ih"), copy_of("bias_hh")
        self.peephole = copy_of("weight_peephole") if lstm.peephole else None

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the next h and c from x [B, I], h [B, H] and c [B, H]."""
        a = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
        if self.peephole is None:
            c = torch.sigmoid(a_f) * c + torch.sigmoid(a_i) * torch.tanh(a_g)
            return torch.sigmoid(a_o) * torch.tanh(c), c
        p_i, p_f, p_o = self.peephole.chunk(3)
        i = torch.sigmoid(a_i + p_i * c)
        f = torch.sigmoid(a_f + p_f * c)
        c = f * c + i * torch.tanh(a_g)
        o = torch.sigmoid(a_o + p_o * c)
        return o * torch.tanh(c), c


class PlainClassifier(nn.Module):
    """`lstm_fused.SequenceClassifier` as a Python loop over time.

    Args:
        model: classifier whose parameters are copied.
    """

    def __init__(self, model: lstm_fused.SequenceClassifier) -> None:
        super().__init__()
        self.hidden_size = model.lstm.hidden_size
        self.cells = nn.ModuleList(PlainCell(model.lstm, layer) for layer in range(model.lstm.num_layers))
        self.head = nn.Linear(self.hidden_size, model.head.out_features, device=model.head.weight.device)
        self.head.load_state_dict(model.head.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Score every class: [B, T, I] to [B, C]."""
        steps = x.unbind(1)
        for cell in self.cells:
            h = c = x.new_zeros(len(x), self.hidden_size)
            outputs = []
            for x_t in steps:
                h, c = cell(x_t, h, c)
                outputs.append(h)
            steps = tuple(outputs)
        logits: Tensor = self.head(steps[-1])
        return logits


def race(calls: Sequence[Callable[[Tensor], object]], batches: Iterable[Tensor]) -> list[float]:
    """Time calls in turn, so that other load on the machine affects all of them.

    Args:
        calls: functions to time.
        batches: arguments of each call; the first two only warm up.

    Returns:
        Median seconds of each.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for batch in batches:
        for call, times in zip(calls, seconds, strict=True):
            finish(batch.device)
            start = time.perf_counter()
            call(batch)
            finish(batch.device)
            times.append(time.perf_counter() - start)
    return [statistics.median(times[2:]) for times in seconds]


def finish(device: torch.device) -> None:
    """Synchronize with an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
