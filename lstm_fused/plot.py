"""Draws gates and cell states over one sequence; needs the package matplotlib."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lstm_fused.errors import bad, bad_type
from lstm_fused.gates import Gates
from lstm_fused.reference import previous

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "lstm_fused.plot needs the package matplotlib: pip install 'lstm_fused[plot]'", name=error.name
    ) from error

SHARES = {"f": ("kept", "#2f6f8f"), "i": ("let in", "#c2452d"), "o": ("shown", "#c99a2e")}
GREY = "#666666"
PERCENT = PercentFormatter(1, decimals=0, symbol=" %")
PANEL, OVERALL = 2.1, 1.8  # inches


def draw_gates(
    gates: Gates,
    *,
    input: Tensor | None = None,
    reverse: bool = False,
    title: str = "",
    order: Tensor | None = None,
    across: bool = False,
) -> Figure:
    """Draw the gates and the memory of every cell over one sequence; time runs downwards.

    A column is the same cell in every panel, and similar cells stand side by side. The last panel has the
    shares over all cells: of the memory that is kept, of the candidate let in, of the memory shown.

    Args:
        gates: gates of one layer over one sequence, each (T, H), as `lstm_fused.inspect` returns them;
            `Gates.sequence` cuts one out of a batch.
        input: the sequence itself, (T, I), to draw beside them.
        reverse: whether the layer ran from the last step to the first.
        title: title of the figure.
        order: the order of the cells, (H,), such as `similarity_order` of several pictures that are to be
            compared; by default that of these gates.
        across: whether time runs to the right and a row is a cell, for long sequences.

    Returns:
        The figure; write it with its ``savefig``.

    Raises:
        ArgumentError: the gates are not those of one sequence, the input has another T, or the order is not
            one of the cells.

    Examples:
        >>> x = torch.randn(50, 28)
        >>> gates = lstm_fused.inspect(lstm_fused.LSTM(28, 64), x)["l0"]
        >>> draw_gates(gates, input=x, title="fifty steps").savefig("gates.png")
    """
    check_one_sequence(gates)
    T, H = gates.c.shape
    if input is not None:
        check_input(input, T)
    if order is not None:
        check_order(order, H)
    gates = Gates(*(value.detach().cpu().double() for value in gates))
    order = similarity_order(gates) if order is None else order.cpu()
    reach = gates.c.abs().quantile(0.99).item() or 1.0
    panels = [
        Panel("f: share kept", gates.f[:, order], "viridis", 0, 1, SHARES["f"][1]),
        Panel("i: share let in", gates.i[:, order], "viridis", 0, 1, SHARES["i"][1]),
        Panel("o: share shown", gates.o[:, order], "viridis", 0, 1, SHARES["o"][1]),
        Panel("g: new value", gates.g[:, order], "RdBu_r", -1, 1),
        Panel("c: memory", gates.c[:, order], "RdBu_r", -reach, reach),
    ]
    if input is not None:
        panels.insert(0, Panel("input", input.detach().cpu().float(), "Greys"))

    sizes = [PANEL] * len(panels) + [OVERALL]
    if across:
        figure = Figure(figsize=(9, sum(sizes) * 0.7), layout="constrained")
        every = list(figure.subplots(len(sizes), 1, sharex=True, height_ratios=sizes))
    else:
        figure = Figure(figsize=(sum(sizes), 4.2), layout="constrained")
        every = list(figure.subplots(1, len(sizes), sharey=True, width_ratios=sizes))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    *shown, overall = every
    images = [draw_panel(axes, panel, across) for axes, panel in zip(shown, panels, strict=True)]
    side, short = ("right", 12) if across else ("bottom", 20)
    figure.colorbar(images[-5], ax=shown[-5:-2], location=side, aspect=60, format=PERCENT)
    figure.colorbar(images[-2], ax=shown[-2], location=side, aspect=short)
    figure.colorbar(images[-1], ax=shown[-1], location=side, aspect=short, extend="both")
    draw_overall(overall, gates, reverse, across)
    time = every[-1].xaxis if across else every[0].yaxis
    time.set_label_text("time step", color=GREY)
    time.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


class Panel(NamedTuple):
    """Values over time, [T, N], and how to draw them."""

    title: str
    values: Tensor
    colours: str
    low: float | None = None
    high: float | None = None
    colour: str = "black"  # of the title


def check_one_sequence(gates: Gates) -> None:
    """Check that these are gates of shape (T, H) with at least one number."""
    check_gates(gates)
    if gates.c.dim() != 2 or not gates.c.numel():
        got = f"shape {tuple(gates.c.shape)}"
        if gates.c.dim() == 3:
            got += ": cut one out with gates.sequence(index)"
        raise bad("gates", "those of one sequence, (T, H)", got)


def check_gates(gates: object) -> None:
    """Check that these are the gates of one layer, not the dict that `lstm_fused.inspect` returns."""
    if not isinstance(gates, Gates):
        got = type(gates).__name__
        if isinstance(gates, Mapping):
            got += f" with the keys {', '.join(map(repr, gates))}: take the value of one"
        raise bad_type("gates", "the Gates of one layer", got)


def check_input(input: object, T: int) -> None:
    """Check that this is a sequence of T steps."""
    if not isinstance(input, Tensor):
        raise bad_type("input", f"a tensor of shape ({T}, I)", type(input).__name__)
    if input.dim() != 2 or len(input) != T:
        raise bad("input", f"shape ({T}, I), a row for each step of the gates", tuple(input.shape))


def check_order(order: object, H: int) -> None:
    """Check that this is an order of H cells."""
    if not isinstance(order, Tensor):
        raise bad_type("order", f"a tensor of shape ({H},)", type(order).__name__)
    if order.shape != (H,) or order.sort().values.tolist() != list(range(H)):
        raise bad("order", f"each of the cells 0 to {H - 1} once", f"shape {tuple(order.shape)}")


def draw_panel(axes: Axes, panel: Panel, across: bool) -> AxesImage:
    """Draw the values of a panel, with a row for each step or, with time across, a column."""
    values = panel.values.T if across else panel.values
    image = axes.imshow(
        values.numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=panel.colours,
        vmin=panel.low,
        vmax=panel.high,
    )
    axes.set_title(panel.title, loc="left", color=panel.colour)
    others = axes.yaxis if across else axes.xaxis
    others.set_ticks([])
    counted = "features" if panel.title == "input" else "cells"
    others.set_label_text(f"{panel.values.shape[1]} {counted}", color=GREY)
    return image


def draw_overall(axes: Axes, gates: Gates, reverse: bool, across: bool) -> None:
    """Draw the shares over all cells."""
    c_prev = previous(gates.c[:, None], torch.zeros_like(gates.c[:1]), None, reverse)[:, 0]
    acts_on = {"f": c_prev, "i": gates.g, "o": gates.c.tanh()}
    for name, (meaning, colour) in SHARES.items():
        amount = acts_on[name].abs()  # [T, H]
        # NaN, drawn as a gap, if there is no amount.
        share = ((getattr(gates, name) * amount).sum(1) / amount.sum(1)).numpy()
        steps = range(len(share))
        axes.plot(*((steps, share) if across else (share, steps)), color=colour, label=meaning)
    axes.set_title("over all cells", loc="left")
    (axes.set_ylim if across else axes.set_xlim)(0, 1)
    (axes.yaxis if across else axes.xaxis).set_major_formatter(PERCENT)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, handlelength=0.8, fontsize=8, loc="best")


def similarity_order(*sequences: Gates) -> Tensor:
    """Order of the cells, (H,), that places similar ones side by side.

    Cells are sorted by angle in the plane of the first two principal components. The memory has the weight of
    the three gates together.

    Args:
        *sequences: gates of one layer over each of some sequences, each (T, H).

    Raises:
        ArgumentError: there are none, or they are not those of one sequence, or their sizes differ.

    Examples:
        >>> lstm = lstm_fused.LSTM(28, 64)
        >>> first, second = (lstm_fused.inspect(lstm, torch.randn(T, 28))["l0"] for T in (50, 60))
        >>> order = similarity_order(first, second)
        >>> figures = [draw_gates(gates, order=order) for gates in (first, second)]
    """
    for gates in sequences:
        check_one_sequence(gates)
    sizes = {gates.c.shape[1] for gates in sequences}
    if len(sizes) != 1:
        raise bad("sequences", "gates of the same cells", f"sizes {sorted(sizes)}")
    gates = Gates(
        *(torch.cat(list(values)).detach().cpu().double() for values in zip(*sequences, strict=True))
    )
    shares = torch.cat([gates.f, gates.i, gates.o]) - 0.5  # [3T, H]
    memory = gates.c * (shares.norm() / gates.c.norm().clamp_min(1e-9))
    behaviour = F.normalize(torch.cat([memory, shares]), dim=0)  # [4T, H]
    plane = torch.linalg.svd(behaviour, full_matrices=False).Vh[:2]
    return torch.atan2(plane[-1], plane[0]).argsort()
