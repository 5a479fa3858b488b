"""What one writes after a first look at the profile: the input's product hoisted, and torch.compile."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.rivals import Problem, StepByStep

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def step(xw_t: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, peephole: Tensor) -> tuple[Tensor, Tensor]:
    """Take xw_t [B, 4H], h and c [B, H] to the next h and c, in as few operations as there may be."""
    p = peephole.view(3, -1)
    a = torch.addmm(xw_t, h, weight_hh.T).unflatten(1, (4, -1))  # [B, 4, H]
    i, f = torch.sigmoid(torch.addcmul(a[:, :2], p[:2], c[:, None])).unbind(1)
    c = torch.addcmul(f * c, i, torch.tanh(a[:, 2]))
    return torch.sigmoid(torch.addcmul(a[:, 3], p[2], c)) * torch.tanh(c), c


class HoistedLoop(StepByStep):
    """The step-by-step cell with the input's product formed for all steps at once.

    Args:
        problem: whose weights to take.
    """

    step: Step = staticmethod(step)

    def run(self, x: Tensor, h: Tensor, c: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """One layer in one direction: y, h_n, c_n."""
        weight_ih, weight_hh, bias_ih, bias_hh, peephole = (
            self.get_parameter(f"{name}_{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
        )
        reverse = suffix.endswith("_reverse")
        xw = F.linear(x, weight_ih, bias_ih + bias_hh).unbind(0)  # T times [B, 4H]
        ys = []
        for xw_t in reversed(xw) if reverse else xw:
            h, c = self.step(xw_t, h, c, weight_hh, peephole)
            ys.append(h)
        return torch.stack(ys[::-1] if reverse else ys), h, c


class CompiledLoop(HoistedLoop):
    """The same with its step compiled; the whole loop would be unrolled, and compiled for minutes.

    Args:
        problem: whose weights to take.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        torch._dynamo.reset()  # it gives up on a function that it has met in too many shapes
        self.step: Step = torch.compile(step, fullgraph=True, dynamic=False)
