"""The short list of cases that an engine is checked on, and the tensors of a case."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lstm_fused.backends import table
from lstm_fused.contract import Variant
from lstm_fused.functional import lstm

# Takes the arguments of `lstm_fused.lstm` that a case has, and returns y and (h_n, c_n).
Run = Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Case:
    """One layer in one direction.

    Attributes:
        name: shown if the case fails.
        T: steps.
        B: sequences.
        I: features of the input.
        H: cells.
        P: size of the projection; 0 for none.
        bias: whether both biases are given.
        peephole: whether peepholes are given.
        states: whether h_0 and c_0 are given.
        lengths: valid steps of each sequence; None for all.
        reverse: whether the layer runs backwards in time.
        variants: whether there are a recurrent dropout, zoneout, a bound on c and layer norm.
    """

    name: str
    T: int = 9
    B: int = 3
    I: int = 5
    H: int = 19
    P: int = 0
    bias: bool = True
    peephole: bool = True
    states: bool = True
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    variants: bool = False


CASES = (
    Case("plain"),
    Case("bare", bias=False, peephole=False, states=False),
    Case("one step", T=1, B=1, I=1, H=1),
    Case("reverse", reverse=True),
    Case("lengths", lengths=(4, 9, 0)),
    Case("lengths in reverse", lengths=(9, 0, 4), reverse=True),
    Case("projection", P=6, lengths=(4, 9, 0)),
    Case("variants", variants=True, lengths=(4, 9, 0)),
    Case("variants in reverse", T=4, variants=True, reverse=True, P=12),
    # Its draw is well-conditioned. With H = 8 and I = 3 the forget gates of a cell stay near 1, and rounding
    # grows with every step.
    Case("many steps", T=150, B=2, I=5, H=8),
    Case("wide", T=3, B=17, I=70, H=130),
)


def arguments(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The arguments of `lstm_fused.lstm`, by name; their values are the same in every dtype."""
    generator = torch.Generator().manual_seed(0)
    T, B, I, H, P = case.T, case.B, case.I, case.H, case.P or case.H

    def uniform(*shape: int, bound: float = 1.0) -> Tensor:
        values = torch.empty(shape, dtype=torch.float64, device="cpu").uniform_(
            -bound, bound, generator=generator
        )
        return values.bfloat16().to(device, dtype)

    def drawn(*shape: int) -> Tensor:
        return torch.bernoulli(torch.full(shape, 0.5, device="cpu"), generator=generator).to(device, dtype)

    given: dict[str, Any] = {
        "input": uniform(T, B, I),
        "weight_ih": uniform(4 * H, I, bound=(3 / I) ** 0.5),
        "weight_hh": uniform(4 * H, P, bound=(3 / P) ** 0.5),
    }
    if case.bias:
        given |= {"bias_ih": uniform(4 * H), "bias_hh": uniform(4 * H)}
    if case.peephole:
        given["peephole"] = uniform(3, H)
    if case.P:
        given["weight_hr"] = uniform(P, H, bound=(3 / H) ** 0.5)
    if case.states:
        given["hx"] = (uniform(B, P), uniform(B, H))
    if case.lengths is not None:
        given["lengths"] = torch.tensor(case.lengths, device=device)
    if case.reverse:
        given["reverse"] = True
    if case.variants:
        given |= {"gain_ih": uniform(4 * H), "gain_hh": uniform(4 * H), "h_mask": 2 * drawn(B, P)}
        given |= {"zoneout_h": drawn(T, B, P), "zoneout_c": drawn(T, B, H), "cell_clip": 0.7}
    return given


DIFFERENTIABLE = (
    *("input", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole", "weight_hr", "gain_ih", "gain_hh"),
)


def leaves_of(given: dict[str, Any]) -> dict[str, Tensor]:
    """The differentiable arguments by name, h_0 and c_0 among them."""
    leaves: dict[str, Tensor] = {name: given[name] for name in DIFFERENTIABLE if name in given}
    return leaves | dict(zip(("h_0", "c_0"), given.get("hx", ()), strict=False))


def with_leaves(given: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments with other values of `leaves_of`."""
    replaced = given | {name: value for name, value in leaves.items() if name in given}
    return replaced | {"hx": (leaves["h_0"], leaves["c_0"])} if "hx" in given else replaced


def run_of(engine: str | Run) -> Run:
    """The function to check."""
    return partial(lstm, engine=engine) if isinstance(engine, str) else engine


def lacks(engine: str | Run, case: Case, dtype: torch.dtype, device: torch.device) -> bool:
    """True if a case is beyond what the table of engines says that this engine computes."""
    if not isinstance(engine, str):
        return False
    some = torch.empty(0) if case.variants else None
    variant = Variant.of(some, some, some, some, 0.7 if case.variants else None)
    return bool(table.named(engine)[0].why_not(device, dtype, variant))
