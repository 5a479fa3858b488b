"""Who is raced: modules that are called as torch.nn.LSTM, all with the same weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fused
from bench.sizes import Setting
from tests.cases import Case

States = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """Weights, inputs and the gradients of the outputs, in one dtype."""

    case: Case
    setting: Setting
    weights: dict[str, Tensor]  # named as in lstm_fused.LSTM
    inputs: tuple[Tensor, Tensor, Tensor]  # x [T, B, I], h0 and c0 [layers * directions, B, H]
    gradients: tuple[Tensor, Tensor, Tensor]  # of y [T, B, directions * H], h_n and c_n

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same numbers in another dtype; exact, see `make_problem`."""
        x, h0, c0 = (t.to(dtype) for t in self.inputs)
        dy, dh_n, dc_n = (t.to(dtype) for t in self.gradients)
        return replace(
            self,
            setting=replace(self.setting, dtype=dtype),
            weights={name: weight.to(dtype) for name, weight in self.weights.items()},
            inputs=(x, h0, c0),
            gradients=(dy, dh_n, dc_n),
        )


def make_problem(case: Case, setting: Setting, seed: int = 0) -> Problem:
    """Draw a problem whose numbers are exact in bfloat16, so that every dtype sees the same one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.to(torch.bfloat16).to(setting.dtype)

    T, B, I, H = case.T, case.B, case.I, case.H
    rows, width = setting.layers * setting.directions, setting.directions * H
    shapes = lstm_fused.LSTM(
        I, H, setting.layers, bidirectional=setting.bidirectional, device="meta"
    ).state_dict()
    return Problem(
        case,
        setting,
        {name: draw(*weight.shape, scale=H**-0.5) for name, weight in shapes.items()},
        (draw(T, B, I), draw(rows, B, H, scale=0.5), draw(rows, B, H)),
        (draw(T, B, width), draw(rows, B, H), draw(rows, B, H)),
    )


def cell(
    x: Tensor,  # [B, I]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    peephole: Tensor,
) -> States:
    """One step, h and c."""
    p_i, p_f, p_o = peephole.chunk(3)
    a = F.linear(x, weight_ih, bias_ih) + F.linear(h, weight_hh, bias_hh)
    a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    i = torch.sigmoid(a_i + p_i * c)
    f = torch.sigmoid(a_f + p_f * c)
    c = f * c + i * torch.tanh(a_g)
    o = torch.sigmoid(a_o + p_o * c)
    return o * torch.tanh(c), c


class StepByStep(nn.Module):
    """The peephole LSTM as one writes it by hand: one cell, called at every step, and autograd.

    Args:
        problem: whose weights to take.
        cell: one step.
    """

    def __init__(self, problem: Problem, cell: Callable[..., States] = cell) -> None:
        super().__init__()
        self.cell = cell
        self.suffixes = [
            [f"l{layer}", f"l{layer}_reverse"][: problem.setting.directions]
            for layer in range(problem.setting.layers)
        ]
        for name, weight in problem.weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))

    def forward(self, x: Tensor, hx: States) -> tuple[Tensor, States]:
        """Run all layers and directions over x [T, B, I]."""
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for suffixes in self.suffixes:
            ys = []
            for suffix in suffixes:
                y, h, c = self.run(x, hx[0][len(h_n)], hx[1][len(c_n)], suffix)
                ys.append(y)
                h_n.append(h)
                c_n.append(c)
            x = ys[0] if len(ys) == 1 else torch.cat(ys, dim=-1)
        return x, (torch.stack(h_n), torch.stack(c_n))

    def run(self, x: Tensor, h: Tensor, c: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """One layer in one direction: y, h_n, c_n."""
        weights = [
            self.get_parameter(f"{name}_{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
        ]
        reverse = suffix.endswith("_reverse")
        steps = x.unbind(0)
        ys = []
        for x_t in reversed(steps) if reverse else steps:
            h, c = self.cell(x_t, h, c, *weights)
            ys.append(h)
        return torch.stack(ys[::-1] if reverse else ys), h, c


def fused(problem: Problem, engine: str | None, peephole: bool) -> nn.Module:
    """`lstm_fused.LSTM` by one of its engines."""
    case, setting = problem.case, problem.setting
    module = lstm_fused.LSTM(
        case.I,
        case.H,
        setting.layers,
        bidirectional=setting.bidirectional,
        dtype=setting.dtype,
        peephole=peephole,
        engine=engine,
    )
    module.load_state_dict(problem.weights if peephole else without_peepholes(problem.weights))
    if case.lengths is not None:
        given = {"lengths": torch.tensor(case.lengths)}
        module.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | given), with_kwargs=True)
    return module


def torch_lstm(problem: Problem) -> nn.Module:
    """`torch.nn.LSTM`, which has no peepholes; unequal lengths are packed before and padded again after."""
    case, setting = problem.case, problem.setting
    module = nn.LSTM(case.I, case.H, setting.layers, bidirectional=setting.bidirectional, dtype=setting.dtype)
    module.load_state_dict(without_peepholes(problem.weights))
    if case.lengths is not None:
        lengths = torch.tensor(case.lengths)

        def pack(_: nn.Module, args: tuple[Tensor, States]) -> tuple[PackedSequence, States]:
            return pack_padded_sequence(args[0], lengths, enforce_sorted=False), args[1]

        def pad(_: nn.Module, __: object, result: tuple[PackedSequence, States]) -> tuple[Tensor, States]:
            return pad_packed_sequence(result[0], total_length=case.T)[0], result[1]

        module.register_forward_pre_hook(pack)
        module.register_forward_hook(pad)
    return module


def without_peepholes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of torch.nn.LSTM."""
    return {name: weight for name, weight in weights.items() if "peephole" not in name}


@dataclass(frozen=True)
class Rival:
    """One way to compute an LSTM."""

    name: str
    peephole: bool
    make: Callable[[Problem], nn.Module]
    all_steps: bool = False  # whether it takes every sequence for one of T steps


RIVALS = (
    Rival("ours", True, lambda problem: fused(problem, problem.setting.engine, peephole=True)),
    Rival("nn.LSTM", False, torch_lstm),
    Rival("cell", True, StepByStep),
)


def forward(module: nn.Module, problem: Problem) -> tuple[Tensor, States]:
    """Run without gradients."""
    x, h0, c0 = problem.inputs
    with torch.no_grad():
        result: tuple[Tensor, States] = module(x, (h0, c0))
    return result


def training(module: nn.Module, problem: Problem) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run forward and backward: the outputs, and the gradients of x, h0, c0 and every parameter."""
    x, h0, c0 = (t.detach().requires_grad_() for t in problem.inputs)
    y, (h_n, c_n) = module(x, (h0, c0))
    gradients = torch.autograd.grad((y, h_n, c_n), (x, h0, c0, *module.parameters()), problem.gradients)
    return (y.detach(), h_n.detach(), c_n.detach()), gradients
