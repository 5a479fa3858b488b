"""Contestants that are PyTorch modules, called as torch.nn.LSTM, all with the same weights."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fused
from bench.cases import Setting
from bench.check import DRAWS, Make, Refused, check, shortened
from bench.problem import STEPS, Problem, States, with_all_steps
from bench.race import Call
from lstm_fused.backends.table import select
from tests.cases import Case


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
    """The peephole LSTM by hand: one cell, called at every step, and autograd.

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
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")
        steps, weights = self.hoist(x, *(self.get_parameter(f"{name}_{suffix}") for name in names))
        ys = []
        reverse = suffix.endswith("_reverse")
        for x_t in reversed(steps) if reverse else steps:
            h, c = self.cell(x_t, h, c, *weights)
            ys.append(h)
        return torch.stack(ys[::-1] if reverse else ys), h, c

    def hoist(self, x: Tensor, *weights: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The input and the weights of the cell at each step."""
        return x.unbind(0), weights


def hoisted_cell(xw_t: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, peephole: Tensor) -> States:
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
        cell: one step.
    """

    def __init__(self, problem: Problem, cell: Callable[..., States] = hoisted_cell) -> None:
        super().__init__(problem, cell)

    def hoist(self, x: Tensor, *weights: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """W_ih x of each step [B, 4H], and the weights that are left."""
        weight_ih, weight_hh, bias_ih, bias_hh, peephole = weights
        return F.linear(x, weight_ih, bias_ih + bias_hh).unbind(0), (weight_hh, peephole)


def compiled(cell: Callable[..., States], backend: str) -> Callable[..., States]:
    """The cell through torch.compile; the whole loop would be unrolled, and compiled for minutes."""
    torch._dynamo.reset()  # it gives up on a function that it has met in too many shapes
    found: Callable[..., States] = torch.compile(cell, fullgraph=True, dynamic=False, backend=backend)
    return found


def fused(problem: Problem, engine: str | None, peephole: bool = True) -> nn.Module:
    """`lstm_fused.LSTM` by one of its engines."""
    case, setting = problem.case, problem.setting
    module = lstm_fused.LSTM(
        *(case.I, case.H, setting.layers),
        bidirectional=setting.bidirectional,
        dtype=setting.dtype,
        device=setting.device,
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
    module = nn.LSTM(
        *(case.I, case.H, setting.layers),
        bidirectional=setting.bidirectional,
        dtype=setting.dtype,
        device=setting.device,
    )
    module.load_state_dict(without_peepholes(problem.weights))
    flatten(module)
    if case.lengths is not None:
        lengths = torch.tensor(case.lengths)

        def pack(_: nn.Module, args: tuple[Tensor, States]) -> tuple[PackedSequence, States]:
            return pack_padded_sequence(args[0], lengths, enforce_sorted=False), args[1]

        def pad(_: nn.Module, __: object, result: tuple[PackedSequence, States]) -> tuple[Tensor, States]:
            return pad_packed_sequence(result[0], total_length=case.T)[0], result[1]

        module.register_forward_pre_hook(pack)
        module.register_forward_hook(pad)
    return module


def flatten(module: nn.LSTM) -> None:
    """Put the weights into one piece of memory, as cuDNN takes them; else it copies them at every call.

    PyTorch itself leaves out bfloat16, which cuDNN takes too.
    """
    dtypes: set[torch.dtype] = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
    before = set(dtypes)
    dtypes.add(torch.bfloat16)
    try:
        module.flatten_parameters()
    finally:
        dtypes.intersection_update(before)


def without_peepholes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of torch.nn.LSTM."""
    return {name: weight for name, weight in weights.items() if "peephole" not in name}


def reference(problem: Problem) -> nn.Module:
    """The reference engine, which all but nn.LSTM are compared with."""
    return fused(problem, "reference")


def reference_without_peepholes(problem: Problem) -> nn.Module:
    """The reference engine as nn.LSTM is."""
    return fused(problem, "reference", peephole=False)


@dataclass(frozen=True)
class Module:
    """A contestant that is a PyTorch module."""

    name: str
    make: Make
    truth: Make = reference  # of the same function
    can: tuple[str, ...] = tuple(STEPS)
    all_steps: bool = False  # whether it takes every sequence as one of T steps
    draws: int = 1  # of problems that it is checked on

    def check(self, case: Case, setting: Setting) -> float:
        """Its largest error, over fewer steps if all take long; see `bench.check.check`."""
        return check(self.make, self.truth, shortened(case, setting), setting, self.draws)

    def enter(self, problem: Problem, stack: ExitStack) -> tuple[float | None, Mapping[str, Call]]:
        """Check it, and make it; see `bench.race.Contestant`."""
        if self.all_steps:
            problem = with_all_steps(problem)
        error, module = self.check(problem.case, problem.setting), self.make(problem)
        return error, {what: partial(STEPS[what], module, problem) for what in self.can}


def require_engine(setting: Setting) -> None:
    """Check that the engine of the setting can serve its dtype.

    Raises:
        Refused: it cannot.
    """
    try:
        select(setting.engine, torch.device(setting.device), setting.dtype)
    except RuntimeError as refusal:
        raise Refused(str(refusal)) from None


def ours(problem: Problem) -> nn.Module:
    """`lstm_fused.LSTM` by the engine of the setting.

    Raises:
        Refused: the engine cannot serve the dtype.
    """
    require_engine(problem.setting)
    return fused(problem, problem.setting.engine)


OURS = Module("ours", ours, draws=DRAWS)
TORCH = Module("nn.LSTM", torch_lstm, reference_without_peepholes)
CELL = Module("cell", StepByStep)
HOISTED = Module("hoisted loop", HoistedLoop)
COMPILED = Module("compiled loop", lambda problem: HoistedLoop(problem, compiled(hoisted_cell, "inductor")))
BASICS = (OURS, TORCH, CELL)
LAYERS = (OURS, replace(TORCH, name="torch.nn"))
LOOPS = (*BASICS, HOISTED, COMPILED)
# What unequal lengths cost, beside the same sequences as whole ones, which is another function.
WITH_LENGTHS = (
    OURS,
    replace(OURS, name="ours, all T steps", all_steps=True),
    replace(TORCH, name="nn.LSTM, packed"),
    replace(TORCH, name="nn.LSTM, all T steps", all_steps=True),
)
