"""The parameters of one layer in one direction: names, shapes, first values, and what engines are given."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Parameters(NamedTuple):
    """The parameters of one layer in one direction, in the order `run_layer` takes them."""

    weight_ih: Tensor  # [4H, I]
    weight_hh: Tensor  # [4H, P]
    bias_ih: Tensor | None  # [4H]
    bias_hh: Tensor | None  # [4H]
    peephole: Tensor | None  # [3H]
    weight_hr: Tensor | None  # [P, H]
    gain_ih: Tensor | None  # [4H]
    gain_hh: Tensor | None  # [4H]


def shapes(
    I: int, H: int, P: int, bias: bool, peephole: bool, coupled: bool, layer_norm: bool
) -> dict[str, tuple[int, ...] | None]:
    """The shape of each parameter by name, in their order; None for those a layer does without."""
    gates = (3 if coupled else 4) * H
    return {
        "weight_ih": (gates, I),
        "weight_hh": (gates, P or H),
        "bias_ih": (gates,) if bias else None,
        "bias_hh": (gates,) if bias else None,
        "weight_hr": (P, H) if P else None,
        "weight_peephole": ((2 if coupled else 3) * H,) if peephole else None,
        "gain_ih": (gates,) if layer_norm else None,
        "gain_hh": (gates,) if layer_norm else None,
    }


@torch.no_grad()
def reset(
    named: Iterable[tuple[str, nn.Parameter]], H: int, forget_bias: float | None, coupled: bool
) -> None:
    """Draw from ±1/sqrt(H), but gains are 1, and the forget gate's bias is what is asked for."""
    bound = 1 / math.sqrt(H)
    for name, parameter in named:
        if name.startswith("gain"):
            nn.init.ones_(parameter)
            continue
        nn.init.uniform_(parameter, -bound, bound)
        if forget_bias is not None and name.startswith("bias"):
            first = 0 if coupled else H
            parameter[first : first + H] = forget_bias if name.startswith("bias_ih") else 0.0


def uncoupled(parameters: Parameters) -> Parameters:
    """The four gates of three, f, g, o: 1 - f is a gate whose weights are those of f with another sign."""

    def with_i(rows: Tensor, gates: int = 3) -> Tensor:
        return torch.cat([-rows[: len(rows) // gates], rows])

    p = parameters
    return p._replace(
        weight_ih=with_i(p.weight_ih),
        weight_hh=with_i(p.weight_hh),
        bias_ih=None if p.bias_ih is None else with_i(p.bias_ih),
        bias_hh=None if p.bias_hh is None else with_i(p.bias_hh),
        peephole=None if p.peephole is None else with_i(p.peephole, gates=2),
    )
