"""The problem that all contestants solve: weights, inputs, and the two steps that are timed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import lstm_fused
from bench.cases import Setting
from tests.cases import Case

States = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """Weights, inputs and gradients of the outputs, in one dtype."""

    case: Case
    setting: Setting
    weights: dict[str, Tensor]  # named as in lstm_fused.LSTM
    inputs: tuple[Tensor, ...]  # x [T, B, I], h0 and c0 [layers * directions, B, H]
    gradients: tuple[Tensor, ...]  # of y [T, B, directions * H], h_n and c_n; of a cell, of h and c


def make_problem(case: Case, setting: Setting, seed: int = 0) -> Problem:
    """Draw a problem whose numbers are exact in bfloat16, so that every dtype gets the same ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.to(torch.bfloat16).to(setting.device, setting.dtype)

    T, B, I, H = case.T, case.B, case.I, case.H
    rows, width = setting.layers * setting.directions, setting.directions * H
    module = lstm_fused.LSTM(I, H, setting.layers, bidirectional=setting.bidirectional, device="meta")
    return Problem(
        case,
        setting,
        {name: draw(*weight.shape, scale=H**-0.5) for name, weight in module.state_dict().items()},
        (draw(T, B, I), draw(rows, B, H, scale=0.5), draw(rows, B, H)),
        (draw(T, B, width), draw(rows, B, H), draw(rows, B, H)),
    )


def with_all_steps(problem: Problem) -> Problem:
    """The same problem with every sequence of length T."""
    return replace(problem, case=replace(problem.case, lengths=None))


def forward(module: nn.Module, problem: Problem) -> tuple[Tensor, States]:
    """Run without gradients."""
    x, h0, c0 = problem.inputs
    with torch.no_grad():
        result: tuple[Tensor, States] = module(x, (h0, c0))
    return result


def training(module: nn.Module, problem: Problem) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run forward and backward: the outputs, and the gradients of x, h0, c0 and every parameter."""
    x, h0, c0 = (t.detach().requires_grad_() for t in problem.inputs)
    y, states = module(x, (h0, c0))
    outputs = (y, *states) if isinstance(states, tuple) else (y, states)  # a cell's are h and c
    gradients = torch.autograd.grad(outputs, (x, h0, c0, *module.parameters()), problem.gradients)
    return tuple(output.detach() for output in outputs), gradients


STEPS = {"forward": forward, "training": training}


def results(module: nn.Module, problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients of a training step, by name."""
    outputs, gradients = training(module, problem)
    names = ["d_x", "d_h0", "d_c0", *(f"d_{name}" for name, _ in module.named_parameters())]
    return dict(zip(["y", "h_n", "c_n", *names], (*outputs, *gradients), strict=True))
