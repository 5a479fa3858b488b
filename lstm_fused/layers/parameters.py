"""The parameters of one layer in one direction: names, shapes, initial values, and the form engines take."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Parameters(NamedTuple):
    """The parameters of one layer in one direction, in the order of a state dict."""

    weight_ih: Tensor  # [4H, I]
    weight_hh: Tensor  # [4H, P]
    bias_ih: Tensor | None  # [4H]
    bias_hh: Tensor | None  # [4H]
    weight_hr: Tensor | None  # [P, H]
    peephole: Tensor | None  # [3, H]; named weight_peephole in a module
    gain_ih: Tensor | None  # [4H]
    gain_hh: Tensor | None  # [4H]


Shapes = dict[str, tuple[int, ...] | None]


def shapes(
    I: int, H: int, P: int, bias: bool, peephole: bool, coupled: bool, layer_norm: bool, suffix: str = ""
) -> Shapes:
    """The shape of each parameter by name, in the order of `Parameters`; None if the layer has none."""
    gates = (3 if coupled else 4) * H
    by_name: Shapes = {
        "weight_ih": (gates, I),
        "weight_hh": (gates, P or H),
        "bias_ih": (gates,) if bias else None,
        "bias_hh": (gates,) if bias else None,
        "weight_hr": (P, H) if P else None,
        "weight_peephole": (2 if coupled else 3, H) if peephole else None,
        "gain_ih": (gates,) if layer_norm else None,
        "gain_hh": (gates,) if layer_norm else None,
    }
    return {name + suffix: shape for name, shape in by_name.items()}


@torch.no_grad()
def reset(
    named: Iterable[tuple[str, nn.Parameter]], H: int, forget_bias: float | None, coupled: bool
) -> None:
    """Initialise: uniform in ±1/sqrt(H), gains 1, and the forget gate's bias as given."""
    bound = 1 / math.sqrt(H)
    for name, parameter in named:
        if name.startswith("gain"):
            nn.init.ones_(parameter)
            continue
        nn.init.uniform_(parameter, -bound, bound)
        if forget_bias is not None and name.startswith("bias"):
            first = 0 if coupled else H
            parameter[first : first + H] = forget_bias if name.startswith("bias_ih") else 0.0


PEEPHOLE, WEIGHTS = "weight_peephole", ("weight_ih", "weight_hh")


@torch.no_grad()
def zero_absent_peepholes(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, assign: bool
) -> list[str]:
    """Zero the peepholes that a state dict lacks, for layers whose weights it contains.

    torch.nn.LSTM has no peepholes, which is the same as zeros; the module's random values would be noise.

    Args:
        module: an LSTM or LSTMCell that was just loaded.
        state_dict: the loaded state dict.
        prefix: prefix of the module's keys in it.
        assign: whether parameters were replaced by those of the state dict rather than copied.

    Returns:
        Error messages.
    """

    def keys_of(name: str) -> list[str]:
        """The state dict's keys of a parameter, which may be pruned or parametrized there."""
        start = prefix + name, f"{prefix}parametrizations.{name}."
        keys = [start[0], *(f"{start[0]}_{end}" for end in ("orig", "g", "v"))]
        return [key for key in keys if key in state_dict] + [k for k in state_dict if k.startswith(start[1])]

    def absent(name: str) -> bool:
        suffix = name.removeprefix(PEEPHOLE)
        return not keys_of(name) and all(keys_of(weight + suffix) for weight in WEIGHTS)

    for name, own in list(module._parameters.items()):
        peephole = name.removesuffix("_orig")  # of a pruned peephole
        if own is None or not name.startswith(PEEPHOLE) or not absent(peephole):
            continue
        if assign:
            weight = state_dict[keys_of(WEIGHTS[0] + peephole.removeprefix(PEEPHOLE))[0]]
            setattr(module, name, nn.Parameter(weight.new_zeros(own.shape), own.requires_grad))
        else:
            own.zero_()
    parametrized = [name for name in getattr(module, "parametrizations", ()) if name.startswith(PEEPHOLE)]
    return [
        f"{prefix}{name}: expected in the state dict, because a parametrized one cannot be zeroed, got none"
        for name in parametrized
        if absent(name)
    ]


def read(module: nn.Module, shapes: Shapes, coupled: bool) -> Parameters:
    """A module's parameters of these names as engines take them, with coupled gates expanded to all four."""
    held: list[Any] = [None if shape is None else getattr(module, name) for name, shape in shapes.items()]
    own = Parameters(*held)
    return uncoupled(own) if coupled else own


def reshape_flat_peepholes(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give the peepholes of a state dict in which they are flat, (3H,), the shape of the module's, (3, H)."""
    for name, own in (*module._parameters.items(), *module._buffers.items()):
        if own is None or not name.startswith(PEEPHOLE):
            continue
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.dim() == 1 and value.numel() == own.numel():
            state_dict[prefix + name] = value.view(own.shape)


def uncoupled(parameters: Parameters) -> Parameters:
    """Expand gates f, g, o to four: i = 1 - f = sigmoid(-a_f), so i has the negated weights of f."""

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
