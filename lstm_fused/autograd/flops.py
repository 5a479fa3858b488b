"""FLOP formulas of the operators for `torch.utils.flop_counter.FlopCounterMode`.

They count the matrix products of all steps, two operations for each multiply-add, as the mode does. They see
only shapes, so steps past a length count too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lstm_fused.backends.table import OPERATORS

COUNTER = "torch.utils.flop_counter"  # imports Triton, which takes up to a second
Shape = Sequence[int]


def of_each_row(steps: Shape, *weights: Shape | None) -> int:
    """Products of every row of every step with these weights."""
    return 2 * steps[0] * steps[1] * sum(weight[0] * weight[1] for weight in weights if weight)


def forward(x: Shape, weight_ih: Shape | None, weight_hh: Shape, *rest: Any, **_: Any) -> int:
    """W_ih x, W_hh h and, with a projection, W_hr m."""
    _, _, _, weight_hr = rest[:4]
    return of_each_row(x, weight_ih, weight_hh, weight_hr)


def backward(dy: Any, dh_n: Any, dc_n: Any, c: Shape, gates: Any, c0: Any, *rest: Any, **_: Any) -> int:
    """Gradients of a times W_hh and, with a projection, of h times W_hr."""
    weight_hh, _, weight_hr = rest[:3]
    return of_each_row(c, weight_hh, weight_hr)


def products(
    dxw: Shape, dhw: Any, x: Shape | None, weight_ih: Shape | None, y: Shape | None, *rest: Any, **_: Any
) -> int:
    """Those of dx, dW_ih and dW_hh whose factors are given."""
    T, B, M = dxw
    columns = (weight_ih[1] if weight_ih else 0) + (x[2] if x else 0) + (y[2] if y else 0)
    return 2 * T * B * M * columns


def gradients(
    x: Shape | None, weight_ih: Shape | None, y: Shape | None, h0: Any, *rest: Any, **_: Any
) -> int:
    """Those of `backward` and of `products`."""
    gates = rest[4]
    return backward(*rest) + products(gates, None, x, weight_ih, y)


def added_product(total: Any, left: Shape, right: Shape, **_: Any) -> int:
    """Of `aten.addmm_`, which PyTorch does not count and `lstm_fused.reference.products` uses."""
    return 2 * left[0] * left[1] * right[1]


def register() -> None:
    """Add the formulas of every engine's operators to PyTorch's; a second call changes nothing."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    formulas: tuple[tuple[str, Callable[..., int]], ...] = (
        ("forward", forward),
        ("backward", backward),
        ("products", products),
        ("gradients", gradients),
    )
    if torch.ops.aten.addmm_ not in flop_registry:
        register_flop_formula(torch.ops.aten.addmm_)(added_product)
    for name, engine in OPERATORS.items():
        for part, formula in formulas[: 4 if engine.products else 2]:
            operator = getattr(torch.ops.lstm_fused, f"{name}_{part}")
            if operator not in flop_registry:
                register_flop_formula(operator)(formula)
